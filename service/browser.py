"""One keep-alive connection of one person: an HTTP client of a page, for the demo's crowd.

Plain asyncio streams, because some hundred connections at once are this client's whole work: with
httpx 0.28 a request costs 3 ms of CPU at 100 connections, here 50 µs (measured, two cores). It
speaks to Onsale alone: answers have a `Content-Length`, and requests are never sent twice.
"""

import asyncio
import contextlib
import json
import time
from typing import Any
from urllib.parse import urlsplit

from service.crowd import Answer

ANSWER_S = 10.0
"""After so long without an answer the person takes the request for lost."""

_HEADER_BYTES_MAX = 64 << 10

_LOST = (OSError, EOFError, TimeoutError, ValueError, IndexError, asyncio.LimitOverrunError)
"""What is raised when no answer came, or something that is none."""


class Browser:
    """A client of one address; connects when it is first used, and anew after a loss."""

    def __init__(self, address: str) -> None:
        """`address` is `http://host:port`."""
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._head = f"HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: dict[str, object] | None) -> Answer:
        """Send one request; an answer that did not come in time has status 0."""
        sent = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_S):
                status, headers, raw = await self._exchange(method, path, body)
        except _LOST:
            self._hang_up()
            return Answer(0, {}, None, sent, time.monotonic())
        except BaseException:
            # Nobody will read the answer: the next request must not find it.
            self._hang_up()
            raise
        answered = time.monotonic()
        delay = headers.get("retry-after", "")
        after = float(delay) if delay.isdecimal() else None
        return Answer(status, _object(raw), after, sent, answered)

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            writer = self._streams[1]
            self._hang_up()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(
        self, method: str, path: str, body: dict[str, object] | None
    ) -> tuple[int, dict[str, str], bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                self._host, self._port, limit=_HEADER_BYTES_MAX
            )
        reader, writer = self._streams
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} {self._head}"
        if data:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer.write(head.encode() + b"\r\n" + data)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self._hang_up()
        return int(first.split(" ", 2)[1]), headers, raw


def _object(raw: bytes) -> dict[str, Any]:
    """Return a JSON object, empty for anything else: no body of the contract is empty."""
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
