"""A role that kills or freezes itself at a named step of a handshake.

    python -m tests.torture.failing api --fd 5

The real role, as the command runs it. Where ONSALE_TEST_STEP names a file, whichever process comes
to the step that is written there takes the file away, under its own pid, and does what it says:
`kill load_scripts`, `freeze begin_epoch`. Nothing of this is known to the service.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from service import cli, handshake
from service.redis_store import RedisStore

VARIABLE = "ONSALE_TEST_STEP"

STEPS = ("close", "load_scripts", "begin_epoch", "begun")
"""Before the partition is closed, after the epoch is on record, before Redis begins it, after."""

IDLE_S = 1
"""In place of the fifteen seconds after which PostgreSQL ends the session of a frozen holder."""

_SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}


def come_to(step: str) -> None:
    """Do what is written for this step, if this process is the first to read it."""
    path = Path(os.environ[VARIABLE])
    with suppress(OSError):
        what, _, where = path.read_text().partition(" ")
        if where == step:
            path.rename(f"{path}.{os.getpid()}")
            os.kill(os.getpid(), _SIGNALS[what])


def taken(path: Path) -> Iterator[int]:
    """Yield the pid of each process that took a step."""
    for found in path.parent.glob(f"{path.name}.*"):
        yield int(found.suffix[1:])


def _lay(method: str, step: str, after: str = "") -> None:
    go_on: Callable[..., Any] = getattr(RedisStore, method)

    async def stepping(*arguments: Any) -> Any:
        come_to(step)
        found = await go_on(*arguments)
        if after:
            come_to(after)
        return found

    setattr(RedisStore, method, stepping)


if __name__ == "__main__":
    handshake._SESSION_IDLE_S = IDLE_S
    _lay("close", "close")
    _lay("load_scripts", "load_scripts")
    _lay("begin_epoch", "begin_epoch", after="begun")
    cli.main()
