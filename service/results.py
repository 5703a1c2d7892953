"""What the booking scripts come to, in the words of the domain. Shapes alone; calls nothing.

Of each request there is one, so those that sales are made of are tuples: a frozen data class takes
three times as long to make.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

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


class Booking(NamedTuple):
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

    def reaching(self, durability: Reached) -> "Booking":
        """Return the same, as durable as this."""
        return self._replace(durability=durability)


class Cancellation(NamedTuple):
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

    def reaching(self, durability: Reached) -> "Cancellation":
        """Return the same, as durable as this."""
        return self._replace(durability=durability)


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
class IdTaken:
    """The id that was drawn is not free; one above `newest` is, as far as the partition knows."""

    newest: int


@dataclass(frozen=True, slots=True)
class OpenedEvent(EventState):
    """An event as it was opened, by the change `at`."""

    at: Position
    durability: Reached = "fsync"

    @property
    def is_fresh(self) -> bool:
        """Whether this very request made the change: nobody opens an event twice."""
        return True

    def reaching(self, durability: Reached) -> "OpenedEvent":
        """Return the same, as durable as this."""
        return replace(self, durability=durability)


class UserState(NamedTuple):
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

    def reaching(self, durability: Reached) -> "UserState":
        """Return the same, as durable as this."""
        return self._replace(durability=durability)


@dataclass(frozen=True, slots=True)
class Missed:
    """Redis did not know the event when its last change was this."""

    at: Position


def undone(outcome: str, last: Position) -> Missed | Problem:
    """Return what an outcome means that did nothing for a reason of its own.

    Raises ValueError for one that no script returns.
    """
    if outcome == "NO_EVENT":
        return Missed(last)
    if outcome == "RECORD_BEHIND":
        return Problem("record_behind")
    if outcome == "FROZEN":
        return Problem("closed", FROZEN)
    if outcome == "KEY_REUSED":
        return Problem("idempotency_key_reused")
    msg = f"no script returns {outcome}"
    raise ValueError(msg)


def then_and_now(beside: str) -> tuple[str, Standing]:
    """Return what a key came to the first time, and the user's state now."""
    outcome, status, seq, position = beside.split("/")
    return outcome, Standing(status, int(seq), int(position))
