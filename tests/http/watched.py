"""A service whose stores are put wrong and right again, and what it says meanwhile."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import redis

from service.keys import partition_keys
from service.listener import bind, http_url, readiness
from tests.http.conftest import LoggedRole
from tests.servers import START_S, Servers, wait_until

META, _, OUTBOX = partition_keys(0)
_USERS = itertools.count(1)


class Watched:
    """An API and a writer on servers of their own, with one event of many tickets."""

    def __init__(
        self, servers: Servers, url: str, api: LoggedRole, writer: LoggedRole, level: str
    ) -> None:
        self.servers = servers
        self.url = url
        self.api = api
        self.writer = writer
        self.valkey: Any = redis.Redis.from_url(servers.redis_url, decode_responses=True)
        self._client = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self.event_id = 0
        self._level = level

    def open_event(self) -> None:
        """Open the event that is sold."""
        answer = self._client.post("/initialize", json={"name": "A", "totalTickets": 1_000_000})
        opened = answer.json()  # on a busy machine it may be pending
        self.event_id = int(opened["event"]["id"] if "event" in opened else opened["eventId"])

    def close(self) -> None:
        """Disconnect."""
        self.valkey.close()
        self._client.close()

    def get(self, path: str) -> httpx.Response:
        """Ask."""
        return self._client.get(path)

    def book(self, prefer: str = "") -> httpx.Response:
        """Book for a user who is new."""
        body = {"eventId": self.event_id, "userId": f"u{next(_USERS)}"}
        headers = {"prefer": f"durability={prefer}"} if prefer else {}
        return self._client.post("/book", json=body, headers=headers)

    def metric(self, name: str) -> float:
        """Return the sum of a family's samples, or of those of one label set."""
        lines = self.get("/metrics").text.splitlines()
        found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)]
        return sum(found)

    def turns_ready(self) -> None:
        """Wait until it is ready, and sells at its level."""
        wait_until(lambda: self.get("/readyz").status_code == 200, what="it is ready")
        wait_until(self._sells, what="it sells")

    def _sells(self) -> bool:
        answer = self.book()
        return answer.status_code == 201 and answer.json()["durability"] == self._level

    def turns_unready(self) -> dict[str, Any]:
        """Wait until it is not ready; return the problem."""
        until = time.monotonic() + START_S
        while (answer := self.get("/readyz")).status_code == 200:
            assert time.monotonic() < until, "it stayed ready"
            time.sleep(0.02)
        found = answer.json()
        assert isinstance(found, dict)
        return found


@contextlib.contextmanager
def watched(directory: Path, settings: Mapping[str, str] | None = None) -> Iterator[Watched]:
    """Start one, and end it."""
    servers = Servers(directory / "data")
    environment = {
        "REDIS_URL": servers.redis_url,
        "DATABASE_URL": servers.postgresql_url,
        "ONSALE_DATA_DIR": str(directory / "data"),
        "ONSALE_METRICS_DIR": str(directory / "metrics"),
        "ONSALE_REQUEST_DEADLINE_MS": "500",
        "ONSALE_LOG_FORMAT": "json",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        **(settings or {}),
    }
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind("127.0.0.1", 0))
        stack.callback(servers.stop)
        servers.start()
        servers.migrate(servers.postgresql_url)
        fd = listener.fileno()
        api = LoggedRole("api", environment, directory / "api.log", "--fd", str(fd))
        writer = LoggedRole("writer", environment, directory / "writer.log")
        for role in (writer, api):
            stack.callback(role.stop)
            role.start(pass_fds=(fd,) if role is api else ())
        wait_until(lambda: asyncio.run(readiness(listener)).ready, what="the service is ready")
        level = environment.get("ONSALE_DURABILITY", "fsync")
        running = Watched(servers, http_url(listener), api, writer, level)
        stack.callback(running.close)
        running.open_event()
        yield running
