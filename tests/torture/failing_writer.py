"""A writer that kills itself at a named point, and is begun again when somebody has looked.

    python -m tests.torture.failing_writer writer

The real writer, as the command runs it, in a child of this process: what takes long to import is
imported once. ONSALE_TEST_POINTS says where each life ends, `POINT:PASSING ...`; the last life has
no such end. Whoever wrote that list is told of each end by a line on stderr, and says with SIGUSR1
that the next life may begin. Nothing of this is known to the service: the points are laid over it.
"""

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any

from service import after_commit, app, logs
from service.ledger import Ledger
from service.projection import Projection
from service.record import Application
from service.redis_store import RedisStore
from service.settings import Settings, load_settings
from service.writer import Writer

VARIABLE = "ONSALE_TEST_POINTS"
ENDED = "the writer's life ended at"
POINTS = (
    *("before_begin", "mid_rows", "before_commit"),
    *("after_commit", "before_watermark", "before_trim"),
)

RETAINED_BYTES = 16 << 10
"""Less than a setting may say: so little that each sale has much to trim."""

_TRIM_EVERY_S = 0.05

LOAD_CHANGES = 2
"""So few that the next load is nearly always made ready while one goes on record."""


class Point:
    """One place in the writer's code; the process ends at its n-th passing."""

    def __init__(self, passing: int) -> None:
        self._left = passing

    def pass_by(self) -> None:
        """Go on, or end here."""
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def arm(name: str, passing: int) -> None:
    """Lay a point over the service's own code."""
    point = Point(passing)
    if name == "mid_rows":
        _before(Projection, "carry", point)
    elif name == "before_watermark":
        _before(RedisStore, "raise_watermark", point)
    elif name == "before_trim":
        _before(RedisStore, "trim_outbox", point)
    else:
        _around_the_transaction(name, point)


def _before(owner: type, method: str, point: Point) -> None:
    go_on: Callable[..., Any] = getattr(owner, method)

    async def passing(*arguments: Any) -> Any:
        point.pass_by()
        return await go_on(*arguments)

    setattr(owner, method, passing)


def _around_the_transaction(name: str, point: Point) -> None:
    applying = Ledger.applying

    @contextlib.asynccontextmanager
    async def passing(self: Ledger, partitions: Iterable[int]) -> AsyncIterator[Application]:
        if name == "before_begin":
            point.pass_by()
        async with applying(self, partitions) as application:
            yield application
            if name == "before_commit":
                point.pass_by()
        if name == "after_commit":
            point.pass_by()

    Ledger.applying = passing  # type: ignore[method-assign]


def live(settings: Settings, end: str) -> int:
    """Run one life in a process of its own; return what waitpid says of it."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKED)
        if end:
            name, _, passing = end.partition(":")
            arm(name, int(passing))
        app.run_writer(settings)
        os._exit(0)
    _hand_on(child)
    return os.waitpid(child, 0)[1]


def _hand_on(child: int) -> None:
    """Have the child end when this process is told to."""
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


_ASKED = {signal.SIGUSR1, signal.SIGTERM}


def main() -> None:
    """Live as often as the list says, and once more."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED)
    found = load_settings()
    logs.configure(level=found.log_level, role="writer")
    settings = found.model_copy(update={"retained_bytes": RETAINED_BYTES})
    after_commit._TRIM_EVERY_S = _TRIM_EVERY_S
    vars(app)["Writer"] = partial(Writer, load_changes=LOAD_CHANGES)
    for end in os.environ[VARIABLE].split():
        ended = live(settings, end)
        if os.waitstatus_to_exitcode(ended) != -signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(ended))
        sys.stderr.write(f"{ENDED} {end}\n")
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED)
        if signal.sigwait(_ASKED) == signal.SIGTERM:
            return
    sys.exit(os.waitstatus_to_exitcode(live(settings, "")))


if __name__ == "__main__":
    main()
