"""What all tests share: a Valkey and a PostgreSQL per run, fresh keys and a fresh record each."""

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis
from redis.asyncio import Redis

from service import logs
from tests import memory, process_state
from tests.servers import Servers, fresh_database

logs.route()  # without a handler: pytest's own collects what is logged

LONG = (
    "tests/restores/",
    "tests/loadtests/test_a_crowd.py",
    "tests/http/test_restores.py",
    "tests/http/test_record_behind.py",
    "tests/integration/test_deadletters",
    "tests/integration/test_given_verdicts.py",
    "tests/integration/test_recorded.py",
    "tests/integration/test_writer",
    "tests/packaging/",
)
"""Files of more than 25 s."""

Client = Any
"""A client of Redis: redis-py types every text as text or bytes."""

if TYPE_CHECKING:
    Record = asyncpg.Connection[asyncpg.Record]
else:
    Record = asyncpg.Connection

_databases = itertools.count(1)


class SessionFixtures:
    """A plugin, since pytest calls no hook of this file for a fixture of the session."""

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        """Know the processes that a fixture of the session starts, whichever test asks first."""
        if fixturedef.scope != "session":
            return (yield)
        with process_state.for_the_run():
            return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Put the temporary directories of a run into memory, where there is enough of it."""
    config.pluginmanager.register(SessionFixtures())
    if not hasattr(config, "workerinput") and config.option.basetemp is None:
        config.option.basetemp = memory.directory()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what `pytest_configure` made."""
    if not hasattr(config, "workerinput"):
        memory.remove(config.option.basetemp)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none is left alone at the end.

    Behind the shuffle of pytest-randomly, which stands for all others. `make test` gives each file
    to one process, since a module's fixture would be made anew in each that runs one of its tests.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(autouse=True)
def state_of_the_test() -> Iterator[None]:
    """Name the test that leaves state behind for the tests that follow in its process."""
    with process_state.left_as_found("this test"):
        yield


@pytest.fixture(scope="module", autouse=True)
def state_of_the_module() -> Iterator[None]:
    """Name the module whose fixtures do."""
    with process_state.left_as_found("a fixture of this module"):
        yield


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """For a test that configures logging as a command does: it is as before afterwards."""
    loggers = [logging.getLogger(name) for name in (None, *logs.QUIETER)]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A Valkey and a PostgreSQL as `onsale up` runs them, migrated, for the whole run."""
    running = Servers(tmp_path_factory.mktemp("servers") / "data")
    try:
        running.start()
        running.migrate(running.postgresql_url)
        yield running
    finally:
        running.stop()


@dataclass(frozen=True)
class Stores:
    """The URLs of an empty Redis and of an empty, migrated record."""

    redis_url: str
    postgresql_url: str

    @property
    def environment(self) -> dict[str, str]:
        return {"REDIS_URL": self.redis_url, "DATABASE_URL": self.postgresql_url}


@pytest.fixture
def empty_valkey(servers: Servers) -> str:
    """The URL of a Valkey without keys and without scripts."""
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
        client.script_flush()
    return servers.redis_url


@pytest.fixture
def stores(servers: Servers, empty_valkey: str) -> Stores:
    """An empty Redis and an empty record, for this test alone."""
    name = f"test_{os.getpid()}_{next(_databases)}"
    asyncio.run(fresh_database(servers.postgresql_url, name))
    return Stores(empty_valkey, servers.postgresql_url.replace("/onsale?", f"/{name}?"))


@pytest.fixture
async def valkey(empty_valkey: str) -> AsyncIterator[Client]:
    """A client of an empty Valkey."""
    client = Redis.from_url(empty_valkey, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
async def record(stores: Stores) -> AsyncIterator[Record]:
    """A connection to this test's record."""
    connection = await asyncpg.connect(stores.postgresql_url)
    yield connection
    await connection.close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that does not exist yet."""
    return tmp_path / "data"
