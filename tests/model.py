"""What the scripts should do, said as plainly as possible: one partition in plain lists.

It is slow and has no turns, gaps or overlays; that is its point. Whoever doubts a script's answer,
or replays a journal, compares with this.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

UNBOUNDED = 10**17
"""More changes than anybody makes."""


class Answer(NamedTuple):
    """What one item came to.

    `extra` is the position of a booking, 1 for a promotion, and of a replay
    `<outcome then>/<state now>/<seq now>/<position now>`.
    """

    outcome: str
    seq: int
    extra: int | str


class Change(NamedTuple):
    """One change, as outbox and journal have it."""

    seq: int
    kind: str
    event: int
    user: str | None
    details: str | None = None


class Keyed(NamedTuple):
    """One change under a key."""

    key: str
    digest: str
    outcome: str
    seq: int


@dataclass
class Event:
    """One event: `states` holds each user's state and the seq since when."""

    capacity: int
    states: dict[str, tuple[str, int]] = field(default_factory=dict)
    waiting_list: list[str] = field(default_factory=list)
    keyed: dict[str, list[Keyed]] = field(default_factory=dict)

    @property
    def sold(self) -> int:
        """How many hold a ticket."""
        return sum(state == "booked" for state, _ in self.states.values())

    @property
    def available(self) -> int:
        """How many tickets are left."""
        return self.capacity - self.sold

    def state(self, user: str) -> tuple[str, int]:
        """Return a user's state and its seq; a stranger's state is empty."""
        return self.states.get(user, ("", 0))

    def kept(self, user: str) -> str:
        """Return a user's last eight keyed changes as Redis and the record write them."""
        return " ".join("/".join(map(str, keyed)) for keyed in self.keyed.get(user, []))

    def position(self, user: str) -> int:
        """Return a waiter's place from 1, 0 for everybody else."""
        return self.waiting_list.index(user) + 1 if user in self.waiting_list else 0


class PartitionModel:
    """Events that share one sequence of changes."""

    def __init__(self, seq: int = 0) -> None:
        """`seq` is that of the last change before the first of these."""
        self.seq = seq
        self.recorded = 0
        self.newest = 0
        self.used = 0
        self.events: dict[int, Event] = {}
        self.frozen: set[int] = set()
        self.changes: list[Change] = []

    def begin_epoch(self) -> None:
        """Begin an epoch: ids up to the greatest that was opened are used up."""
        self.seq += 1
        self.used = self.newest

    def open(self, event_id: int, capacity: int, most: int = UNBOUNDED) -> Answer:
        """Open an event, unless its id is taken or used up; `most` changes may be unrecorded."""
        if event_id in self.events or event_id <= self.used:
            return Answer("EXISTS", max(self.newest, self.used), 0)
        if self._behind(most):
            return Answer("RECORD_BEHIND", 0, 0)
        self.events[event_id] = Event(capacity)
        self.newest = max(self.newest, event_id)
        return Answer("OPENED", self._change("opened", event_id, None), 0)

    def book(self, event_id: int, user: str, keyed: str = "", *, most: int = UNBOUNDED) -> Answer:
        """Book a ticket, or join the end of the waiting list; `keyed` is `<key>/<digest>`."""
        event = self.events.get(event_id)
        if event is None:
            return Answer("NO_EVENT", 0, 0)
        if event_id in self.frozen:
            return Answer("FROZEN", 0, 0)
        if before := self._done_before(event, user, keyed):
            return before
        state, seq = event.state(user)
        if state == "booked":
            return Answer("ALREADY_BOOKED", seq, 0)
        if state == "waiting":
            return Answer("ALREADY_WAITING", seq, event.position(user))
        if self._behind(most):
            return Answer("RECORD_BEHIND", 0, 0)
        if event.available > 0 and not event.waiting_list:
            seq = self._become("booked", "booked", event_id, user)
            self._keep(event, user, keyed, "booked")
            return Answer("BOOKED", seq, 0)
        event.waiting_list.append(user)
        seq = self._become("waiting", "waiting", event_id, user)
        self._keep(event, user, keyed, "waiting")
        return Answer("WAITING", seq, event.position(user))

    def cancel(self, event_id: int, user: str, keyed: str = "", *, most: int = UNBOUNDED) -> Answer:
        """Give a ticket back, and on to the first who waits; or leave the waiting list."""
        event = self.events.get(event_id)
        if event is None:
            return Answer("NO_EVENT", 0, 0)
        if event_id in self.frozen:
            return Answer("FROZEN", 0, 0)
        if before := self._done_before(event, user, keyed):
            return before
        state, _ = event.state(user)
        if state in ("booked", "waiting") and self._behind(most):
            return Answer("RECORD_BEHIND", 0, 0)
        if state == "waiting":
            event.waiting_list.remove(user)
            seq = self._become("left", "left_waiting_list", event_id, user)
            self._keep(event, user, keyed, "left")
            return Answer("LEFT", seq, 0)
        if state != "booked":
            return Answer("NOT_BOOKED", 0, 0)
        seq = self._become("cancelled", "cancelled", event_id, user)
        self._keep(event, user, keyed, "reassigned" if event.waiting_list else "cancelled")
        if not event.waiting_list:
            return Answer("CANCELLED", seq, 0)
        self._become("promoted", "booked", event_id, event.waiting_list.pop(0))
        return Answer("CANCELLED", seq, 1)

    @staticmethod
    def _done_before(event: Event, user: str, keyed: str) -> Answer | None:
        """Return what a key has done for a user, and the state now; None for one that is new."""
        key, _, digest = keyed.partition("/")
        found = [k for k in event.keyed.get(user, []) if k.key == key]
        if not found:
            return None
        if found[0].digest != digest:
            return Answer("KEY_REUSED", 0, 0)
        now = (found[0].outcome, *event.state(user), event.position(user))
        return Answer("REPLAYED", found[0].seq, "/".join(map(str, now)))

    def _keep(self, event: Event, user: str, keyed: str, outcome: str) -> None:
        """Remember the last change under its key, the last eight of a user."""
        if not keyed:
            return
        key, _, digest = keyed.partition("/")
        kept = [*event.keyed.get(user, []), Keyed(key, digest, outcome, self.seq)]
        event.keyed[user] = kept[-8:]
        reassigned = ',"reassigned":true' if outcome == "reassigned" else ""
        details = f'{{"key":"{key}","digest":"{digest}"{reassigned}}}'
        self.changes[-1] = self.changes[-1]._replace(details=details)

    def _behind(self, most: int) -> bool:
        """Whether as many changes as may be are not on record."""
        return self.seq - self.recorded >= most

    def _become(self, kind: str, state: str, event_id: int, user: str) -> int:
        seq = self._change(kind, event_id, user)
        self.events[event_id].states[user] = (state, seq)
        return seq

    def _change(self, kind: str, event_id: int, user: str | None) -> int:
        self.seq += 1
        self.changes.append(Change(self.seq, kind, event_id, user))
        return self.seq
