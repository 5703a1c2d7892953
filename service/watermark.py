"""Who waits until a change is on record, and what wakes them (PROTOCOL, rule 21).

`meta` alone is believed, as it is read by one look for all who wait: every 20 ms, and at once when
a message says that a watermark has risen. Invariant: a change counts as recorded only by a look
that found its partition open in the change's own epoch, with the watermark at or above its seq. An
epoch that has ended answers all its waiters at once: not known to be on record. Nobody waits beyond
a deadline, and not more than so many at a time.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial
from heapq import heapify, heappop, heappush

from redis.exceptions import RedisError

from service.failures import Failures
from service.lineage import NOWHERE, Position
from service.metrics import Metrics
from service.redis_store import RedisStore
from service.wakeups import Wakeups

_LOOK_EVERY_S = 0.02
_LOOK_S = 1.0
_PAUSE_S = 0.05
_PAUSE_MAX_S = 2.0
_GONE_MAX = 64
_ALL = -1
"""In place of a partition: one subscription is for all."""


class Waiter:
    """One who waits until a change is on record. Hears of it once, or gives up before."""

    __slots__ = ("_receive", "began", "deadline")

    def __init__(self, receive: Callable[[bool], None], began: float, deadline: float) -> None:
        """`receive` must not raise. Times are of the loop's clock."""
        self._receive: Callable[[bool], None] | None = receive
        self.began = began
        self.deadline = deadline

    @property
    def waits(self) -> bool:
        """Whether there is somebody to be told yet."""
        return self._receive is not None

    def give_up(self) -> bool:
        """Be told nothing from here on; returns whether somebody waited until now."""
        waited, self._receive = self.waits, None
        return waited

    def tell(self, *, recorded: bool) -> None:
        """Tell whoever waits."""
        receive, self._receive = self._receive, None
        if receive is not None:
            receive(recorded)


class Watermark:
    """The waiters of one partition, all of one epoch, ordered by seq."""

    def __init__(
        self, number: int, redis: RedisStore, *, waiting_max: int, metrics: Metrics
    ) -> None:
        """Take the bound; nothing runs while nobody waits."""
        self._number = number
        self._redis = redis
        self._waiting_max = waiting_max
        self._failures = Failures(metrics.failed_steps)
        self._gauge = metrics.recorded_waiters
        self._durations = metrics.recorded_wait_durations
        self._shown = 0
        self._newest = NOWHERE
        self._seen = 0
        self._heap: list[tuple[int, int, Waiter]] = []
        self._waiting = 0
        self._order = itertools.count()
        self._risen = asyncio.Event()
        self._looker: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweeps_at = 0.0

    def wait(self, at: Position, waiter: Waiter) -> None:
        """Tell a waiter when a position is on record, or that this is not known in time.

        `at` is a seq that this partition holds or held in that epoch. At once when the epoch has
        ended, and when too many wait.
        """
        if at.epoch > self._newest.epoch:
            self._end()
        if at.epoch < self._newest.epoch or self._waiting >= self._waiting_max:
            self._waiting += 1
            self._tell(waiter, recorded=False)
            return
        self._newest = max(self._newest, at)
        heappush(self._heap, (at.seq, next(self._order), waiter))
        self._waiting += 1
        if at.seq <= self._seen:
            self._risen.set()  # it was there already: the next look will do, without the pause
        if self._looker is None:
            self._looker = asyncio.get_running_loop().create_task(self._look_on())
        if self._sweeper is None or waiter.deadline < self._sweeps_at:
            self._sweep_at(waiter.deadline)

    def leave(self, waiter: Waiter) -> None:
        """Forget one who gives up."""
        if not waiter.give_up():
            return
        self._waiting -= 1
        if len(self._heap) > 2 * self._waiting + _GONE_MAX:
            # Who gave up would stay for as long as the watermark stands still.
            self._heap = [entry for entry in self._heap if entry[2].waits]
            heapify(self._heap)

    def _tell(self, waiter: Waiter, *, recorded: bool) -> None:
        """Tell one who waits how it came out."""
        self._waiting -= 1
        waited = asyncio.get_running_loop().time() - waiter.began
        self._durations.note(("recorded" if recorded else "pending",), waited)
        waiter.tell(recorded=recorded)

    def _sweep_at(self, deadline: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweeps_at = deadline
        self._sweeper = asyncio.get_running_loop().call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        """Tell those whose time is up. A walk through all, but as seldom as one may wait."""
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        waiting = [entry for entry in self._heap if entry[2].waits]
        self._heap = [entry for entry in waiting if entry[2].deadline > now]
        heapify(self._heap)
        if self._heap:
            self._sweep_at(min(waiter.deadline for _, _, waiter in self._heap))
        for _, _, waiter in waiting:
            if waiter.deadline <= now:
                self._tell(waiter, recorded=False)

    def look(self) -> None:
        """Look at once, if anybody waits."""
        self._risen.set()

    async def stop(self) -> None:
        """End what runs, and answer who waits still."""
        if self._looker is not None:
            self._looker.cancel()
            await asyncio.gather(self._looker, return_exceptions=True)
        self._end()

    async def _look_on(self) -> None:
        """Look as long as anybody waits."""
        try:
            while self._waiting:
                self._show()
                self._risen.clear()
                try:
                    await self._look()
                except (RedisError, OSError, TimeoutError, ValueError) as error:
                    self._failures.failed("look", self._number, error or type(error).__name__)
                else:
                    self._failures.succeeded("look", self._number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._risen.wait()
        finally:
            self._looker = None
            self._show()

    def _show(self) -> None:
        """Tell the gauge once a look: it costs 4 µs each time."""
        self._gauge.inc(self._waiting - self._shown)
        self._shown = self._waiting

    async def _look(self) -> None:
        """Read `meta` once. What fails is tried again: the waiters' deadlines bound it."""
        asked = self._newest
        async with asyncio.timeout(_LOOK_S):
            meta = await self._redis.meta(self._number)
        if self._newest.epoch != asked.epoch:
            return  # who came meanwhile is of a later epoch than this look may have seen
        if meta is None or not meta.open or meta.epoch != asked.epoch or meta.seq < asked.seq:
            # A partition is closed for a new epoch only, and one whose R lies below a change that
            # was answered went back in time.
            self._end()
            return
        # The watermark's own epoch may be an earlier one, right after a handshake. It is on the
        # lineage of the epoch that is open, as every seq is that Redis holds in it, so the two can
        # be compared; a change of this epoch lies above all that earlier ones have on record.
        self._seen = meta.recorded.seq
        while self._heap and self._heap[0][0] <= self._seen:
            waiter = heappop(self._heap)[2]
            if waiter.waits:
                self._tell(waiter, recorded=True)

    def _end(self) -> None:
        """Answer all: the epoch has ended, and whether they are on record is not known here."""
        told, self._heap = self._heap, []
        self._newest = Position(self._newest.epoch, 0)
        self._seen = 0
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for _, _, waiter in told:
            if waiter.waits:
                self._tell(waiter, recorded=False)


class Watermarks:
    """The watermarks of all partitions, as one worker waits for them."""

    def __init__(
        self,
        redis: RedisStore,
        wakeups: Wakeups,
        partitions: int,
        *,
        waiting_max: int,
        metrics: Metrics,
    ) -> None:
        """`waiting_max`: waiters of each partition. Nothing is connected before the first."""
        self._wakeups = wakeups
        self._metrics = metrics
        self._failures = Failures(metrics.failed_steps)
        self._of: Sequence[Watermark] = [
            Watermark(number, redis, waiting_max=waiting_max, metrics=metrics)
            for number in range(partitions)
        ]
        self._listener: asyncio.Task[None] | None = None
        for outcome in ("recorded", "pending"):
            metrics.recorded_waits.labels(outcome)

    async def reached(self, partition: int, at: Position, deadline: float) -> bool:
        """Wait until a partition's position is on record; False when that is not known in time.

        May be cancelled, and asked again.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiter = self.hand(partition, at, deadline, partial(_settle, future))
        try:
            return await future
        finally:
            self._of[partition].leave(waiter)

    def hand(
        self, partition: int, at: Position, deadline: float, receive: Callable[[bool], None]
    ) -> Waiter:
        """Have `receive` called with the same, once, maybe at once; without a task.

        `deadline` is of the loop's clock, in seconds.
        """
        loop = asyncio.get_running_loop()
        if self._listener is None:
            self._listener = loop.create_task(self._listen())
        waiter = Waiter(receive, loop.time(), deadline)
        self._of[partition].wait(at, waiter)
        return waiter

    async def stop(self) -> None:
        """End what runs, and answer who waits still."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        for watermark in self._of:
            await watermark.stop()
        await self._wakeups.aclose()

    async def _listen(self) -> None:
        """Pass the messages on, from the first waiter on. While there are none, looks must do."""
        loop = asyncio.get_running_loop()
        pause = _PAUSE_S
        while True:
            began = loop.time()
            try:
                async with aclosing(self._wakeups.listen()) as risen:
                    async for partition in risen:
                        self._failures.succeeded("wakeup", _ALL)
                        self._of[partition].look()
            except (RedisError, OSError) as error:
                # Watermarks are looked at all the same, only later.
                self._failures.failed("wakeup", _ALL, error)
            lasted = loop.time() - began
            pause = _PAUSE_S if lasted > _PAUSE_MAX_S else min(2 * pause, _PAUSE_MAX_S)
            await asyncio.sleep(pause)


def _settle(future: asyncio.Future[bool], recorded: bool) -> None:
    if not future.done():
        future.set_result(recorded)
