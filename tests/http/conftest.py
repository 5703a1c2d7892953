"""The whole service as it runs: `onsale api` and `onsale writer` on stores of their own.

One service serves all tests of this directory. Its Valkey is not the one that other tests flush;
each test opens its own events. The first event is there from the start, and is 1.
"""

import asyncio
import contextlib
import itertools
import json
import re
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import httpx
import psutil
import pytest
import redis
from openapi_schema_validator import OAS31Validator

from service import openapi
from service.keys import partition_keys
from service.listener import bind, http_url, readiness
from tests.http.raw import Connection
from tests.servers import Role, Servers, wait_until

Result = TypeVar("Result")

_NAMES = itertools.count(1)
_CALLS = ("evalsha", "eval", "xinfo|stream")
_DOCUMENT = openapi.document()
_COMPONENTS = {
    "schemas": {
        # Closed here, where a field that is not described is a mistake; clients must allow more.
        name: {**schema, "additionalProperties": False}
        for name, schema in _DOCUMENT["components"]["schemas"].items()
    }
}


class LoggedRole(Role):
    """A role whose stderr can be read."""

    def __init__(self, name: str, environment: dict[str, str], log: Path, *arguments: str) -> None:
        """`log` is added to by each process that is started."""
        super().__init__(name, environment, *arguments)
        self.log = log

    def start(self, pass_fds: tuple[int, ...] = ()) -> None:
        """Start, in a directory without a `.env`, with stderr going to the log."""
        with self.log.open("ab") as log, tempfile.TemporaryDirectory() as nowhere:
            self._process = subprocess.Popen(
                self.argv,
                env=self.environment,
                pass_fds=pass_fds,
                start_new_session=True,
                stderr=log,
                cwd=nowhere,
            )

    def said(self, text: str) -> int:
        """Return how often its log has a text."""
        return self.log.read_text().count(text)

    @property
    def lives(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.poll() is None


@dataclass(frozen=True)
class Reached:
    """What the stores have been asked; each of it only ever grows, but for connections that end."""

    script_calls: int
    api_query_at: datetime
    event_ids: int
    events: int
    changes: int

    def beyond(self, earlier: "Reached") -> set[str]:
        """Name what has been asked since."""
        return {f.name for f in fields(self) if getattr(self, f.name) > getattr(earlier, f.name)}


class Stores:
    """What stands behind the service, from outside."""

    def __init__(self, servers: Servers) -> None:
        """Ask through connections of one's own, and a loop that is nobody else's."""
        self._valkey = redis.Redis.from_url(servers.redis_url, decode_responses=True)
        self._loop = asyncio.new_event_loop()
        self._record = self._wait_for(asyncpg.connect(servers.postgresql_url))

    def reached(self) -> Reached:
        """Tell what they have been asked so far, once the writer has nothing left to do."""
        wait_until(self._is_recorded, what="all is on record")
        stats = self._valkey.info("commandstats")
        assert isinstance(stats, dict)
        calls = {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in _CALLS}
        # Readiness asks all the time, by a script that alone looks at the outbox as a whole.
        script_calls = calls["evalsha"] + calls["eval"] - calls["xinfo|stream"]
        row = self.query(
            "SELECT (SELECT coalesce(max(query_start), 'epoch') FROM pg_stat_activity"
            "        WHERE application_name = 'onsale api'),"
            "       pg_sequence_last_value(pg_get_serial_sequence('events', 'id')::regclass),"
            "       (SELECT count(*) FROM events),"
            "       (SELECT count(*) FROM journal)"
        )
        return Reached(script_calls, *row)

    def query(self, sql: str) -> tuple[Any, ...]:
        """Return the one row that PostgreSQL answers."""
        row = self._wait_for(self._record.fetchrow(sql))
        assert row is not None
        return tuple(row)

    def close(self) -> None:
        """Disconnect."""
        self._valkey.close()
        self._wait_for(self._record.close())
        self._loop.close()

    def _wait_for(self, what: Coroutine[Any, Any, Result]) -> Result:
        return self._loop.run_until_complete(what)

    def _is_recorded(self) -> bool:
        seq, recorded = self._valkey.hmget(partition_keys(0).meta, ["seq", "recorded"])
        return bool(seq == recorded)


@dataclass(frozen=True)
class Service:
    """A running service, its stores and its processes."""

    servers: Servers
    listener: socket.socket
    api: LoggedRole
    writer: LoggedRole
    stores: Stores

    @property
    def url(self) -> str:
        """Where it is reached."""
        return http_url(self.listener)

    def open_event(self, tickets: int = 1) -> int:
        """Open an event with so many tickets, and return its id."""
        body = {"name": f"Event {next(_NAMES)}", "totalTickets": tickets}
        answer = httpx.post(f"{self.url}/initialize", json=body, trust_env=False)
        assert answer.status_code == 201, answer.text
        return int(answer.json()["event"]["id"])

    def connect(self) -> Connection:
        """Open a connection for bytes of one's own."""
        return Connection(self.listener.getsockname()[:2])

    def is_ready(self) -> bool:
        """Whether `/readyz` answers 200."""
        return asyncio.run(readiness(self.listener)).ready

    def memory_bytes(self) -> int:
        """Return what the API process has in memory."""
        return int(psutil.Process(self.api.pid).memory_info().rss)

    def knows_connection(self, port: int) -> bool:
        """Whether the API process still holds the connection that comes from this port."""
        connections = psutil.Process(self.api.pid).net_connections("tcp")
        return any(c.raddr and c.raddr.port == port for c in connections)

    def failures(self) -> list[str]:
        """Return the lines of the API's log that tell of a failure."""
        lines = self.api.log.read_text().splitlines()
        return [line for line in lines if '"level": "error"' in line or "Traceback" in line]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that is ready, for the whole run."""
    directory = tmp_path_factory.mktemp("service")
    servers = Servers(directory / "data")
    listener = bind("127.0.0.1", 0)
    environment = {
        "REDIS_URL": servers.redis_url,
        "DATABASE_URL": servers.postgresql_url,
        "ONSALE_DATA_DIR": str(directory / "data"),
        "ONSALE_METRICS_DIR": str(directory / "metrics"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    api = LoggedRole("api", environment, directory / "api.log", "--fd", str(listener.fileno()))
    writer = LoggedRole("writer", environment, directory / "writer.log")
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        stack.callback(servers.stop)
        servers.start()
        servers.migrate(servers.postgresql_url)
        for role in (writer, api):
            stack.callback(role.stop)
            role.start(pass_fds=(listener.fileno(),) if role is api else ())
        stores = Stores(servers)
        stack.callback(stores.close)
        running = Service(servers, listener, api, writer, stores)
        wait_until(running.is_ready, what="the service is ready")
        assert running.open_event() == 1
        yield running


@pytest.fixture
def raw(service: Service) -> Iterator[Connection]:
    """A connection for bytes of one's own."""
    with service.connect() as connection:
        yield connection


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the service, which holds every answer to `/openapi.json`."""
    hooks = {"response": [_is_as_described]}
    async with httpx.AsyncClient(
        base_url=service.url, timeout=30, trust_env=False, event_hooks=hooks
    ) as client:
        yield client


async def _is_as_described(answer: httpx.Response) -> None:
    path = re.sub(r"/\d+$", "/{eventId}", answer.request.url.path)
    path = re.sub(r"^/events/[^/]+/users/.*", "/events/{eventId}/users/{userId}", path)
    if path not in _DOCUMENT["paths"]:
        return
    described = _DOCUMENT["paths"][path][answer.request.method.lower()]["responses"]
    described = described[str(answer.status_code)]
    (content,) = described["content"].items()
    assert answer.headers["content-type"] == content[0]
    headers = described.get("headers", {}).items()
    assert answer.headers.keys() >= {n.lower() for n, h in headers if h.get("required", True)}
    body = json.loads(await answer.aread())
    OAS31Validator({**content[1]["schema"], "components": _COMPONENTS}).validate(body)


@pytest.fixture
def reaches_neither_store(service: Service) -> Iterator[None]:
    """Hold that the test asks nothing of Valkey and PostgreSQL, and that nothing fails."""
    before, failures = service.stores.reached(), service.failures()
    yield
    assert service.stores.reached().beyond(before) == set()
    assert service.failures() == failures
    assert service.api.lives
