"""Booking, cancelling, reading, opening: the domain, as the edge asks for it.

An event that Redis does not know is loaded from the record, and the script asked again; nothing is
ever answered from this worker's memory. Where an answer waits for the record, what it promises is
what was reached in the request's time, never what was asked for.
What was answered is noted for the third witness.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from service.admission import BOOK, CANCEL, READ, Admission
from service.batcher import Receiver, WaitingRoomFull
from service.errors import Problem
from service.keys import partition_of
from service.lanes import Asked, Bounds, Lanes, answered
from service.ledger import UNAVAILABLE, LedgerPool
from service.lineage import Position
from service.loader import Loader
from service.metrics import Metrics
from service.partition import Partition
from service.results import (
    Booking,
    Cancellation,
    EventState,
    IdTaken,
    Missed,
    OpenedEvent,
    Reached,
    UserState,
)
from service.settings import Durability
from service.suspension import Suspension
from service.vouching import Vouching
from service.watermark import Watermarks

Result = TypeVar("Result")
Given = TypeVar("Given", Booking, Cancellation, OpenedEvent)

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
        watermarks: Watermarks,
        durability: Durability,
        note: Callable[[int, Position], None],
        admission: Admission,
        suspension: Suspension | None = None,
    ) -> None:
        """Take the partitions in order, and the bounds of their lanes.

        `durability` is the least that an answer to a change waits for.
        `note` is told the partition and the position of every change that is answered.
        `admission` is asked before anything is submitted. While `suspension` has a reason, no
        answer names a level.
        """
        self._suspension = suspension or Suspension()
        self._partitions = partitions
        self._ledgers = ledgers
        self._watermarks = watermarks
        self._durability = durability
        self._deadline_s = bounds.deadline_s
        self._note, self.admission = note, admission
        self._lanes = [Lanes(partition, bounds, metrics) for partition in partitions]
        for lanes in self._lanes:
            admission.watch(lanes.read, lanes.book, lanes.cancel)
        self._loaders = [Loader(partition, ledgers) for partition in partitions]
        self._vouching = [
            Vouching(
                partition.number,
                ledgers,
                waiting_max=bounds.waiting_max,
                deadline_s=bounds.deadline_s,
            )
            for partition in partitions
        ]

    def start(self) -> None:
        """Begin to open all partitions, in the background."""
        for partition in self._partitions:
            partition.start()

    async def stop(self) -> None:
        """End what runs in the background."""
        await self._watermarks.stop()
        for loader in self._loaders:
            await loader.stop()
        for partition in self._partitions:
            await partition.stop()

    async def book(
        self, event_id: int, user_id: str, *, keyed: str = "", prefer: str = ""
    ) -> Booking:
        """Book one ticket, or join the waiting list; by event and user, any number of times.

        `keyed`: `<key>/<digest>` of a request that has an Idempotency-Key. `prefer` is the
        durability that this one answer should wait for, where that is more.
        """
        deadline, asked = self.deadline(), Asked(event_id, user_id, self.awaits(prefer), keyed)
        booking = await self._known(event_id, lambda: self._for(BOOK, event_id).book.submit(asked))
        return await self._given(event_id, booking, deadline, awaited=asked.awaited)

    async def cancel(
        self, event_id: int, user_id: str, *, keyed: str = "", prefer: str = ""
    ) -> Cancellation:
        """Give the ticket back or leave the waiting list. Raises Problem `not_booked`."""
        deadline, asked = self.deadline(), Asked(event_id, user_id, self.awaits(prefer), keyed)
        done = await self._known(event_id, lambda: self._for(CANCEL, event_id).cancel.submit(asked))
        if done is None:
            raise Problem("not_booked")
        return await self._given(event_id, done, deadline, awaited=asked.awaited)

    def submit_book(
        self, event_id: int, user_id: str, receive: Receiver[Booking | Missed], *, awaited: bool
    ) -> None:
        """Book: the first half of `book`, for who goes on alone.

        A result that is `Missed` did nothing, and is for `book`; any other is for `given`, or, if
        the answer is `awaited`, for `submit_recorded`. Raises WaitingRoomFull; `receive` may get a
        Problem, or Expired.
        """
        self._for(BOOK, event_id).book.hand(Asked(event_id, user_id, awaited), receive)

    def submit_cancel(
        self,
        event_id: int,
        user_id: str,
        receive: Receiver[Cancellation | Missed | None],
        *,
        awaited: bool,
    ) -> None:
        """Cancel likewise; None is `not_booked`."""
        self._for(CANCEL, event_id).cancel.hand(Asked(event_id, user_id, awaited), receive)

    def submit_look(
        self,
        event_id: int,
        user_id: str,
        receive: Receiver[tuple[EventState, UserState | None] | Missed],
    ) -> None:
        """Read an event, and a user's state where one is named.

        Whoever asks the same before it is sent shares the result. `Missed` is for `event` and
        `user`; a user's position is for `given`. Raises as `submit_book`.
        """
        self._for(READ, event_id).read.share((event_id, user_id), receive)

    def submit_recorded(
        self,
        event_id: int,
        change: Booking | Cancellation,
        deadline: float,
        receive: Callable[[Reached], None],
    ) -> "asyncio.Task[None] | None":
        """Have `receive` told how far a change reaches by a deadline: `recorded` or `none`.

        The second half of `book` and `cancel` where they wait for the record. Whoever asks keeps
        the task, if there is one: PostgreSQL has to be asked about a change that stood before.
        """
        number = partition_of(event_id, len(self._partitions))
        if not change.is_fresh:
            telling = self._tell_of_old(number, change.at, deadline, receive)
            return asyncio.get_running_loop().create_task(telling)

        def tell(recorded: bool) -> None:
            receive(self._claim(number, change.at, "recorded" if recorded else "none"))

        self._watermarks.hand(number, change.at, deadline, tell)
        return None

    async def _tell_of_old(
        self, number: int, at: Position, deadline: float, receive: Callable[[Reached], None]
    ) -> None:
        receive(await self._recorded(number, at, deadline, is_fresh=False))

    def given(self, event_id: int, at: Position) -> Reached:
        """Note a change as answered (H); return how far it reaches without having been awaited."""
        return self._claim(partition_of(event_id, len(self._partitions)), at, self._least())

    async def event(self, event_id: int) -> EventState:
        """Read one event."""
        return (await self._look(event_id, ""))[0]

    async def user(self, event_id: int, user_id: str, prefer: str = "") -> UserState:
        """Read one user's state. Raises Problem `not_booked` for one who never asked.

        Whether it is on record is looked into where `prefer` or the deployment wants to know.
        """
        deadline = self.deadline()
        number = partition_of(event_id, len(self._partitions))
        state = (await self._look(event_id, user_id))[1]
        if state is None:
            raise Problem("not_booked")
        reached = self._least()
        if self.awaits(prefer) and state.recorded:
            on_record = await self._vouching[number].on_record(state.at, deadline)
            reached = "recorded" if on_record else reached
        # Who was told pending, or nothing at all, hears here what the request came to.
        return state.reaching(self._claim(number, state.at, reached))

    async def initialize(self, name: str, capacity: int, prefer: str = "") -> OpenedEvent:
        """Draw an event on record, then open it in Redis."""
        if self.admission.refuses(BOOK):
            raise Problem("overloaded")
        deadline, awaited = self.deadline(), self.awaits(prefer)
        above = 0
        # Each partition may know of greater ids than those before.
        for _ in range(len(self._partitions) + _DRAWS_MAX):
            try:
                async with asyncio.timeout(self._deadline_s), self._ledgers.acquire() as ledger:
                    event_id = await ledger.draw_event(name, capacity, above)
            except UNAVAILABLE as error:
                raise Problem("unavailable") from error
            lanes = self._lanes[partition_of(event_id, len(self._lanes))]
            submit = partial(lanes.open.submit, (event_id, name, capacity, awaited))
            opened = await answered(submit)
            if not isinstance(opened, IdTaken):
                return await self._given(event_id, opened, deadline, awaited=awaited)
            above = max(above, opened.newest)
        raise Problem("unavailable", "No id was free.")

    def _for(self, kind: int, event_id: int) -> Lanes:
        """Return an event's lanes to whom they are open. Raises WaitingRoomFull."""
        number = partition_of(event_id, len(self._lanes))
        if self.admission.refuses_at(kind, number):
            raise WaitingRoomFull
        return self._lanes[number]

    def deadline(self) -> float:
        """Return when a request that comes now has to be answered, of the loop's clock."""
        return asyncio.get_running_loop().time() + self._deadline_s

    def _least(self) -> Reached:
        """Return what Redis alone makes of a change."""
        return "none" if self._durability == "recorded" else self._durability

    def awaits(self, prefer: str) -> bool:
        """Whether an answer waits for the record."""
        return "recorded" in (prefer, self._durability)

    async def _given(
        self, event_id: int, answer: Given, deadline: float, *, awaited: bool
    ) -> Given:
        """Say how far an answer reaches: the one way out for whatever names a change's position.

        What is promised is noted as answered (H), not what is pending. Raises nothing any more,
        since the change has been made.
        """
        number = partition_of(event_id, len(self._partitions))
        if awaited:
            reached = await self._recorded(number, answer.at, deadline, is_fresh=answer.is_fresh)
        else:
            reached = self._claim(number, answer.at, self._least())
        return answer if answer.durability == reached else answer.reaching(reached)

    async def _recorded(
        self, number: int, at: Position, deadline: float, *, is_fresh: bool
    ) -> Reached:
        """Wait for the record, and note what is on it as answered."""
        recorded = await self._watermarks.reached(number, at, deadline)
        if recorded and not is_fresh:
            recorded = await self._vouching[number].on_record(at, deadline)
        return self._claim(number, at, "recorded" if recorded else "none")

    def _claim(self, number: int, at: Position, reached: Reached) -> Reached:
        """Return how far an answer may say that a change reaches; note what it promises (H).

        The one place where that is decided: while a store cannot keep the promise, it is none.
        """
        suspension = self._suspension
        if reached == "none" or suspension.why:
            return "none"
        suspension.answered += 1
        if reached == "recorded":
            suspension.recorded += 1
        self._note(number, at)
        return reached

    async def _look(self, event_id: int, user_id: str) -> tuple[EventState, UserState | None]:
        asked = (event_id, user_id)
        return await self._known(event_id, lambda: self._for(READ, event_id).read.submit(asked))

    async def _known(
        self, event_id: int, submit: Callable[[], asyncio.Future[Result | Missed]]
    ) -> Result:
        """Ask; load the event if Redis misses it; ask again."""
        loader = self._loaders[partition_of(event_id, len(self._loaders))]
        deadline = self.deadline()
        for _ in range(_LOADS_MAX):
            result = await answered(submit)
            if not isinstance(result, Missed):
                return result
            await loader.load(event_id, result.at, deadline)
        raise Problem("unavailable", "The event could not be loaded.")
