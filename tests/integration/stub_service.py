"""`onsale up` with stand-ins for every process, for the tests of the supervisor.

The supervisor is the real one; the stores are `sleep`, the API answers 200 to everything.
STUB_MODE chooses a stand-in that misbehaves.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from service.cli import main
from service.embedded import Store
from service.probes import NotReadyError
from service.processes import Role
from service.rundir import RunDirectory, Service
from service.settings import Settings
from service.supervisor import Plan

MODE = os.environ.get("STUB_MODE", "")

API = """
import os, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    connection, _ = listener.accept()
    connection.recv(4096)
    body = str(os.getpid()).encode()
    connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
    connection.close()
"""
REFUSES = "import sys; print('onsale: PARTITIONS is another'); sys.exit(2)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
SLEEP = ("sleep", "1000")


def python(code: str, *arguments: str) -> tuple[str, ...]:
    """Return a command that runs the code, quick to start."""
    return (sys.executable, "-I", "-S", "-c", code, *arguments)


class StubStore:
    """A store that is ready at once, or never."""

    def __init__(self, name: str, number: signal.Signals) -> None:
        """Give it a role that only sleeps."""
        self.name = name
        self.url = f"{name}://stub"
        self.role: Role | None = Role(name, SLEEP, stop_signal=number)

    async def prepare(self) -> None:
        """Nothing to make."""

    async def probe(self) -> str:
        """Answer, unless the mode is `never`."""
        if MODE == "never":
            reason = "never"
            raise NotReadyError(reason)
        return f"{self.name} 1.0"


def stores(_: Settings, __: RunDirectory, ___: Path) -> Sequence[Store]:
    """Return two stand-ins."""
    return (
        StubStore("valkey", signal.SIGTERM),
        StubStore("postgresql", signal.SIGINT),
    )


async def migrate(_: str, __: RunDirectory) -> None:
    """Change no schema."""


def workers(settings: Settings, _: Service, listener: socket.socket) -> Sequence[Role]:
    """Return a writer that sleeps and API workers that answer."""
    roles = [Role("writer", python(STUBBORN) if MODE == "stubborn" else SLEEP)]
    fd = listener.fileno()
    for number in range(1, settings.web_concurrency + 1):
        name = "api" if number == 1 else f"api-{number}"
        command = python(REFUSES) if MODE == "refuses" else python(API, str(fd))
        roles.append(Role(name, command, inherited_fds=(fd,), final_codes=frozenset({2})))
    return roles


if __name__ == "__main__":
    from service import supervisor

    # Whoever runs the tests may have it ignored, as under nohup, and children inherit that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    supervisor.DEFAULT_PLAN = Plan(stores, migrate, workers)
    main(["up"])
