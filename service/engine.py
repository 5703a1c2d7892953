"""Booking, cancelling, reading, opening: the domain, and the only caller of the booking scripts.

Requests of a partition that arrive while a call is in flight share the next one; each answer is of
a call that was sent after its request came, never from this worker's memory. An event that Redis
does not know is loaded from the record, and the script asked again.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from service.batcher import Batcher, Expired, WaitingRoomFull
from service.errors import Problem
from service.keys import event_keys, partition_of
from service.ledger import UNAVAILABLE, LedgerPool
from service.lineage import Position
from service.loader import Loader
from service.partition import Partition, Reply

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOADS_MAX = 100
_DRAWS_MAX = 10


@dataclass(frozen=True, slots=True)
class Booking:
    """What `book` came to. `position` is 0 for a booking; `new` is False for one that stood."""

    status: str
    new: bool
    at: Position
    position: int


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What `cancel` came to. `reassigned`: a waiter got the ticket in the same step."""

    status: str
    at: Position
    reassigned: bool


@dataclass(frozen=True, slots=True)
class EventState:
    """An event as Redis holds it. Times in microseconds since 1970."""

    event_id: int
    name: str
    capacity: int
    available: int
    waiting: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class UserState:
    """A user's state for an event; `position` is 0 unless the user waits."""

    status: str
    seq: int
    position: int


@dataclass(frozen=True, slots=True)
class _Missed:
    """Redis did not know the event when its last change was this."""

    at: Position


@dataclass(frozen=True, slots=True)
class _Bounds:
    items_max: int
    waiting_max: int
    deadline_s: float


class _Lanes:
    """The batchers of one partition: one call in flight for each script."""

    def __init__(self, partition: Partition, loader: Loader, bounds: _Bounds) -> None:
        self._partition = partition
        self.loader = loader
        self.book = self._lane(self._book, bounds)
        self.cancel = self._lane(self._cancel, bounds)
        self.read = self._lane(self._read, bounds)
        self.open = self._lane(self._open, bounds)

    @staticmethod
    def _lane(
        send: Callable[[list[Item], float], Awaitable[Sequence[Result]]],
        bounds: _Bounds,
    ) -> Batcher[Item, Result]:
        return Batcher(
            send,
            items_max=bounds.items_max,
            waiting_max=bounds.waiting_max,
            deadline_s=bounds.deadline_s,
        )

    async def _book(self, items: list[tuple[int, str]], deadline: float) -> list[Booking | _Missed]:
        reply = await self._change("book", items, deadline)
        return [
            _Missed(reply.last)
            if outcome == "NO_EVENT"
            else Booking(
                status="booked" if outcome.endswith("BOOKED") else "waiting",
                new=not outcome.startswith("ALREADY"),
                at=Position(reply.last.epoch, int(seq)),
                position=int(position),
            )
            for outcome, seq, position in _stride(reply.words, 3)
        ]

    async def _cancel(
        self, items: list[tuple[int, str]], deadline: float
    ) -> list[Cancellation | _Missed | None]:
        reply = await self._change("cancel", items, deadline)
        statuses = {"CANCELLED": "cancelled", "LEFT": "left_waiting_list"}
        results: list[Cancellation | _Missed | None] = []
        for outcome, seq, promoted in _stride(reply.words, 3):
            if outcome == "NO_EVENT":
                results.append(_Missed(reply.last))
            elif outcome == "NOT_BOOKED":
                results.append(None)
            else:
                at = Position(reply.last.epoch, int(seq))
                results.append(Cancellation(statuses[outcome], at, promoted == "1"))
        return results

    async def _read(
        self, items: list[tuple[int, str]], deadline: float
    ) -> list[tuple[EventState, UserState | None] | _Missed]:
        keys, arguments = self._arguments(items)
        keys = [self._partition.keys.meta, *keys]
        reply = await self._partition.ask("read", keys, arguments, deadline)
        results: list[tuple[EventState, UserState | None] | _Missed] = []
        for (event_id, _), words in zip(items, _stride(reply.words, 10), strict=True):
            (
                outcome,
                capacity,
                available,
                waiting,
                created,
                updated,
                name,
                state,
                seq,
                at,
            ) = words
            if outcome == "NO_EVENT":
                results.append(_Missed(reply.last))
                continue
            event = EventState(
                event_id, name, int(capacity), int(available), int(waiting), int(created),
                int(updated),
            )  # fmt: skip
            results.append((event, UserState(state, int(seq), int(at)) if state else None))
        return results

    async def _open(
        self, items: list[tuple[int, str, int]], deadline: float
    ) -> list[EventState | None]:
        keys: list[str] = [*self._partition.keys]
        ids: list[str | int] = []
        arguments: list[str | int] = []
        for place, (event_id, name, capacity) in enumerate(items, start=1):
            keys += event_keys(self._partition.number, event_id)
            ids.append(event_id)
            details = json.dumps({"name": name, "totalTickets": capacity}, separators=(",", ":"))
            arguments += (place, capacity, name, details)
        reply = await self._partition.change(
            "open_event", keys, [len(ids), *ids, *arguments], deadline
        )
        return [
            EventState(event_id, name, capacity, capacity, 0, int(created_at), int(created_at))
            if outcome == "OPENED"
            else None
            for (event_id, name, capacity), (outcome, _, created_at) in zip(
                items, _stride(reply.words, 3), strict=True
            )
        ]

    async def _change(self, script: str, items: list[tuple[int, str]], deadline: float) -> Reply:
        keys, arguments = self._arguments(items)
        keys = [*self._partition.keys, *keys]
        return await self._partition.change(script, keys, arguments, deadline)

    def _arguments(self, items: list[tuple[int, str]]) -> tuple[list[str], list[str | int]]:
        """Return the events' keys, and event count, event ids, and the place and user per item."""
        keys: list[str] = []
        places: dict[int, int] = {}
        pairs: list[str | int] = []
        for event_id, user_id in items:
            place = places.get(event_id)
            if place is None:
                place = places[event_id] = len(places) + 1
                keys += event_keys(self._partition.number, event_id)
            pairs += (place, user_id)
        return keys, [len(places), *places, *pairs]


class Engine:
    """What the edge calls. Every method raises Problem and nothing else."""

    def __init__(
        self,
        partitions: Sequence[Partition],
        ledgers: LedgerPool,
        *,
        items_max: int,
        waiting_max: int,
        deadline_s: float,
    ) -> None:
        """Take the partitions in order, and the bounds of their batchers."""
        self._partitions = partitions
        self._ledgers = ledgers
        self._deadline_s = deadline_s
        bounds = _Bounds(items_max, waiting_max, deadline_s)
        self._lanes = [_Lanes(p, Loader(p, ledgers), bounds) for p in partitions]

    def start(self) -> None:
        """Begin to open all partitions, in the background."""
        for partition in self._partitions:
            partition.start()

    async def stop(self) -> None:
        """End what runs in the background."""
        for lanes, partition in zip(self._lanes, self._partitions, strict=True):
            await lanes.loader.stop()
            await partition.stop()

    async def book(self, event_id: int, user_id: str) -> Booking:
        """Book one ticket, or join the waiting list; by event and user, any number of times."""
        lanes = self._of(event_id)
        return await self._known(lanes, event_id, lambda: lanes.book.submit((event_id, user_id)))

    async def cancel(self, event_id: int, user_id: str) -> Cancellation:
        """Give the ticket back or leave the waiting list. Raises Problem `not_booked`."""
        lanes = self._of(event_id)
        done = await self._known(lanes, event_id, lambda: lanes.cancel.submit((event_id, user_id)))
        if done is None:
            raise Problem("not_booked")
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
                async with self._ledgers.acquire() as ledger:
                    event_id = await ledger.draw_event(name, capacity)
            except UNAVAILABLE as error:
                raise Problem("unavailable") from error
            submit = partial(self._of(event_id).open.submit, (event_id, name, capacity))
            opened = await _answered(submit)
            if opened is not None:
                return opened
        raise Problem("unavailable", "No id was free.")

    async def ready(self) -> None:
        """Ask every partition whether it serves. Raises Problem when one does not."""
        deadline = asyncio.get_running_loop().time() + 1.0
        for partition in self._partitions:
            await partition.ask("read", [partition.keys.meta], [0], deadline)

    def _of(self, event_id: int) -> _Lanes:
        return self._lanes[partition_of(event_id, len(self._lanes))]

    async def _look(self, event_id: int, user_id: str) -> tuple[EventState, UserState | None]:
        lanes = self._of(event_id)
        return await self._known(lanes, event_id, lambda: lanes.read.submit((event_id, user_id)))

    async def _known(
        self,
        lanes: _Lanes,
        event_id: int,
        submit: Callable[[], asyncio.Future[Result | _Missed]],
    ) -> Result:
        """Ask; load the event if Redis misses it; ask again."""
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        for _ in range(_LOADS_MAX):
            result = await _answered(submit)
            if not isinstance(result, _Missed):
                return result
            await lanes.loader.load(event_id, result.at, deadline)
        raise Problem("unavailable", "The event could not be loaded.")


async def _answered(submit: Callable[[], asyncio.Future[Result]]) -> Result:
    """Submit, and put the batcher's refusals in the edge's words."""
    try:
        return await submit()
    except WaitingRoomFull:
        raise Problem("overloaded") from None
    except Expired:
        raise Problem("unavailable") from None


def _stride(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """Cut a flat reply into items of a fixed number of words."""
    return list(zip(*(iter(words),) * length, strict=True))
