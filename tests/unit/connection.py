"""One connection as the service has it, without a socket: bytes in, answers and calls out."""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from service.admission import Admission
from service.heads import Headers
from service.hot_exchange import Connection, Exchange
from service.hot_http1 import HotHttp1, hot_http1
from service.hot_path import Book, HotPath
from service.metrics import Metrics
from service.shedding import Shedding

EARLY = "/early"
"""What is asked for here is answered without a look at its body."""

_STILL_TURNS = 4
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """A request as the application got it whole."""

    method: str
    path: str
    version: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Wire(asyncio.Transport):
    """What a transport does, in memory. Raises for what no transport takes."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.Protocol
        self.written = bytearray()
        self.untaken = 0
        self.reading = True
        self.closing = False

    def write(self, data: Any) -> None:
        if not self.closing:
            self.written += data

    def get_write_buffer_size(self) -> int:
        return self.untaken

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = (high, low)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


class Shown(HotPath):
    """A hot path that asks no engine: it takes what it is told to take, and keeps it."""

    def __init__(self, *, takes: bool) -> None:
        """Take what is shown, or leave all of it to the application."""
        self._takes = takes
        self._always = (None, b"")
        self.engine: Any = SimpleNamespace(awaits=lambda prefer: prefer == "recorded")
        self.admission = Admission(0.02)
        self.metrics = Metrics()
        self.durations = self.metrics.request_durations
        self.shedding = Shedding(self.admission, self.metrics)
        self.taken: list[tuple[bytes, dict[bytes, bytes], bytes]] = []
        self.exchanges: list[Exchange] = []

    def begin(
        self, path: bytes, headers: Headers, body: bytes, connection: Connection
    ) -> Exchange | None:
        """Keep it; it is answered when the test says so."""
        if not self._takes:
            return None
        self.taken.append((path, dict(headers), body))
        self.exchanges.append(Book(self, connection, 1, "a", ""))
        return self.exchanges[-1]


@dataclass
class Line:
    """A connection to an application that tells back the body of each request, and keeps it."""

    read_s: float = 60.0
    hot: Shown = field(default_factory=lambda: Shown(takes=False))
    asked: list[Asked] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    queued_max: int = 0

    def __post_init__(self) -> None:
        """Connect."""
        self.wire = Wire()
        kind = hot_http1(self.refused.append, self.hot)
        kind.read_s = self.read_s
        self.http: HotHttp1 = kind(_CONFIG, ServerState(), {"asked": self.asked})
        self.http.access_log = False  # pytest listens to all that is logged
        self.wire.protocol = self.http
        self.http.connection_made(self.wire)

    async def send(self, segments: Iterable[bytes]) -> None:
        """Send segments, each when the service reads; what it hangs up on is dropped."""
        for segment in segments:
            while not (self.wire.reading or self.wire.closing):
                await asyncio.sleep(0)
            if self.wire.closing:
                break
            self.http.data_received(segment)
            self.queued_max = max(self.queued_max, len(self.http.pipeline))
        await self._quiet()

    async def _quiet(self) -> None:
        """Let the application go on until nothing has moved for a few turns of the loop."""
        still, before = 0, (-1, -1, -1)
        while still < _STILL_TURNS:
            await asyncio.sleep(0)
            now = (len(self.asked), len(self.wire.written), len(self.http.tasks))
            still = still + 1 if now == before else 0
            before = now

    async def hang_up(self) -> None:
        """Leave, if the service has not."""
        self.wire.close()
        while self.http.tasks:
            await asyncio.sleep(0)

    @property
    def statuses(self) -> list[int]:
        """The statuses that were answered, in order. Fails on what is no answer."""
        return [int(head.split()[1]) for head, _ in self.answers()]

    def answers(self) -> list[tuple[bytes, bytes]]:
        """Return heads and bodies of all answers."""
        found, rest = [], bytes(self.written)
        while rest:
            head, end, rest = rest.partition(b"\r\n\r\n")
            assert end, head
            assert head.startswith(b"HTTP/1.1 "), head
            if head.startswith(b"HTTP/1.1 100 "):
                continue
            length = _LENGTH.search(head + b"\r\n")
            assert length, head
            size = int(length[1])
            assert len(rest) >= size or not rest  # the last one may answer HEAD
            found.append((head, rest[:size]))
            rest = rest[size:]
        return found

    @property
    def written(self) -> bytes:
        """All that was answered."""
        return bytes(self.wire.written)


async def _application(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", scope["path"] != EARLY
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    scope["state"]["asked"].append(
        Asked(scope["method"], scope["path"], scope["http_version"], tuple(scope["headers"]), body)
    )
    body = b"" if scope["method"] == "HEAD" else body
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


_CONFIG = uvicorn.Config(
    _application, interface="asgi3", ws="none", lifespan="off", log_config=None,
    access_log=False, proxy_headers=False,
)  # fmt: skip
_CONFIG.load()
