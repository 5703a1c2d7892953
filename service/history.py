"""What happened at an event, or to one of its users, from the journal, in the words of people.

Tells, and judges nothing: that is the audit's. Places in the waiting list are those of the moment
of joining, by the same replay.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.journal_replay import AuditedReplay
from service.journal_view import JournalView
from service.keyed import keyed_of
from service.keys import partition_of
from service.lineage import Position
from service.outbox import STATUS_AFTER, Change

OnProgress = Callable[[int, int], None]

_IN_WORDS: Mapping[str, str] = {
    "booked": "booked a ticket",
    "promoted": "promoted: has a ticket",
    "cancelled": "cancelled, gave the ticket back",
    "left": "left the waiting list",
}


SET_ASIDE = "setAside"
"""Counted beside the kinds of change: a dead letter, of whatever kind."""


class NoHistoryError(Exception):
    """No change is about this event, or about this user of it."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One change. `position` is the place at which its user joined the waiting list, else 0."""

    change: Change
    says: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """The history of an event, or of one user of it, up to the change `until` of its partition.

    `shown` holds the first of `number` happenings and the newest, in order; `kinds` counts all of
    them. `status` is the user's, None for an event.
    """

    event_id: int
    user_id: str | None
    partition: int
    until: Position
    name: str
    capacity: int
    sold: int
    waiting: int
    status: str | None
    number: int
    kinds: Counter[str] = field(default_factory=Counter)
    shown: tuple[Happening, ...] = ()

    @property
    def left_out(self) -> int:
        """How many happenings lie between the first that is shown and the next."""
        return self.number - len(self.shown)


async def history(
    postgresql_url: str,
    event_id: int,
    user_id: str | None,
    *,
    limit: int,
    on_progress: OnProgress | None = None,
) -> Told:
    """Read it; of the happenings the first and the newest, no more than `limit` together.

    Raises NoHistoryError, and what `UNAVAILABLE` lists.
    """
    async with (
        await JournalView.open(postgresql_url, purpose="history") as record,
        record.snapshot(),
    ):
        partition = partition_of(event_id, await record.partitions() or 1)
        until = await record.cursor(partition)
        replay = AuditedReplay(event_id, partition)
        first: list[Happening] = []
        newest: deque[Happening] = deque(maxlen=limit - 1)
        kinds: Counter[str] = Counter()
        async for page in record.journal_pages(partition, event_id):
            for change, _, reason in page:
                happening = _happening(change, replay) if reason is None else _aside(change, reason)
                if user_id is None or change.user_id == user_id:
                    (newest if first else first).append(happening)
                    kinds[change.kind if reason is None else SET_ASIDE] += 1
            if on_progress is not None:
                on_progress(page[-1].change.seq, until.seq)
    number = kinds.total()
    if not number:
        whose = "" if user_id is None else f" of user {user_id}"
        msg = f"event {event_id} has no history{whose}: no change on record is about it"
        raise NoHistoryError(msg)
    return Told(
        event_id=event_id,
        user_id=user_id,
        partition=partition,
        until=until,
        name=replay.name,
        capacity=replay.capacity or 0,
        sold=replay.sold,
        waiting=len(replay.line),
        status=None if user_id is None else replay.states.get(user_id, ("", 0))[0],
        number=number,
        kinds=kinds,
        shown=(*first, *newest),
    )


def _aside(change: Change, reason: str) -> Happening:
    """Put a dead letter into words; it has come to nothing yet."""
    return Happening(change, f"set aside, not on record ({change.kind}): {reason}")


def _happening(change: Change, replay: AuditedReplay) -> Happening:
    """Apply a change and put it into words."""
    if change.kind == "opened":
        replay.open(change)
        tickets = replay.capacity or 0
        noun = "ticket" if tickets == 1 else "tickets"
        return Happening(change, f"opened with {tickets:,} {noun}: {replay.name}")
    if change.kind in STATUS_AFTER and change.user_id is not None:
        replay.apply(change.seq, change.kind, change.user_id)
    if change.kind != "waiting":
        return Happening(change, _IN_WORDS.get(change.kind, change.kind) + _under(change))
    position = len(replay.line)
    says = f"joined the waiting list at place {position:,}{_under(change)}"
    return Happening(change, says, position)


def _under(change: Change) -> str:
    """Return the key that the request had, in words."""
    keyed = keyed_of(change.kind, change.details or "")
    return f", key {keyed.key}" if keyed else ""
