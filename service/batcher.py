"""Natural batching: whatever arrives while a call is in flight shares the next one.

Knows nothing of tickets or of Redis. One call at a time, no timer in its way: an idle service waits
for nothing, and under load one call serves many. What is bounded: the items of a call, the length
of the waiting room, and how long an item may wait before it is sent. A waiter that gives up does
not disturb its neighbours, and its effect may still have happened.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Receiver = Callable[[Result | Exception], None]
"""Is called with what became of an item, once, from the loop; it must not raise."""


class WaitingRoomFull(Exception):
    """More items wait than the bound allows; nothing was done."""


class Expired(Exception):
    """An item's deadline came before it was sent; nothing was done."""


class _Everybody(list[Receiver[Result]]):
    """All who share one item."""

    def __call__(self, result: Result | Exception) -> None:
        for receive in self:
            receive(result)


_Entry = tuple[Item, asyncio.Future[Result] | Receiver[Result], float]
"""An item, to whom its result goes, and its deadline."""


class Batcher(Generic[Item, Result]):
    """Collects items for `send(items, deadline)`, which returns one result per item in order.

    An exception among the results is raised for its item alone; one from `send` reaches all items
    of that call. Deadlines are of the loop's clock, in
    seconds; `send` is given the earliest of its items.
    """

    _send_before_s = 0.25
    """An item this close to its deadline is not sent: its call could not be answered in time."""

    def __init__(
        self,
        send: Callable[[list[Item], float], Awaitable[Sequence[Result | Exception]]],
        *,
        items_max: int,
        waiting_max: int,
        deadline_s: float,
    ) -> None:
        """Take the bounds; nothing runs until the first item comes."""
        self._send = send
        self._items_max = items_max
        self._waiting_max = waiting_max
        self._deadline_s = deadline_s
        self._queue: deque[_Entry[Item, Result]] = deque()
        self._shared: dict[Item, _Everybody[Result]] = {}
        # When the last call took its items, whether it left some, and how long such a call lasts.
        self._took_at, self._left_some, self._call_s = -math.inf, False, 0.0
        self._runner: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue an item and return the future of its result. Raises WaitingRoomFull."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._enqueue(item, future)
        return future

    def hand(self, item: Item, receive: Receiver[Result]) -> None:
        """Queue an item whose result `receive` is called with. Raises WaitingRoomFull.

        A future and its turn of the loop cost what the rest of a booking costs in this worker.
        """
        self._enqueue(item, receive)

    def share(self, item: Item, receive: Receiver[Result]) -> None:
        """Hand over an item, or join an equal one that was shared and has not been sent.

        For items that change nothing: one result for all. Raises WaitingRoomFull.
        """
        everybody = self._shared.get(item)
        if everybody is None:
            everybody = _Everybody()
            self._enqueue(item, everybody)
            self._shared[item] = everybody
        everybody.append(receive)

    def behind_s(self, now: float) -> float:
        """Return how long who comes now will wait for those before, 0 where the next call has room.

        `now` is of the loop's clock. Whoever fits waits for a store, not for too many others. How
        old the oldest is does not tell: at five times the speed, five times as many came since.
        """
        calls = len(self._queue) / self._items_max
        return calls * max(self._call_s, now - self._took_at) if calls > 1 else 0.0

    @property
    def waiting(self) -> int:
        """How many items wait to be sent."""
        return len(self._queue)

    def _enqueue(self, item: Item, receiver: asyncio.Future[Result] | Receiver[Result]) -> None:
        if len(self._queue) >= self._waiting_max:
            raise WaitingRoomFull
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._deadline_s
        self._queue.append((item, receiver, deadline))
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        if self._sweeper is None:
            self._sweeper = loop.call_at(deadline - self._send_before_s, self._sweep)

    async def _run(self) -> None:
        """Send until nothing waits; the next call leaves before the last one's results go out."""
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                results = await self._send_one(batch)
                if self._queue:
                    loop.call_soon(self._deliver, batch, results)
                else:
                    self._deliver(batch, results)
        finally:
            self._runner = None

    async def _send_one(self, batch: list[_Entry[Item, Result]]) -> Sequence[Result | Exception]:
        """Send a batch; return what each of its items hears."""
        try:
            results = await self._send([item for item, _, _ in batch], batch[0][2])
            if len(results) != len(batch):
                msg = f"{len(batch)} items were sent and {len(results)} results came back"
                raise RuntimeError(msg)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._deliver(batch, [RuntimeError("the call was cancelled")] * len(batch))
                raise
            return [RuntimeError("the call was cancelled")] * len(batch)
        except Exception as error:
            return [error] * len(batch)
        return results

    def _take(self) -> list[_Entry[Item, Result]]:
        batch: list[_Entry[Item, Result]] = []
        while self._queue and len(batch) < self._items_max:
            entry = self._queue.popleft()
            if not _gave_up(entry[1]):
                batch.append(entry)
            if self._shared:
                self._shared.pop(entry[0], None)
        if batch:
            self._note_taken()
        return batch

    def _note_taken(self) -> None:
        """Learn how long a call lasts, from two that follow each other without a pause."""
        now = asyncio.get_running_loop().time()
        if self._left_some:
            self._call_s += (now - self._took_at - self._call_s) / 4
        self._took_at, self._left_some = now, bool(self._queue)

    @staticmethod
    def _deliver(
        batch: Sequence[_Entry[Item, Result]], results: Sequence[Result | Exception]
    ) -> None:
        """Tell everybody; whatever one makes of it, the others hear theirs."""
        for (_, receiver, _), result in zip(batch, results, strict=True):
            if not isinstance(receiver, asyncio.Future):
                try:
                    receiver(result)
                except Exception as error:
                    about = {"message": "a result was not taken", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(about)
            elif not receiver.done():
                if isinstance(result, Exception):
                    receiver.set_exception(result)
                else:
                    receiver.set_result(result)

    def _sweep(self) -> None:
        """End the items at the head whose time is up; arm again for the next."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._queue:
            entry = self._queue[0]
            deadline = entry[2]
            if deadline - self._send_before_s > now:
                self._sweeper = loop.call_at(deadline - self._send_before_s, self._sweep)
                return
            self._queue.popleft()
            self._shared.pop(entry[0], None)
            self._deliver([entry], [Expired()])
        self._sweeper = None


def _gave_up(receiver: object) -> bool:
    """Whether nobody waits any more: who is called waits for ever."""
    return isinstance(receiver, asyncio.Future) and receiver.done()
