"""The event loop of a simulation: virtual time, several processes, an order drawn from a seed.

It owns time and order. No socket, no thread, no clock of the machine. Time stands still while
anybody can run, then jumps to the next timer. Within a process callbacks run in the order in which
they were asked for, as asyncio promises; between processes a seeded generator draws whose turn it
is. A process that is frozen keeps what it has to do, its timers too, until it is thawed.
"""

import asyncio
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVar

Result = TypeVar("Result")

START = 1_000.0
"""Seconds, of the loop's clock."""


class Process:
    """What is killed and frozen as a whole. Every task belongs to the one that started it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self.ready: deque[Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self.context: Context = copy_context()
        self.context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return self.name


PROCESS: ContextVar[Process] = ContextVar("PROCESS")
"""The process that is running."""


class Handle:
    """A callback, and whose it is."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "process", "time")

    def __init__(
        self,
        time: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context,
        process: Process,
    ) -> None:
        self.time = time
        self.callback = callback
        self.args = args
        self.context = context
        self.process = process
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.time


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Runs what is ready; `steps` counts callbacks."""

    def __init__(self, random: Random) -> None:
        self.steps = 0
        self.world = Process("world")
        self.troubles: list[str] = []
        self.hear: Callable[..., None] | None = None
        self._random = random
        self._now = START
        self._timers: list[tuple[float, int, Handle]] = []
        self._order = 0
        self._runnable: list[Process] = []
        self._with_tasks: dict[Process, None] = {}

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Result] | Generator[Any, None, Result],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[Result]:
        process = PROCESS.get(self.world) if context is None else context[PROCESS]
        task = asyncio.Task(coro, loop=self, name=name or process.name, context=context)
        process.tasks.append(task)
        self._with_tasks[process] = None
        task.add_done_callback(process.tasks.remove, context=self.world.context)
        return task

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        context = copy_context() if context is None else context
        process = context.get(PROCESS, self.world)
        handle = Handle(0.0, callback, args, context, process)
        self._make_ready(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        context = copy_context() if context is None else context
        handle = Handle(when, callback, args, context, context.get(PROCESS, self.world))
        self._order += 1
        heappush(self._timers, (when, self._order, handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Handle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.troubles.append(f"{context.get('message')}: {error!r}")

    # What a world asks of it.

    def processes(self) -> list[Process]:
        """Return those that have begun a task."""
        return list(self._with_tasks)

    def token(self) -> str:
        """Return a text that nobody else has."""
        return f"{self._random.getrandbits(64):016x}"

    def start(self, process: Process, coro: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Begin a task of a process."""
        return self.create_task(coro, context=process.context.copy())

    def freeze(self, process: Process) -> None:
        """Have a process run nothing any more, until it is thawed."""
        if not process.frozen and process.ready:
            self._runnable.remove(process)
        process.frozen = True

    def thaw(self, process: Process) -> None:
        """Have a process go on from where it was."""
        if process.frozen and process.ready:
            self._runnable.append(process)
        process.frozen = False

    def kill(self, process: Process) -> None:
        """End a process. Its tasks unwind, and reach nobody any more: see `Network`."""
        process.dead = True
        self.thaw(process)
        for task in list(process.tasks):
            task.cancel()

    def run(self, until: Callable[[], bool], *, steps_max: int) -> bool:
        """Run until something is so; False where it does not come to it in so many steps."""
        events._set_running_loop(self)
        try:
            last = self.steps + steps_max
            while not until():
                while not self._runnable:
                    if not self._advance():
                        return False
                if self.steps >= last:
                    return False
                self._run_one()
            return True
        finally:
            events._set_running_loop(None)

    def _run_one(self) -> None:
        runnable = self._runnable
        at = int(self._random.random() * len(runnable)) if len(runnable) > 1 else 0
        process = runnable[at]
        handle = process.ready.popleft()
        if not process.ready:
            runnable[at] = runnable[-1]
            runnable.pop()
        if handle.is_cancelled:
            return
        self.steps += 1
        handle.context.run(handle.callback, *handle.args)

    def _advance(self) -> bool:
        """Jump to the next timer; False where there is none."""
        timers = self._timers
        while timers and timers[0][2].is_cancelled:
            heappop(timers)
        if not timers:
            return False
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            handle = heappop(timers)[2]
            if not handle.is_cancelled:
                self._make_ready(handle)
        return True

    def _make_ready(self, handle: Handle) -> None:
        process = handle.process
        if not process.ready and not process.frozen:
            self._runnable.append(process)
        process.ready.append(handle)
