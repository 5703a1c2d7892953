"""The calls of the booking scripts: what each takes, and what its words mean.

One lane per script and partition, with one call in flight. Whoever arrives meanwhile shares the
next call, so that each answer is of a call that was sent after its request came.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, TypeVar

from service.batcher import Batcher, Expired, WaitingRoomFull
from service.errors import Problem
from service.keys import event_keys, events_key
from service.lineage import Position
from service.metrics import Metrics
from service.partition import Partition, Reply
from service.results import (
    Booking,
    Cancellation,
    EventState,
    IdTaken,
    Missed,
    OpenedEvent,
    UserState,
    then_and_now,
    undone,
)
from service.room import UnrecordedBounds

_NOTHING_NEW = ("replayed", "key_reused", "record_behind", "no_event", "frozen")
_OUTCOMES = {
    "book": ("booked", "waiting", "already_booked", "already_waiting", *_NOTHING_NEW),
    "cancel": ("cancelled", "left", "not_booked", *_NOTHING_NEW),
    "open_event": ("opened", "record_behind", "exists"),
}
"""What is counted from the start, at zero: an alarm on a rate needs a first value."""

_STANDS = {
    "BOOKED": ("booked", True),
    "WAITING": ("waiting", True),
    "ALREADY_BOOKED": ("booked", False),
    "ALREADY_WAITING": ("waiting", False),
}
"""The status after what `book` did or found, and whether it is new."""

_GONE = {"CANCELLED": "cancelled", "LEFT": "left_waiting_list"}
"""The status after what `cancel` did."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Asked(NamedTuple):
    """What a changing script is asked for. `awaited`: its answer waits for the record.

    `keyed`: `<key>/<digest>` of a request that has an Idempotency-Key, else empty.
    """

    event_id: int
    user_id: str
    awaited: bool
    keyed: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Items per call, items that may wait per script, seconds that one may wait.

    `unrecorded`: how many changes of a partition may be off the record.
    """

    items_max: int
    waiting_max: int
    deadline_s: float
    unrecorded: UnrecordedBounds


class Lanes:
    """The batchers of one partition: one call in flight for each script."""

    def __init__(self, partition: Partition, bounds: Bounds, metrics: Metrics) -> None:
        self._partition = partition
        self._metrics = metrics
        self._unrecorded_max = {
            "book": bounds.unrecorded.changes_max,
            "open_event": bounds.unrecorded.changes_max,
            "cancel": bounds.unrecorded.cancel_changes_max,
        }
        for operation, changes in self._unrecorded_max.items():
            metrics.unrecorded_max.labels(operation).set(changes)
        for operation, outcomes in _OUTCOMES.items():
            for outcome in outcomes:
                metrics.outcomes.labels(operation, outcome)
        self.book: Batcher[Asked, Booking | Missed] = self._lane("book", self._book, bounds)
        self.cancel: Batcher[Asked, Cancellation | Missed | None] = self._lane(
            "cancel", self._cancel, bounds
        )
        self.read: Batcher[tuple[int, str], tuple[EventState, UserState | None] | Missed] = (
            self._lane("read", self._read, bounds)
        )
        self.open: Batcher[tuple[int, str, int, bool], OpenedEvent | IdTaken] = self._lane(
            "open_event", self._open, bounds
        )

    def _lane(
        self,
        script: str,
        send: Callable[[list[Item], float], Awaitable[Sequence[Result | Problem]]],
        bounds: Bounds,
    ) -> Batcher[Item, Result]:
        sizes, durations = self._metrics.batch_sizes, self._metrics.call_durations
        for family in (self._metrics.batch_items, self._metrics.calls):
            family.labels(script)
        waiting_room = self._metrics.waiting_room.labels(script)
        waiting_room.set(0)

        async def send_measured(items: list[Item], deadline: float) -> Sequence[Result | Problem]:
            sizes.note((script,), len(items))
            waiting_room.set(lane.waiting)
            began = perf_counter()
            try:
                return await send(items, deadline)
            finally:
                durations.note((script,), perf_counter() - began)

        lane = Batcher(
            send_measured,
            items_max=bounds.items_max,
            waiting_max=bounds.waiting_max,
            deadline_s=bounds.deadline_s,
        )
        return lane

    async def _book(self, items: list[Asked], deadline: float) -> list[Booking | Missed | Problem]:
        reply = await self._change("book", items, deadline)
        outcomes = reply.words[::3]
        self._count("book", outcomes)
        if "BOOKED" in outcomes or "WAITING" in outcomes:
            self._partition.booked_at = asyncio.get_running_loop().time()
        results: list[Booking | Missed | Problem] = []
        for outcome, seq, beside in _stride(reply.words, 3):
            if stands := _STANDS.get(outcome):
                at = Position(reply.last.epoch, int(seq))
                results.append(Booking(*stands, at, int(beside)))
            elif outcome == "REPLAYED":
                at = Position(reply.last.epoch, int(seq))
                status, current = then_and_now(beside)
                results.append(Booking(status, new=True, at=at, position=0, current=current))
            else:
                results.append(undone(outcome, reply.last))
        return results

    async def _cancel(
        self, items: list[Asked], deadline: float
    ) -> list[Cancellation | Missed | Problem | None]:
        reply = await self._change("cancel", items, deadline)
        self._count("cancel", reply.words[::3])
        self._metrics.promotions.inc(reply.words[2::3].count("1"))
        results: list[Cancellation | Missed | Problem | None] = []
        for outcome, seq, beside in _stride(reply.words, 3):
            if status := _GONE.get(outcome):
                at = Position(reply.last.epoch, int(seq))
                results.append(Cancellation(status, at, beside == "1"))
            elif outcome == "NOT_BOOKED":
                results.append(None)
            elif outcome == "REPLAYED":
                at = Position(reply.last.epoch, int(seq))
                then, current = then_and_now(beside)
                status = _GONE.get(then.upper(), "cancelled")
                done = Cancellation(status, at, then == "reassigned", current=current)
                results.append(done)
            else:
                results.append(undone(outcome, reply.last))
        return results

    async def _read(
        self, items: list[tuple[int, str]], deadline: float
    ) -> list[tuple[EventState, UserState | None] | Missed]:
        keys, arguments = self._arguments(items)
        keys = [self._partition.keys.meta, *keys]
        reply = await self._partition.ask("read", keys, arguments, deadline)
        results: list[tuple[EventState, UserState | None] | Missed] = []
        for (event_id, _), words in zip(items, _stride(reply.words, 11), strict=True):
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
                recorded,
            ) = words
            if outcome == "NO_EVENT":
                results.append(Missed(reply.last))
                continue
            event = EventState(
                event_id, name, int(capacity), int(available), int(waiting), int(created),
                int(updated),
            )  # fmt: skip
            user = None
            if state:
                found = Position(reply.last.epoch, int(seq))
                user = UserState(state, found, int(at), recorded == "1")
            results.append((event, user))
        return results

    async def _open(
        self, items: list[tuple[int, str, int, bool]], deadline: float
    ) -> list[OpenedEvent | Problem | IdTaken]:
        keys: list[str] = [*self._partition.keys]
        ids: list[str | int] = []
        arguments: list[str | int] = []
        for place, (event_id, name, capacity, _) in enumerate(items, start=1):
            keys += event_keys(self._partition.number, event_id)
            ids.append(event_id)
            details = json.dumps({"name": name, "totalTickets": capacity}, separators=(",", ":"))
            arguments += (place, capacity, name, details)
        keys.append(events_key(self._partition.number))
        head = [self._unrecorded_max["open_event"], int(any(item[3] for item in items))]
        arguments = [*head, len(ids), *ids, *arguments]
        reply = await self._partition.change("open_event", keys, arguments, deadline)
        self._count("open_event", reply.words[::3])
        results: list[OpenedEvent | Problem | IdTaken] = []
        for (event_id, name, capacity, _), words in zip(
            items, _stride(reply.words, 3), strict=True
        ):
            outcome, seq, created_at = words
            if outcome == "OPENED":
                at, created = Position(reply.last.epoch, int(seq)), int(created_at)
                results.append(
                    OpenedEvent(event_id, name, capacity, capacity, 0, created, created, at)
                )
            elif outcome == "EXISTS":
                results.append(IdTaken(int(seq)))
            else:
                results.append(Problem("record_behind"))
        return results

    def _count(self, operation: str, outcomes: Sequence[str]) -> None:
        """Count what a call decided, whoever still waits for its answer."""
        for outcome, count in Counter(outcomes).items():
            self._metrics.outcomes.labels(operation, outcome.lower()).inc(count)

    async def _change(self, script: str, items: list[Asked], deadline: float) -> Reply:
        keys, arguments = self._arguments(
            [(item.event_id, item.user_id, item.keyed) for item in items]
        )
        keys = [*self._partition.keys, *keys]
        awaited = int(any(item.awaited for item in items))
        arguments = [self._unrecorded_max[script], awaited, *arguments]
        return await self._partition.change(script, keys, arguments, deadline)

    def _arguments(
        self, items: Sequence[tuple[int, str] | tuple[int, str, str]]
    ) -> tuple[list[str], list[str | int]]:
        """Return the events' keys, and event count, event ids, and per item place and words."""
        keys: list[str] = []
        places: dict[int, int] = {}
        found: list[str | int] = []
        for event_id, *words in items:
            place = places.get(event_id)
            if place is None:
                place = places[event_id] = len(places) + 1
                keys += event_keys(self._partition.number, event_id)
            found += (place, *words)
        return keys, [len(places), *places, *found]


async def answered(submit: Callable[[], asyncio.Future[Result]]) -> Result:
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
