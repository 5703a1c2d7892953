"""The end of a drain, at the moments between two turns of the loop."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.draining import Draining, Server, has_unread
from tests.unit.connection import Line, Wire


class Taken(asyncio.Protocol):
    """A connection that has been accepted, with a request on it."""

    def __init__(self, server_state: ServerState, **_: Any) -> None:
        """Count among the server's connections."""
        server_state.connections.add(self)  # type: ignore[arg-type]
        self.cycle = object()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hang up."""
        transport.close()


async def test_connections_that_wait_are_accepted_when_the_listener_closes() -> None:
    """None of them is reset, although the loop has not heard of any."""
    config = uvicorn.Config(app=lambda: None, http=Taken, log_config=None)
    config.load()
    server = Server(config, Draining(), 1.0)
    server.servers = []
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    clients = [socket.create_connection(address) for _ in range(3)]
    try:
        await server._take_last([listener])
        assert len(server.server_state.connections) == 3
        with socket.socket() as probe:
            assert probe.connect_ex(address) != 0
    finally:
        for client in clients:
            client.close()


class Real(Wire):
    """A wire with a socket behind it, which nothing reads."""

    def __init__(self, connection: socket.socket) -> None:
        """Take one end."""
        super().__init__()
        self._connection = connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the socket."""
        return self._connection if name == "socket" else default


@pytest.mark.parametrize(("sent", "closing"), [(b"GET / HTTP/1.1\r\n", False), (b"", True)])
async def test_a_connection_whose_request_has_come_is_not_closed(
    sent: bytes, *, closing: bool
) -> None:
    """The loop has not read it yet; an idle connection, and one that has gone, are closed."""
    here, there = socket.socketpair()
    line = Line()
    with here, there:
        there.sendall(sent)
        wire = Real(here)
        wire.protocol = line.http
        line.http.transport = wire
        line.http.shutdown()
        assert wire.closing is closing
        there.close()
        assert has_unread(wire) is bool(sent)
    await line.hang_up()
