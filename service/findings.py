"""What a comparison of Redis with the record found: drifts, events, partitions, the whole.

Pure. A drift is named by user and direction, or by its event where no user is to be named. Four
verdicts: `clean`; `drift`, which wins; `frozen` where an event has dead letters, for an operator to
put on record; `cannot_tell` where something could not be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["clean", "drift", "frozen", "cannot_tell"]

EXIT_CODES: Mapping[Verdict, int] = {"clean": 0, "drift": 1, "frozen": 1, "cannot_tell": 2}

KINDS: Mapping[str, str] = {
    "missing_on_record": "Redis has it, the record lacks it",
    "missing_in_redis": "the record has it, or will once what is in flight is written; Redis lacks"
    " it",
    "differs": "both have it, and they say different things",
    "keyed": "both have the same state, and other Idempotency-Keys: a repeat with its key would be"
    " answered otherwise after a rebuild",
    "misplaced": "waits at another place than the order in which people joined gives",
    "not_in_waiting_list": "waits, but the waiting list does not hold the turn: would never be"
    " promoted",
    "twice_in_waiting_list": "stands in the waiting list more than once",
    "gap": "a turn is counted as gone and is not, or the reverse: positions behind it are wrong",
    "turns": "turns in the waiting list are not consecutive: positions behind are wrong",
    "unreadable": "an element of the waiting list that no script could have written",
    "counter": "a counter in Redis is not what the record comes to",
    "frozen": "the record and Redis do not freeze the same events: one that has dead letters can be"
    " booked, or one that has none cannot",
    "record_counter": "a counter on record is not what the bookings on record come to",
}
"""Every kind of drift, and what it means to an operator."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One disagreement. `user_id` is None for the event itself; None as a side: it has nothing."""

    event_id: int
    user_id: str | None
    kind: str
    redis: str | None
    record: str | None


@dataclass(frozen=True, slots=True)
class EventFinding:
    """One event, compared as Redis stood at the change `seq`.

    `absent`: Redis does not hold the event; it comes back from the record when it is asked for,
    so there was nothing to compare. `in_flight` changes were in Redis and not yet on record when
    the record was read. `unsettled` users changed in every pass. `frozen` is the number of its dead
    letters: of such an event Redis may have more than the record, or less, and users are not
    compared.
    """

    event_id: int
    seq: int
    users: int
    booked: int
    waiting: int
    in_flight: int
    drifts: Sequence[Drift] = ()
    unsettled: Sequence[str] = ()
    absent: bool = False
    reason: str = ""
    frozen: int = 0

    @property
    def verdict(self) -> Verdict:
        """What this event comes to."""
        if self.drifts:
            return "drift"
        if self.frozen:
            return "frozen"
        return "cannot_tell" if self.unsettled or self.reason else "clean"


@dataclass(frozen=True, slots=True)
class PartitionFinding:
    """One partition. `recorded` is P and `last` is R at the latest snapshot; 0 before the first.

    A `reason` says why what is left of it could not be compared.
    """

    partition: int
    epoch: int
    recorded: int
    last: int
    events: Sequence[EventFinding] = ()
    reason: str = ""

    @property
    def in_flight(self) -> int:
        """How many changes Redis had made that the record did not have yet."""
        return max(0, self.last - self.recorded)


@dataclass(frozen=True, slots=True)
class Report:
    """What one run of `onsale reconcile` found. `seconds` it took."""

    partitions: Sequence[PartitionFinding]
    seconds: float

    @property
    def events(self) -> list[EventFinding]:
        """All events, by partition."""
        return [event for partition in self.partitions for event in partition.events]

    @property
    def drifts(self) -> list[Drift]:
        """Every disagreement."""
        return [drift for event in self.events for drift in event.drifts]

    @property
    def verdict(self) -> Verdict:
        """What all of it comes to: a drift is one, whatever else could not be told."""
        found = {event.verdict for event in self.events}
        if "drift" in found:
            return "drift"
        if "frozen" in found:
            return "frozen"
        unknown = "cannot_tell" in found or any(p.reason for p in self.partitions)
        return "cannot_tell" if unknown else "clean"

    @property
    def exit_code(self) -> int:
        """0 clean, 1 drift or frozen, 2 cannot tell."""
        return EXIT_CODES[self.verdict]
