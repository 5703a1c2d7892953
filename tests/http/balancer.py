"""A balancer as one stands before API processes: each connection goes to a backend that accepts."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence


class Balancer:
    """Passes bytes on, in both directions, until either side hangs up."""

    def __init__(self, backends: Sequence[int]) -> None:
        """`backends` are ports of this machine, asked in turn."""
        self._backends = backends
        self._turns = itertools.count()
        self.port = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Listen meanwhile; yields its address."""
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{self.port}"
        finally:
            server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            backend = await self._connect()
        except OSError:
            writer.close()
            return
        there, back = _copy(reader, backend[1]), _copy(backend[0], writer)
        await asyncio.gather(there, back, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        turn = next(self._turns)
        for place in range(len(self._backends)):
            port = self._backends[(turn + place) % len(self._backends)]
            with contextlib.suppress(ConnectionRefusedError):
                return await asyncio.open_connection("127.0.0.1", port)
        raise ConnectionRefusedError


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(64 << 10):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
