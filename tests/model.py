"""What the scripts should do, said as plainly as possible: one partition in plain lists.

It is slow and has no turns, gaps or overlays; that is its point. Whoever doubts a script's answer,
or replays a journal, compares with this.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

UNBOUNDED = 10**17
"""More changes than anybody makes."""


class Answer(NamedTuple):
    """What one item came to; `extra` is the position of a booking, 1 for a promotion."""

    outcome: str
    seq: int
    extra: int


class Change(NamedTuple):
    """One change, as outbox and journal have it."""

    seq: int
    kind: str
    event: int
    user: str | None


@dataclass
class Event:
    """One event: `states` holds each user's state and the seq since when."""

    capacity: int
    states: dict[str, tuple[str, int]] = field(default_factory=dict)
    waiting_list: list[str] = field(default_factory=list)

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

    def position(self, user: str) -> int:
        """Return a waiter's place from 1, 0 for everybody else."""
        return self.waiting_list.index(user) + 1 if user in self.waiting_list else 0


class PartitionModel:
    """Events that share one sequence of changes."""

    def __init__(self, seq: int = 0) -> None:
        """`seq` is that of the last change before the first of these."""
        self.seq = seq
        self.recorded = 0
        self.events: dict[int, Event] = {}
        self.frozen: set[int] = set()
        self.changes: list[Change] = []

    def open(self, event_id: int, capacity: int, most: int = UNBOUNDED) -> Answer:
        """Open an event, unless there is one with this id; `most` changes may be unrecorded."""
        if event_id in self.events:
            return Answer("EXISTS", 0, 0)
        if self._behind(most):
            return Answer("RECORD_BEHIND", 0, 0)
        self.events[event_id] = Event(capacity)
        return Answer("OPENED", self._change("opened", event_id, None), 0)

    def book(self, event_id: int, user: str, most: int = UNBOUNDED) -> Answer:
        """Book a ticket, or join the end of the waiting list."""
        event = self.events.get(event_id)
        if event is None:
            return Answer("NO_EVENT", 0, 0)
        if event_id in self.frozen:
            return Answer("FROZEN", 0, 0)
        state, seq = event.state(user)
        if state == "booked":
            return Answer("ALREADY_BOOKED", seq, 0)
        if state == "waiting":
            return Answer("ALREADY_WAITING", seq, event.position(user))
        if self._behind(most):
            return Answer("RECORD_BEHIND", 0, 0)
        if event.available > 0 and not event.waiting_list:
            return Answer("BOOKED", self._become("booked", "booked", event_id, user), 0)
        event.waiting_list.append(user)
        seq = self._become("waiting", "waiting", event_id, user)
        return Answer("WAITING", seq, event.position(user))

    def cancel(self, event_id: int, user: str, most: int = UNBOUNDED) -> Answer:
        """Give a ticket back, and on to the first who waits; or leave the waiting list."""
        event = self.events.get(event_id)
        if event is None:
            return Answer("NO_EVENT", 0, 0)
        if event_id in self.frozen:
            return Answer("FROZEN", 0, 0)
        state, _ = event.state(user)
        if state in ("booked", "waiting") and self._behind(most):
            return Answer("RECORD_BEHIND", 0, 0)
        if state == "waiting":
            event.waiting_list.remove(user)
            return Answer("LEFT", self._become("left", "left_waiting_list", event_id, user), 0)
        if state != "booked":
            return Answer("NOT_BOOKED", 0, 0)
        seq = self._become("cancelled", "cancelled", event_id, user)
        if not event.waiting_list:
            return Answer("CANCELLED", seq, 0)
        self._become("promoted", "booked", event_id, event.waiting_list.pop(0))
        return Answer("CANCELLED", seq, 1)

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
