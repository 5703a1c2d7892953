"""The network of a simulation: what is asked may be lost, late or cut off, on either way.

A question is executed, if it arrives, whatever has become of who asked; an answer reaches only a
process that lives. So a caller that is killed while it waits may have had its effect, and one that
gave up may have it yet. Says honestly which of the three happened: refused (surely not executed),
reset, silent.
"""

from asyncio import CancelledError, Future
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tests.simulation.loop import PROCESS, Process

if TYPE_CHECKING:
    from tests.simulation.world import World


class Refused(Exception):
    """Nobody listens: it was not executed."""


class Reset(Exception):
    """The connection ended: it may have been executed."""


class Silent(Exception):
    """No answer in time: it may have been executed, or may be yet."""


class Answer(Protocol):
    """What a server answers with, once."""

    def __call__(self, value: Any = None, error: Exception | None = None) -> None: ...


Effect = Callable[[Answer], None]
"""Runs in the server when the question arrives; answers then or later."""


class Server:
    """What can be asked. `incarnation` rises with each end: older connections are gone then."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.process = process
        self.up = True
        self.incarnation = 1
        self.owed: dict[int, Callable[[], None]] = {}

    def end(self) -> None:
        """Go down: what was not answered is reset."""
        self.up = False
        self.incarnation += 1
        owed, self.owed = self.owed, {}
        for reset in owed.values():
            reset()


@dataclass(frozen=True, slots=True)
class Troubles:
    """How often of all questions something goes wrong, each from 0 to 1."""

    lost_request: float = 0.0
    lost_reply: float = 0.0
    reset_before: float = 0.0
    reset_after: float = 0.0
    delayed: float = 0.0


CALM = Troubles()


class Network:
    """Carries questions and answers. `cut` holds pairs of process and server that are parted."""

    def __init__(self, world: "World") -> None:
        self.troubles = CALM
        self.cut: set[tuple[str, str]] = set()
        self._world = world
        self._asked = 0

    def later(
        self, delay: float, process: Process, callback: Callable[..., object], *args: Any
    ) -> None:
        """Have something done in a process."""
        self._world.loop.call_later(delay, callback, *args, context=process.context)

    def latency(self) -> float:
        """Return seconds: mostly some tenths of a millisecond, now and then several."""
        return 0.0002 + 0.004 * self._world.random.random() ** 4

    async def ask(self, server: Server, effect: Effect, timeout_s: float) -> Any:
        """Ask a server. Raises Refused, Reset, Silent, and whatever it answers with."""
        me = PROCESS.get()
        if me.dead:
            raise CancelledError
        world = self._world
        future: Future[Any] = world.loop.create_future()
        timer = world.loop.call_later(timeout_s, _settle, future, None, Silent())
        self._send(me, server, effect, future)
        try:
            return await future
        finally:
            timer.cancel()

    async def never(self) -> None:
        """Wait for what does not come."""
        await self._world.loop.create_future()

    def _send(self, me: Process, server: Server, effect: Effect, future: "Future[Any]") -> None:
        there, back, reset = self._fate(me, server)
        incarnation = server.incarnation
        self._asked += 1
        number = self._asked

        def arrive() -> None:
            if not server.up or server.incarnation != incarnation:
                error = Refused() if server.incarnation == incarnation or not server.up else Reset()
                self.later(self.latency(), me, _settle, future, None, error)
                return
            server.owed[number] = lambda: answer(None, Reset())
            effect(answer)

        def answer(value: Any = None, error: Exception | None = None) -> None:
            if server.owed.pop(number, None) is None and not isinstance(error, Reset):
                return  # it went down meanwhile, and has said so
            if back is not None:
                self.later(back, me, _settle, future, value, error)
            elif reset:
                self.later(self.latency(), me, _settle, future, None, Reset())

        if there is not None:
            self.later(there, server.process, arrive)
        elif reset:
            self.later(self.latency(), me, _settle, future, None, Reset())

    def _fate(self, me: Process, server: Server) -> tuple[float | None, float | None, bool]:
        """Draw how long it takes there and back (None: never arrives), and whether that is told."""
        troubles, draw = self.troubles, self._world.random.random
        if (me.name, server.name) in self.cut:
            self._world.count("parted")
            return None, None, draw() < 0.7
        if troubles is CALM:
            return self.latency(), self.latency(), False
        at = draw()
        for name, share in (
            ("lost_request", troubles.lost_request),
            ("lost_reply", troubles.lost_reply),
            ("reset_before", troubles.reset_before),
            ("reset_after", troubles.reset_after),
            ("delayed", troubles.delayed),
        ):
            if at < share:
                self._world.count(name)
                return self._troubled(name)
            at -= share
        return self.latency(), self.latency(), False

    def _troubled(self, name: str) -> tuple[float | None, float | None, bool]:
        reset = name.startswith("reset")
        if name in ("lost_request", "reset_before"):
            return None, None, reset
        if name in ("lost_reply", "reset_after"):
            return self.latency(), None, reset
        late = 8 * self._world.random.random() ** 2
        if self._world.random.random() < 0.5:
            return late, self.latency(), False
        return self.latency(), late, False


def _settle(future: "Future[Any]", value: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
