"""One event of both stores, read until everybody in it was compared at an exact seq.

Pages first: they decide about all who did not change since the record was read. Who did is looked
at in one MULTI with the seq, the counters and the end of the waiting list, and compared with the
record as of that seq: so one pass more settles whoever moves, however often. Only a place in the
waiting list needs the user and the list of one seq, and takes up to `PASSES`.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from service import redis_view
from service.comparison import EventComparison, by_user
from service.findings import Drift, EventFinding
from service.outbox import Change
from service.record_view import RecordedEvent
from service.redis_view import Look, MovedOnError, RedisView
from service.tail import Tail
from service.waiting_list import WaitingListCopy, compare_order, number

PASSES = 3
"""So often those who changed meanwhile are looked at again."""

_USERS_MAX = 1_000
_LOOKS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Scope:
    """What the events of one snapshot share: P as `recorded`, and R right after it as `last`."""

    partition: int
    epoch: int
    recorded: int
    last: int
    redis: RedisView
    tail: Tail


class EventReading:
    """Reads and compares one event. Raises what the views, the tail and MovedOnError say."""

    def __init__(self, scope: Scope, event_id: int, on_users: Callable[[int], None]) -> None:
        """Nothing is read before `run`; `on_users` is told how many users each page had."""
        self._scope = scope
        self._id = event_id
        self._on_users = on_users
        self._copy = WaitingListCopy(redis_view.PAGE // 10)
        self._gaps: set[str] = set()
        self._looked: dict[str, tuple[str | None, int]] = {}

    async def run(self, recorded: RecordedEvent | None) -> EventFinding | None:
        """Compare with the record's side, None where the snapshot does not have the event.

        None when neither side has it, or Redis alone and not whole.
        """
        scope = self._scope
        first = await scope.redis.first_look(scope.partition, self._id, scope.epoch)
        self._on_users(len(first.users))
        if not first.event:
            return self._absent(first, recorded) if recorded else None
        await scope.tail.extend(first.at.seq)
        if recorded is None:
            recorded = _opened(self._changes(first.at.seq))
        if recorded is None:
            users = len(first.users)
            says = "an event that can be booked"
            drift = Drift(self._id, None, "missing_on_record", says, None)
            return self._finding(first, users, [drift])
        return await self._compare(first, recorded)

    async def _compare(self, first: Look, recorded: RecordedEvent) -> EventFinding:
        comparison = EventComparison(self._id, recorded)
        whole = await self._read_pages(first, comparison)
        look, found = first, list[Drift]()
        unsettled: set[str] = set()
        for attempt in range(PASSES):
            if attempt or not whole:
                look = await self._look_at(list(unsettled) if attempt else await self._changed())
            if not look.event:
                return self._absent(look, recorded)
            await self._scope.tail.extend(look.at.seq)
            changes = self._changes(look.at.seq)
            moved = by_user(changes)
            if attempt:
                self._judge(comparison, unsettled, moved)
            else:
                if whole:
                    self._looked = {user: (first.users.get(user), look.at.seq) for user in moved}
                self._judge(comparison, self._looked, moved)
                comparison.judge_pages(moved)
                comparison.judge_counters(look.event, changes)
            unknown = {user for user, of in moved.items() if self._seq_of(user) < of[-1].seq}
            found += compare_order(
                self._id,
                self._copy.elements,
                look.event.get("next_turn"),
                comparison.waiting,
                self._gaps,
                passed_over=unknown | comparison.named,
                moved=() if whole else moved.keys(),
            )
            unsettled = unsettled & unknown if attempt else unknown
            if not unsettled:
                break
        drifts = _once(comparison.drifts + found)
        return self._finding(look, comparison.users, drifts, sorted(unsettled))

    def _judge(
        self,
        comparison: EventComparison,
        users: Collection[str],
        moved: Mapping[str, Sequence[Change]],
    ) -> None:
        """Compare who was looked at with the changes until that look."""
        for user in users:
            held, seq = self._looked[user]
            changes = [change for change in moved[user] if change.seq <= seq]
            comparison.judge_one(user, held, changes)

    def _seq_of(self, user: str) -> int:
        """Return the seq at which a user was looked at last, 0 for never."""
        return self._looked[user][1] if user in self._looked else 0

    def _changes(self, upto: int) -> list[Change]:
        """Return the event's changes since the record was read; the tail must reach so far."""
        return self._scope.tail.of(self._id, self._scope.recorded, upto)

    async def _changed(self) -> list[str]:
        """Return everybody who has changed since the record was read."""
        scope = self._scope
        meta = await scope.redis.meta(scope.partition)
        # Of another epoch the next look will say so.
        upto = meta.seq if meta is not None and meta.epoch == scope.epoch else scope.last
        await scope.tail.extend(upto)
        return list(by_user(self._changes(upto)))

    async def _read_pages(self, first: Look, comparison: EventComparison) -> bool:
        """Read all pages; True when the first look had everything, at its own seq."""
        scope = self._scope
        comparison.take_page({u: held for u, held in first.users.items() if held is not None})
        self._gaps.update(first.gaps)
        self._take(first)
        if self._copy.whole and not first.more_users and not first.more_gaps:
            return True
        async for page in scope.redis.users(scope.partition, self._id, first.more_users):
            comparison.take_page(page)
            self._on_users(len(page))
        async for gaps in scope.redis.gaps(scope.partition, self._id, first.more_gaps):
            self._gaps |= gaps
        # Only so that the looks that count have little left to read.
        await self._look_at([])
        return False

    async def _look_at(self, users: list[str]) -> Look:
        """Look at users, a thousand at a time, until the list was read to its end with the last."""
        scope = self._scope
        for _ in range(_LOOKS_MAX):
            chunk, users = users[:_USERS_MAX], users[_USERS_MAX:]
            look = await scope.redis.look(
                scope.partition, self._id, scope.epoch, start=self._copy.next_start, users=chunk
            )
            self._take(look)
            self._looked.update({u: (held, look.at.seq) for u, held in look.users.items()})
            if not users and self._copy.whole:
                return look
        msg = "the waiting list grew faster than it could be read"
        raise MovedOnError(msg)

    def _take(self, look: Look) -> None:
        self._copy.take(look.event.get("next_turn"), look.start, look.elements, look.length)

    def _absent(self, look: Look, recorded: RecordedEvent) -> EventFinding:
        return EventFinding(
            event_id=self._id,
            seq=look.at.seq,
            users=len(recorded.users),
            booked=recorded.sold,
            waiting=recorded.waiting,
            in_flight=self._in_flight(),
            absent=True,
        )

    def _finding(
        self, look: Look, users: int, drifts: list[Drift], unsettled: Collection[str] = ()
    ) -> EventFinding:
        capacity, available, waiting = (
            number(look.event.get(name)) or 0 for name in ("capacity", "available", "waiting")
        )
        return EventFinding(
            event_id=self._id,
            seq=look.at.seq,
            users=users,
            booked=capacity - available,
            waiting=waiting,
            in_flight=self._in_flight(),
            drifts=drifts,
            unsettled=list(unsettled),
        )

    def _in_flight(self) -> int:
        return len(self._changes(self._scope.last))


def _opened(changes: Collection[Change]) -> RecordedEvent | None:
    """Return an event whose opening is in flight, as the record had it just after."""
    for change in changes:
        if change.kind == "opened" and change.details is not None:
            details = json.loads(change.details)
            return RecordedEvent(details["name"], details["totalTickets"], 0, 0)
    return None


def _once(drifts: list[Drift]) -> list[Drift]:
    """Drop what a later pass found again of the same user."""
    kept: dict[object, Drift] = {}
    for drift in drifts:
        kept.setdefault((drift.user_id, drift.kind) if drift.user_id else drift, drift)
    return list(kept.values())
