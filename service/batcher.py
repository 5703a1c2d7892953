"""Natural batching: whatever arrives while a call is in flight shares the next one.

Knows nothing of tickets or of Redis. One call at a time, no timer in its way: an idle service waits
for nothing, and under load one call serves many. What is bounded: the items of a call, the length
of the waiting room, and how long an item may wait before it is sent. A waiter that gives up does
not disturb its neighbours, and its effect may still have happened.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WaitingRoomFull(Exception):
    """More items wait than the bound allows; nothing was done."""


class Expired(Exception):
    """An item's deadline came before it was sent; nothing was done."""


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
        self._queue: deque[tuple[Item, asyncio.Future[Result], float]] = deque()
        self._shared: dict[Item, asyncio.Future[Result]] = {}
        self._runner: asyncio.Task[None] | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue an item and return the future of its result. Raises WaitingRoomFull."""
        if len(self._queue) >= self._waiting_max:
            raise WaitingRoomFull
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        deadline = loop.time() + self._deadline_s
        self._queue.append((item, future, deadline))
        if self._runner is None:
            self._runner = loop.create_task(self._run())
        if self._sweeper is None:
            self._sweeper = loop.call_at(deadline - self._send_before_s, self._sweep)
        return future

    def share(self, item: Item) -> asyncio.Future[Result]:
        """Submit, or join an equal item that was shared and has not been sent: one result for all.

        For items that change nothing. The future is nobody's to cancel. Raises WaitingRoomFull.
        """
        future = self._shared.get(item)
        if future is None or future.done():
            future = self._shared[item] = self.submit(item)
        return future

    @property
    def waiting(self) -> int:
        """How many items wait to be sent."""
        return len(self._queue)

    async def _run(self) -> None:
        """Send until nothing waits."""
        try:
            while batch := self._take():
                await self._send_one(batch)
        finally:
            self._runner = None

    async def _send_one(self, batch: list[tuple[Item, asyncio.Future[Result], float]]) -> None:
        """Send a batch; whatever becomes of it, its waiters hear of it."""
        try:
            results = await self._send([item for item, _, _ in batch], batch[0][2])
            if len(results) != len(batch):
                msg = f"{len(batch)} items were sent and {len(results)} results came back"
                raise RuntimeError(msg)
        except asyncio.CancelledError:
            self._fail(batch, RuntimeError("the call was cancelled"))
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except Exception as error:
            self._fail(batch, error)
        else:
            for (_, future, _), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result], float]]:
        batch: list[tuple[Item, asyncio.Future[Result], float]] = []
        while self._queue and len(batch) < self._items_max:
            entry = self._queue.popleft()
            if not entry[1].done():
                batch.append(entry)
            if self._shared:
                self._shared.pop(entry[0], None)
        return batch

    @staticmethod
    def _fail(
        batch: list[tuple[Item, asyncio.Future[Result], float]], error: BaseException
    ) -> None:
        for _, future, _ in batch:
            if not future.done():
                future.set_exception(error)

    def _sweep(self) -> None:
        """End the items at the head whose time is up; arm again for the next."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._queue:
            _, future, deadline = self._queue[0]
            if deadline - self._send_before_s > now:
                self._sweeper = loop.call_at(deadline - self._send_before_s, self._sweep)
                return
            self._queue.popleft()
            if not future.done():
                future.set_exception(Expired())
        self._sweeper = None
