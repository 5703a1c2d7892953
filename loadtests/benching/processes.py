"""Child processes of a bench: each in a session of its own, ended by its own pid, always."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_S = 90
STOP_S = 60
_POLL_S = 0.02
_SETTINGS = ("ONSALE_", "DB_", "REDIS_URL", "DATABASE_URL", "HOST", "PORT", "WEB_CONCURRENCY")


def environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with these settings of the service and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return {**kept, "PYTHONPATH": str(ROOT), **settings}


@contextlib.contextmanager
def child(argv: list[str], log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block is left; its output goes to a file."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            cwd=log.parent,  # where no .env lies
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C in the terminal is for the bench, which ends it
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # twice kills what `onsale up` has started
            process.wait(STOP_S)


def python(*arguments: str) -> list[str]:
    """Return the command that runs Python with these arguments."""
    return [sys.executable, *arguments]


class ChildEndedError(Exception):
    """A child has ended by itself; the text is the end of what it wrote."""


async def until(
    process: subprocess.Popen[bytes], log: Path, ready: Callable[[], Awaitable[bool]]
) -> None:
    """Wait until a child is ready. Raises ChildEndedError where it has ended, or takes too long."""
    end = time.monotonic() + START_S
    while not await ready():
        if process.poll() is not None or time.monotonic() > end:
            raise ChildEndedError(_end_of(log) or "it is not ready")
        await asyncio.sleep(_POLL_S)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
