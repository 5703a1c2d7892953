"""The HTTP socket: bound once by the supervisor, inherited by every API worker.

Connections wait in its backlog while no worker accepts, at the start and between two lives.
"""

import errno
import os
import resource
import socket
from dataclasses import dataclass
from ipaddress import ip_address

import structlog

from service.health import ask

log = structlog.stdlib.get_logger("onsale")

BACKLOG = 2048
RECEIVE_BUFFER_BYTES = 32 << 10
"""Bytes of a connection that the kernel holds unread; Linux doubles it for its own use."""

_FILES_USUAL = 10_200
"""Open files, of the system's hard limit, for ten thousand connections and all else."""

READY_SECONDS = 1.0
"""How long one question may take; a connection that no worker accepts yet just waits."""


class AddressError(Exception):
    """The address cannot be listened on; the text is for the terminal."""


def bind(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0 picks a free one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            msg = f"PORT={port} is in use on {host}; stop what listens there, or set another PORT"
        else:
            # create_server adds the address to its text; a failed look-up has its own numbers.
            looked_up = not isinstance(error, socket.gaierror)
            reason = os.strerror(error.errno or 0) if looked_up else error.strerror
            msg = f"HOST={host} PORT={port} cannot be listened on: {reason}"
        raise AddressError(msg) from None
    # Inherited by each connection. uvloop reads up to 250 KB at once, and the process would keep
    # all of it for a client that takes no answer.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return listener


def inherited(descriptor: int) -> socket.socket:
    """Return the listening socket that a parent process has left open. Raises AddressError."""
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        msg = f"--fd {descriptor} is no socket that was inherited: {error.strerror}"
        raise AddressError(msg) from None


def allow_connections() -> None:
    """Let this process hold as many connections as the system lets it: the usual 1,024 are few.

    Who is beyond the limit is hung up on, whoever it is.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if 0 <= most < _FILES_USUAL:
        log.warning("few connections can be held", open_files_max=most, usual=_FILES_USUAL)


def http_url(listener: socket.socket) -> str:
    """Return the address at which this machine reaches the socket."""
    host, port = _reachable(listener)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True)
class Readiness:
    """What `/readyz` said. `closed` is why the stores do not agree, empty when they do."""

    ready: bool
    closed: str = ""


async def readiness(listener: socket.socket) -> Readiness:
    """Ask `GET /readyz` through the socket; whatever is no answer is "not ready"."""
    health = await ask(http_url(listener), "/readyz", READY_SECONDS)
    return Readiness(health.healthy, health.detail if health.code == "closed" else "")


def _reachable(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()[:2]
    address = ip_address(host)
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"  # IPv4
    return host, port
