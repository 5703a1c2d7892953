"""What the booking scripts come to, in the words of the domain. Shapes alone; calls nothing."""

from dataclasses import dataclass
from typing import Literal

from service.errors import FROZEN, Problem
from service.lineage import Position

Reached = Literal["fsync", "recorded", "memory", "none"]
"""How durable a change is known to be; `none`: it waited for the record, and in vain so far."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A user's state now, beside a replay; `position` is 0 unless the user waits."""

    status: str
    seq: int
    position: int


@dataclass(frozen=True, slots=True)
class Booking:
    """What `book` came to. `position` is 0 for a booking; `new` is False for one that stood.

    `current`: this is what the request's key came to the first time, and the user's state now.
    """

    status: str
    new: bool
    at: Position
    position: int
    durability: Reached = "fsync"
    current: Standing | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether this very request made the change."""
        return self.new and self.current is None


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What `cancel` came to. `reassigned`: a waiter got the ticket in the same step.

    `current` as for a booking.
    """

    status: str
    at: Position
    reassigned: bool
    durability: Reached = "fsync"
    current: Standing | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether this very request made the change."""
        return self.current is None


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
class OpenedEvent(EventState):
    """An event as it was opened, by the change `at`."""

    at: Position
    durability: Reached = "fsync"

    @property
    def is_fresh(self) -> bool:
        """Whether this very request made the change: nobody opens an event twice."""
        return True


@dataclass(frozen=True, slots=True)
class UserState:
    """A user's state for an event; `position` is 0 unless the user waits.

    `at`: the seq of the change that led there, with the epoch in which Redis was asked. `recorded`:
    Redis knows that change to have been on record.
    """

    status: str
    at: Position
    position: int
    recorded: bool
    durability: Reached = "fsync"

    @property
    def seq(self) -> int:
        """The seq of the change that led there."""
        return self.at.seq


@dataclass(frozen=True, slots=True)
class Missed:
    """Redis did not know the event when its last change was this."""

    at: Position


def undone(outcome: str, last: Position) -> Missed | Problem | None:
    """Return what an outcome means that did nothing for a reason of its own, None for others."""
    if outcome == "NO_EVENT":
        return Missed(last)
    if outcome == "RECORD_BEHIND":
        return Problem("record_behind")
    if outcome == "FROZEN":
        return Problem("closed", FROZEN)
    if outcome == "KEY_REUSED":
        return Problem("idempotency_key_reused")
    return None


def then_and_now(beside: str) -> tuple[str, Standing]:
    """Return what a key came to the first time, and the user's state now."""
    outcome, status, seq, position = beside.split("/")
    return outcome, Standing(status, int(seq), int(position))
