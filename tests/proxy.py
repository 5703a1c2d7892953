"""A proxy in front of Redis that loses replies, or holds them, when a test says so."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

_CHUNK = 1 << 16


class Proxy:
    """Passes bytes between clients and a unix socket."""

    def __init__(self, target: str) -> None:
        """Nothing listens before `proxied`."""
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._lose_next_reply_to = b""
        self._connections: set[asyncio.StreamWriter] = set()
        self.lost = 0

    def lose_the_next_reply_to(self, command: bytes) -> None:
        """Pass the next request that contains this on, and hang up instead of its reply."""
        self._lose_next_reply_to = command

    def hold(self) -> None:
        """Pass nothing on, in either direction, until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Pass everything on again, what was held first."""
        self._open.set()

    def lead_to(self, target: str) -> None:
        """Pass new connections on to another server, as a name does that has moved."""
        self._target = target

    async def serve(
        self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection."""
        reader, writer = await asyncio.open_unix_connection(self._target)
        losing = asyncio.Event()
        self._connections |= {client_writer, writer}
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._requests(client_reader, writer, losing),
                self._replies(reader, client_writer, losing),
            )
        for one in (client_writer, writer):
            one.close()
            self._connections.discard(one)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while data := await reader.read(_CHUNK):
            await self._open.wait()
            if self._lose_next_reply_to and self._lose_next_reply_to in data:
                self._lose_next_reply_to = b""
                losing.set()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event
    ) -> None:
        while data := await reader.read(_CHUNK):
            await self._open.wait()
            if losing.is_set():
                self.lost += 1
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._connections:
            writer.close()


@contextlib.asynccontextmanager
async def proxied(redis_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Put a proxy in front of a Redis on a unix socket; yield it and its URL."""
    path = unquote(redis_url.removeprefix("unix://").partition("?")[0])
    proxy = Proxy(path)
    with tempfile.TemporaryDirectory(prefix="onsale-proxy-") as directory:
        front = Path(directory) / "redis.sock"
        server = await asyncio.start_unix_server(proxy.serve, front)
        try:
            yield proxy, f"unix://{front}?db=0"
        finally:
            proxy.release()
            proxy.hang_up()
            server.close()
