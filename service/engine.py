"""Booking, cancelling, reading, opening: the domain, as the edge asks for it.

An event that Redis does not know is loaded from the record, and the script asked again; nothing is
ever answered from this worker's memory. What is about to be answered is noted for the third
witness.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from service.batcher import Expired, WaitingRoomFull
from service.errors import Problem
from service.keys import partition_of
from service.lanes import Booking, Bounds, Cancellation, EventState, Lanes, Missed, UserState
from service.ledger import UNAVAILABLE, LedgerPool
from service.lineage import Position
from service.loader import Loader
from service.metrics import Metrics
from service.partition import Partition

Result = TypeVar("Result")

_LOADS_MAX = 100
_DRAWS_MAX = 10


class Engine:
    """What the edge calls. Every method raises Problem and nothing else."""

    def __init__(
        self,
        partitions: Sequence[Partition],
        ledgers: LedgerPool,
        bounds: Bounds,
        metrics: Metrics,
        note: Callable[[int, Position], None],
    ) -> None:
        """Take the partitions in order, and the bounds of their lanes.

        `note` is told the partition and the position of every change that is answered.
        """
        self._partitions = partitions
        self._ledgers = ledgers
        self._deadline_s = bounds.deadline_s
        self._note = note
        self._lanes = [Lanes(partition, bounds, metrics) for partition in partitions]
        self._loaders = [Loader(partition, ledgers) for partition in partitions]

    def start(self) -> None:
        """Begin to open all partitions, in the background."""
        for partition in self._partitions:
            partition.start()

    async def stop(self) -> None:
        """End what runs in the background."""
        for loader in self._loaders:
            await loader.stop()
        for partition in self._partitions:
            await partition.stop()

    async def book(self, event_id: int, user_id: str) -> Booking:
        """Book one ticket, or join the waiting list; by event and user, any number of times."""
        lanes = self._of(event_id)
        booking = await self._known(event_id, lambda: lanes.book.submit((event_id, user_id)))
        self._answers(event_id, booking.at)
        return booking

    async def cancel(self, event_id: int, user_id: str) -> Cancellation:
        """Give the ticket back or leave the waiting list. Raises Problem `not_booked`."""
        lanes = self._of(event_id)
        done = await self._known(event_id, lambda: lanes.cancel.submit((event_id, user_id)))
        if done is None:
            raise Problem("not_booked")
        self._answers(event_id, done.at)
        return done

    async def event(self, event_id: int) -> EventState:
        """Read one event."""
        return (await self._look(event_id, ""))[0]

    async def user(self, event_id: int, user_id: str) -> UserState:
        """Read one user's state. Raises Problem `not_booked` for one who never asked."""
        state = (await self._look(event_id, user_id))[1]
        if state is None:
            raise Problem("not_booked")
        return state

    async def initialize(self, name: str, capacity: int) -> EventState:
        """Draw an event on record, then open it in Redis."""
        for _ in range(_DRAWS_MAX):
            try:
                async with asyncio.timeout(self._deadline_s), self._ledgers.acquire() as ledger:
                    event_id = await ledger.draw_event(name, capacity)
            except UNAVAILABLE as error:
                raise Problem("unavailable") from error
            submit = partial(self._of(event_id).open.submit, (event_id, name, capacity))
            opened = await _answered(submit)
            if opened is not None:
                self._answers(event_id, opened.at)
                return opened.event
        raise Problem("unavailable", "No id was free.")

    async def ready(self) -> None:
        """Ask every partition whether it serves. Raises Problem when one does not."""
        for partition in self._partitions:
            deadline = asyncio.get_running_loop().time() + 1.0
            await partition.ask("read", [partition.keys.meta], [0], deadline)

    def _answers(self, event_id: int, at: Position) -> None:
        """Note H, when there is an answer to give; a read that merely saw R is none."""
        self._note(partition_of(event_id, len(self._partitions)), at)

    def _of(self, event_id: int) -> Lanes:
        return self._lanes[partition_of(event_id, len(self._lanes))]

    async def _look(self, event_id: int, user_id: str) -> tuple[EventState, UserState | None]:
        lanes = self._of(event_id)
        return await self._known(event_id, lambda: lanes.read.submit((event_id, user_id)))

    async def _known(
        self, event_id: int, submit: Callable[[], asyncio.Future[Result | Missed]]
    ) -> Result:
        """Ask; load the event if Redis misses it; ask again."""
        loader = self._loaders[partition_of(event_id, len(self._loaders))]
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        for _ in range(_LOADS_MAX):
            result = await _answered(submit)
            if not isinstance(result, Missed):
                return result
            await loader.load(event_id, result.at, deadline)
        raise Problem("unavailable", "The event could not be loaded.")


async def _answered(submit: Callable[[], asyncio.Future[Result]]) -> Result:
    """Submit, and put the batcher's refusals in the edge's words."""
    try:
        return await submit()
    except WaitingRoomFull:
        raise Problem("overloaded") from None
    except Expired:
        raise Problem("unavailable") from None
