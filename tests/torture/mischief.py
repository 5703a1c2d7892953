"""A proxy that does mischief at random: to a request on its way, or to the reply.

Stands between people and the API, or between the API and Valkey, and knows nothing of either: a
request is whatever came in one piece, a reply whatever comes back after it. What it does follows
from the seed; to whom depends on who comes when. A request that it holds arrives, however late,
and even where nobody waits for it any more.
"""

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from urllib.parse import unquote

_CHUNK = 1 << 16
_HELD_S_MAX = 1.5

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

MISCHIEF = {
    "reply lost": 5,
    "reply cut": 3,
    "request lost": 1,
    "request cut": 1,
    "held": 1,
}
"""How often each kind is done, against the others."""


class Mischief:
    """Passes bytes on; of every request one in `1 / often` is meddled with, once it is let."""

    def __init__(self, connect: Callable[[], Awaitable[Streams]], seed: str, often: float) -> None:
        """`connect` reaches what stands behind."""
        self.done: Counter[str] = Counter()
        self.at_work = False
        self._connect = connect
        self._chance = Random(seed)
        self._often = often
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def lost_replies(self) -> int:
        """How many requests went through whose replies did not arrive, or not whole."""
        return self.done["reply lost"] + self.done["reply cut"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._pass_on(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind = await self._connect()
        except OSError:
            return
        connection = _Connection((reader, writer), behind, self._drawn)
        try:
            await connection.run()
        finally:
            behind[1].close()

    def _drawn(self) -> tuple[str, float]:
        """Return what to do to the next request, nothing for most, and how much of it."""
        part = self._chance.random()
        if not self.at_work or self._chance.random() >= self._often:
            return "", part
        kind = self._chance.choices([*MISCHIEF], [*MISCHIEF.values()])[0]
        self.done[kind] += 1
        return kind, part

    async def end(self) -> None:
        """Hang up on everybody."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


class _Connection:
    """One connection and the one behind it."""

    def __init__(
        self, front: Streams, behind: Streams, drawn: Callable[[], tuple[str, float]]
    ) -> None:
        self._front, self._behind = front, behind
        self._drawn = drawn
        self._of_reply = ""
        self._part = 0.0

    async def run(self) -> None:
        """Pass on until one side has ended; what was held then still goes through."""
        replies = asyncio.create_task(self._replies())
        requests = asyncio.create_task(self._requests())
        try:
            await asyncio.wait({replies, requests}, return_when=asyncio.FIRST_COMPLETED)
            if replies.done():
                # Nobody is there any more; but a request that is held goes its way to the end.
                self._front[1].close()
                await asyncio.wait({requests}, timeout=2 * _HELD_S_MAX)
        finally:
            for task in (replies, requests):
                task.cancel()
            await asyncio.gather(replies, requests, return_exceptions=True)

    async def _requests(self) -> None:
        reader, writer = self._front[0], self._behind[1]
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                kind, part = self._drawn()
                if kind == "request lost":
                    return
                if kind == "request cut":
                    writer.write(data[: int(part * len(data))])
                    await writer.drain()
                    return
                if kind == "held":
                    await asyncio.sleep(part * _HELD_S_MAX)
                elif kind:
                    self._of_reply, self._part = kind, part
                writer.write(data)
                await writer.drain()

    async def _replies(self) -> None:
        reader, writer = self._behind[0], self._front[1]
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self._of_reply == "reply lost":
                    return
                if self._of_reply == "reply cut":
                    writer.write(data[: int(self._part * len(data))])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def before_redis(url: str, seed: str, often: float) -> AsyncIterator[tuple[Mischief, str]]:
    """Stand in front of a Redis on a unix socket; yield the proxy and its own URL."""
    path = unquote(url.removeprefix("unix://").partition("?")[0])
    proxy = Mischief(lambda: asyncio.open_unix_connection(path), seed, often)
    with tempfile.TemporaryDirectory(prefix="onsale-mischief-") as directory:
        front = Path(directory) / "redis.sock"
        server = await asyncio.start_unix_server(proxy.serve, front)
        async with _ended(proxy, server):
            yield proxy, f"unix://{front}?db=0"


@contextlib.asynccontextmanager
async def before_http(url: str, seed: str, often: float) -> AsyncIterator[tuple[Mischief, str]]:
    """Stand in front of an API; yield the proxy and its own URL."""
    host, _, port = url.removeprefix("http://").partition(":")
    proxy = Mischief(lambda: asyncio.open_connection(host, int(port)), seed, often)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    async with _ended(proxy, server):
        yield proxy, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def _ended(proxy: Mischief, server: asyncio.Server) -> AsyncIterator[None]:
    try:
        yield
    finally:
        server.close()
        await proxy.end()
