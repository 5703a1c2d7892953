"""Finds the service that runs on a data directory, or runs one for as long as it is needed.

What was found is left alone. What was started here is a child `onsale up` on the same settings,
and is stopped in order, on every way out, before the caller gets control back.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import IO

from service import health
from service.listener import AddressError, bind
from service.rundir import RunDirectory, Service
from service.settings import Settings

START_S = 90.0
STOP_S = 50.0
"""After so long, and the drain, a child that is stopping is told once more: it kills its roles."""

POLL_S = 0.05


class ServingError(Exception):
    """There is no service and none could be started; the text is for the terminal."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A service that takes bookings. `started`: it was started here and will be stopped."""

    service: Service
    started: bool


def running(settings: Settings) -> Service | None:
    """Return the service that runs on the data directory of these settings."""
    return RunDirectory(settings.data_dir).read_service()


@contextlib.asynccontextmanager
async def serving(settings: Settings, hurried: Callable[[], bool]) -> AsyncIterator[Serving]:
    """Lend the service that runs, or one that is started for this.

    A child is stopped even where this is cancelled, more than once too; when `hurried` says so,
    at once. Raises ServingError, with the child's own words where it has said why.
    """
    found = running(settings)
    if found is not None:
        await _until_ready(found, child=None)
        yield Serving(found, started=False)
        return
    with tempfile.TemporaryFile() as log:
        child = _start(settings, log)
        try:
            service = await _until_published(settings, child)
            await _until_ready(service, child)
            yield Serving(service, started=True)
        except _ChildEndedError:
            raise ServingError(_last_words(log)) from None
        finally:
            await _end(child, hurried, STOP_S + settings.drain_seconds)


class _ChildEndedError(Exception):
    """The child has ended before it served."""


def _start(settings: Settings, log: IO[bytes]) -> subprocess.Popen[bytes]:
    # Not asyncio's: a cancellation in the middle of that would kill the child, not stop it. In a
    # session of its own, since a Ctrl-C in the terminal is for the caller.
    return subprocess.Popen(
        [sys.executable, "-m", "service", "up"],
        env={**os.environ, "PORT": str(_free_port(settings))},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _free_port(settings: Settings) -> int:
    """Return PORT, or 0, which is any, where something else listens there."""
    try:
        bind(settings.host, settings.port).close()
    except AddressError:
        return 0
    return settings.port


async def _until_published(settings: Settings, child: subprocess.Popen[bytes]) -> Service:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = running(settings)
        if found is not None and found.pid == child.pid:
            return found
        if child.poll() is not None:
            raise _ChildEndedError
        await asyncio.sleep(POLL_S)
    msg = f"`onsale up` did not start within {START_S:.0f} s"
    raise ServingError(msg)


async def _until_ready(service: Service, child: subprocess.Popen[bytes] | None) -> None:
    """Wait until bookings are taken. A sale that stays closed is an error at once."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = await health.ask(service.http, "/readyz")
        if found.healthy:
            return
        if found.code == "closed":
            msg = f"{service.http} sells nothing: {found.detail}"
            raise ServingError(msg)
        if child is not None and child.poll() is not None:
            raise _ChildEndedError
        await asyncio.sleep(POLL_S)
    msg = f"{service.http} is not ready: /readyz does not answer 200"
    raise ServingError(msg)


async def _end(child: subprocess.Popen[bytes], hurried: Callable[[], bool], seconds: float) -> None:
    """Stop the child, and only then let a cancellation through."""
    ending = asyncio.ensure_future(_stop(child, hurried, seconds))
    cancelled = False
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def _stop(
    child: subprocess.Popen[bytes], hurried: Callable[[], bool], seconds: float
) -> None:
    """Tell the child to stop; once more, which kills its roles, when in a hurry or it hangs."""
    child.send_signal(signal.SIGTERM)
    until = time.monotonic() + seconds
    told_twice = False
    # The process is not asyncio's, so no event tells of its end.
    while child.poll() is None:
        if not told_twice and (hurried() or time.monotonic() > until):
            told_twice = True
            child.send_signal(signal.SIGTERM)
        await asyncio.sleep(POLL_S)


def _last_words(log: IO[bytes]) -> str:
    """Return what the child said of its end: its own line, or the last ones of its log."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    own = [line.removeprefix("onsale: ") for line in lines if line.startswith("onsale: ")]
    return own[-1] if own else "\n".join(["`onsale up` ended:", *lines[-5:]])
