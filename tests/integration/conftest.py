"""A worker and a writer in the test's own process, on its own stores; and a sale on record."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from service.app import Worker, make_writer
from service.confirming import Found, confirm
from service.deadletters import DeadLetters
from service.engine import Engine
from service.handshake import Handshake
from service.handshakes import make_handshakes
from service.ledger import connect
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Stores
from tests.integration.records import put_on_record
from tests.journals import Sale

UNBOUNDED = 10**9
"""More changes than any test makes."""

WAIT_S = 45.0
"""Only what never comes takes so long; a disk that others use stalls for many seconds."""


@pytest.fixture(autouse=True)
def _answered_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has answered is no witness of another's stores."""
    monkeypatch.setenv("ONSALE_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def settings(stores: Stores) -> Settings:
    """The settings of a deployment on this test's stores."""
    return Settings(redis_url=stores.redis_url, database_url=stores.postgresql_url)


@pytest.fixture
async def redis_store(stores: Stores) -> AsyncIterator[RedisStore]:
    """Redis as the record's side sees it."""
    store = RedisStore(stores.redis_url)
    yield store
    await store.aclose()


@pytest.fixture
def handshake(settings: Settings, redis_store: RedisStore) -> Handshake:
    """The handshake of partition 0."""
    return make_handshakes(settings, redis_store, "test")[0]


async def confirm_loss(settings: Settings) -> list[Found]:
    """Do what `onsale confirm-loss --apply` does, on this test's stores."""
    assert settings.own_redis_url is not None
    assert settings.postgresql_url is not None
    return await confirm(settings, settings.own_redis_url, settings.postgresql_url, [])


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[Engine]:
    """The engine of one API worker."""
    async with Worker(settings) as running:
        yield running


@pytest.fixture
async def sale(stores: Stores) -> Sale:
    """Two tickets: a and d have them, c waits, b has cancelled; two epochs.

    The rows: 1 epoch_began, 2 opened, 3 booked a, 4 booked b, 5 waiting c, 6 waiting d,
    7 epoch_began, 8 left c, 9 cancelled b, 10 promoted d, 11 waiting c.
    """
    sale = Sale()
    sale.open(1, 2)
    sale.book(1, "a", "b", "c", "d")
    sale.begin(3)
    sale.cancel(1, "c", "b")
    sale.book(1, "c")
    await put_on_record(stores, sale)
    return sale


@contextlib.asynccontextmanager
async def writing(settings: Settings) -> AsyncIterator[None]:
    """Run a writer meanwhile. Raises what it ended with, if it ended by itself."""
    assert settings.own_redis_url is not None
    store = RedisStore(settings.own_redis_url)
    task = asyncio.create_task(make_writer(settings, store).run())
    try:
        yield
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        await store.aclose()
        if isinstance(ended, Exception):
            raise ended


@contextlib.asynccontextmanager
async def operating(settings: Settings) -> AsyncIterator[DeadLetters]:
    """Lend the operator's commands, on connections of now."""
    assert settings.own_redis_url is not None
    assert settings.postgresql_url is not None
    redis = RedisStore(settings.own_redis_url)
    ledger = await connect(settings.postgresql_url, purpose="deadletters")
    async with DeadLetters(redis, ledger, make_handshakes(settings, redis, "deadletters")) as made:
        yield made


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[None]:
    """A writer that runs all the while."""
    async with writing(settings):
        yield


async def ready(engine: Engine) -> None:
    """Ask every partition whether it takes bookings, at once. Raises Problem when one does not."""
    for partition in engine._partitions:
        await partition.probe(UNBOUNDED, asyncio.get_running_loop().time() + 1.0)


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    """Poll a condition until it holds; fail when it does not."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.01)
