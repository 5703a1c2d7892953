"""The tables `bookings` and `events` against what the replayed journal comes to. Pure; no I/O.

Each booking that agrees is forgotten, so that what is left at the end is what the tables lack.
"""

from collections.abc import Iterable, Mapping

from service.journal_replay import AuditedReplay
from service.journal_view import BookingRow, EventRow
from service.keys import partition_of
from service.violations import Violation, Violations


class ReplayResult:
    """All replayed events. Takes their `states` over, for there may be millions."""

    def __init__(
        self, events: Mapping[int, AuditedReplay], partitions: int, violations: Violations
    ) -> None:
        """Take the events of all partitions, by id."""
        self._events = events
        self._partitions = partitions
        self._violations = violations

    def take_bookings(self, rows: Iterable[BookingRow]) -> None:
        """Compare some rows."""
        for event_id, user_id, status, quantity, seq, keyed in rows:
            event = self._events.get(event_id)
            state = None if event is None else event.states.pop(user_id, None)
            kept = "" if event is None else event.keyed.get(user_id, "")
            if keyed != kept and state is not None:
                says = f"bookings keeps the keys {keyed[:700]!r}; the journal comes to {kept!r}"
                self._add("bookings", state[1], event_id, user_id, says)
            # No change carries a quantity: it is 1 for now.
            if state == (status, seq) and quantity == 1:
                continue
            says = f"bookings says {_in_words(status, seq)}"
            says += "" if quantity == 1 else f", quantity {quantity}"
            if state is None:
                self._add("bookings", None, event_id, user_id, f"{says}; no change explains it")
            else:
                says += f"; the journal comes to {_in_words(*state)}"
                self._add("bookings", state[1], event_id, user_id, says)

    def end_bookings(self) -> None:
        """Name who is missing in the table."""
        for event_id, event in self._events.items():
            for user_id, (status, seq) in event.states.items():
                says = f"bookings has no row; the journal comes to {_in_words(status, seq)}"
                self._add("bookings", seq, event_id, user_id, says)

    def judge_events(self, rows: Iterable[EventRow]) -> None:
        """Compare all rows of the events that were replayed."""
        missing = dict(self._events)
        for row in rows:
            event = missing.pop(row.event_id, None)
            if event is None:
                event = AuditedReplay(row.event_id, partition_of(row.event_id, self._partitions))
            self._judge(row, event)
        for event_id, event in missing.items():
            says = "events has no such row; the journal has changes"
            self._add("events", event.opened or None, event_id, None, says)

    def _judge(self, row: EventRow, event: AuditedReplay) -> None:
        wanted: dict[str, str | int | None] = {
            "status": "open" if event.opened or event.changes else "opening",
            "sold": event.sold,
            "waiting": len(event.line),
        }
        if event.opened:
            wanted |= {"name": event.name, "capacity": event.capacity}
        for column, value in wanted.items():
            held = getattr(row, column)
            if held != value:
                says = f"events says {column} {held!r}; the journal comes to {value!r}"
                self._add("events", event.opened or None, event.event_id, None, says)

    def _add(
        self, rule: str, seq: int | None, event_id: int, user_id: str | None, says: str
    ) -> None:
        partition = partition_of(event_id, self._partitions)
        self._violations.add(Violation(rule, partition, seq, event_id, user_id, says))


def _in_words(status: str, seq: int) -> str:
    return f"{status} at seq {seq}"
