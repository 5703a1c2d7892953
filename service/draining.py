"""Going down behind a proxy: serve for a while after the signal, and say so on every answer.

From the signal on `/readyz` answers 503 `draining`. Every other request is carried out, and its
answer closes the connection, so that a proxy's pool of connections to this process empties. New
connections are accepted. At the end of the drain connections that wait in the listener's queue are
accepted, and those without a request have a moment for it; all others have been idle for the whole
drain. Then uvicorn ends: requests in flight are answered.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog
import uvicorn

log = structlog.stdlib.get_logger("onsale")

FIRST_REQUEST_S = 2.0
"""Seconds for the first request on a connection that was made last."""

_POLL_S = 0.02


class Draining:
    """The state of going down, one for all connections of a process."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        """Begin with a process that stays."""
        self.begun = False


class Server(uvicorn.Server):
    """uvicorn's server, which goes on serving for `seconds` after SIGTERM or SIGINT.

    A second signal ends that time.
    """

    def __init__(self, config: uvicorn.Config, draining: Draining, seconds: float) -> None:
        """Take the flag that the connections look at."""
        super().__init__(config)
        self._draining = draining
        self._seconds = seconds
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or end it."""
        if self._draining.begun:
            self._seconds = 0.0
        self._draining.begun = True
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop serving: looked at ten times a second."""
        if not await super().on_tick(counter):
            return False
        now = asyncio.get_running_loop().time()
        if self._until is None and self._seconds:
            self._until = now + self._seconds
            log.info("draining", seconds=self._seconds)
        return not self._seconds or self._until is None or now >= self._until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and end what is left."""
        if self._seconds:
            await self._take_last(sockets or [])
        await super().shutdown(sockets)

    async def _take_last(self, listeners: list[socket.socket]) -> None:
        """Take the connections that wait, close the listeners, and wait for first requests."""
        # A listener of one's own takes connections until the very last accept, whenever it is that
        # the loop closes its own.
        own = [listener.dup() for listener in listeners]
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        waiting = [connection for listener in own for connection in _accepted(listener)]
        loop = asyncio.get_running_loop()
        for connection in waiting:
            with contextlib.suppress(OSError):  # it has hung up meanwhile
                await loop.connect_accepted_socket(self._protocol, connection)
        until = loop.time() + FIRST_REQUEST_S
        while self._awaits_first() and loop.time() < until:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(_POLL_S)

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        state = self.lifespan.state
        return make(config=self.config, server_state=self.server_state, app_state=state)

    def _awaits_first(self) -> bool:
        connections: set[Any] = self.server_state.connections
        return any(each.cycle is None for each in connections)


def _accepted(listener: socket.socket) -> list[socket.socket]:
    """Return all connections that wait at a listener, which is closed."""
    found = []
    with contextlib.closing(listener), contextlib.suppress(BlockingIOError):
        listener.setblocking(False)
        while True:
            found.append(listener.accept()[0])
    for connection in found:
        connection.setblocking(False)
    return found


def has_unread(transport: asyncio.Transport) -> bool:
    """Return whether bytes have come on a connection that the loop has not read yet."""
    descriptor = transport.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        try:
            return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False
