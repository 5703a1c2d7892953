"""Users and counters of one event: Redis against the record. Pure; no I/O.

The record is of one snapshot, at P. What Redis must hold at a later seq is the record with the
changes since P laid over it. Pages of users are of no exact seq, so they decide only about users
without a change since P; everybody else is decided by a look of an exact seq.
"""

from collections.abc import Iterable, Mapping, Sequence

from service.findings import Drift
from service.keyed import kept, keyed_of
from service.outbox import STATUS_AFTER, Change
from service.record_view import RecordedEvent

_BOOKED = {"booked": 1, "promoted": 1, "cancelled": -1}
_WAITING = {"waiting": 1, "promoted": -1, "left": -1}

_IN_WORDS = {
    "booked": "booked at seq {}",
    "waiting": "waiting since seq {}",
    "cancelled": "cancelled at seq {}",
    "left_waiting_list": "left the waiting list at seq {}",
}


def in_words(state: str) -> str:
    """Return a state as Redis or the record holds it, in words: `booked at seq 5`."""
    status, _, rest = state.partition(" ")
    seq, _, rest = rest.partition(" ")
    quantity, _, _ = rest.partition(" ")
    if status not in _IN_WORDS or not seq.isdecimal():
        return f"unreadable: {state[:80]!r}"
    words = _IN_WORDS[status].format(seq)
    return words if quantity == "1" else f"{words}, quantity {quantity[:20]}"


def without_turn(held: str) -> str:
    """Return what Redis holds of a user as `RecordedEvent.users` has it."""
    if held.count(" ") < 4:
        return held.rpartition(" ")[0]
    state, seq, quantity, _, keyed = held.split(" ", 4)
    return f"{state} {seq} {quantity} {keyed}"


def state_after(changes: Sequence[Change], keyed: str) -> str:
    """Return the state in which changes leave their user, as `RecordedEvent.users` holds it.

    `keyed`: what was kept under keys before the first of them.
    """
    for change in changes:
        if change.details and (made := keyed_of(change.kind, change.details)):
            keyed = kept(keyed, made, change.seq)
    # No change carries a quantity: it is 1 for now.
    return f"{STATUS_AFTER[changes[-1].kind]} {changes[-1].seq} 1 {keyed}".rstrip()


def _keyed_in(row: str) -> str:
    """Return what a row keeps under keys, empty for nothing."""
    return row.split(" ", 3)[3] if row.count(" ") > 2 else ""


def _keys_in_words(keyed: str) -> str:
    """Return the keys in a text that is kept, oldest first, cut where somebody made it long."""
    keys = [entry.partition("/")[0] for entry in keyed.split(" ") if entry]
    return f"keys {', '.join(keys)}"[:700] if keys else "no keys"


class EventComparison:
    """The users of one event, page by page. Takes `recorded.users` over, for there may be millions.

    `waiting` holds whoever waits in Redis, by the value there; `named` whoever disagrees.
    """

    def __init__(self, event_id: int, recorded: RecordedEvent) -> None:
        """Begin with the record's side."""
        self.event_id = event_id
        self.drifts: list[Drift] = []
        self.waiting: dict[str, str] = {}
        self.named: set[str] = set()
        self._recorded = recorded
        self._rows = recorded.users
        self._odd: dict[str, str] = {}
        self._keyed: dict[str, str] = {}  # of rows that agreed
        self._counted = len(self._rows)

    @property
    def users(self) -> int:
        """How many users either side knows."""
        return self._counted

    def take_page(self, users: Mapping[str, str]) -> None:
        """Compare a page; who does not agree is kept until it is known who changed meanwhile.

        A row that agreed is None from then on: a scan may return its user once more.
        """
        rows = self._rows
        for user, held in users.items():
            row = rows.get(user)
            if row is not None and row == without_turn(held):
                rows[user] = None
                if keyed := _keyed_in(row):
                    self._keyed[user] = keyed
            else:
                self._odd[user] = held
            if held.startswith("waiting "):
                self.waiting[user] = held

    def judge_pages(self, changed: Mapping[str, object]) -> None:
        """Decide about everybody in the pages but those who changed since P."""
        for user, row in self._rows.items():
            if row is not None and user not in changed:
                self._decide(user, self._odd.get(user), row)
        for user, held in self._odd.items():
            if user not in self._rows:
                self._counted += 1
                if user not in changed:
                    self._decide(user, held, None)
        self._counted += sum(user not in self._rows and user not in self._odd for user in changed)

    def judge_one(self, user: str, held: str | None, changes: Sequence[Change]) -> None:
        """Decide about one who changed; `held` is of an exact seq, `changes` all until then."""
        self.waiting.pop(user, None)
        if held is not None and held.startswith("waiting "):
            self.waiting[user] = held
        row = state_after(changes, self._keyed.get(user) or _keyed_in(self._rows.get(user) or ""))
        if held is None or without_turn(held) != row:
            self._decide(user, held, row, ", in flight")

    def judge_counters(self, held: Mapping[str, str], changes: Iterable[Change]) -> None:
        """Compare name and counters with the record's at P and the changes until this look."""
        event = self._recorded
        kinds = [change.kind for change in changes]
        sold = event.sold + sum(_BOOKED.get(kind, 0) for kind in kinds)
        waiting = event.waiting + sum(_WAITING.get(kind, 0) for kind in kinds)
        available = f"{event.capacity - sold} available (capacity {event.capacity}, sold {sold})"
        self._compare("differs", held, "name", event.name, f"the name {event.name!r}")
        self._compare(
            "differs", held, "capacity", str(event.capacity), f"capacity {event.capacity}"
        )
        self._compare("counter", held, "available", str(event.capacity - sold), available)
        self._compare("counter", held, "waiting", str(waiting), f"{waiting} waiting")
        for word, column, rows in (
            ("sold", event.sold, event.booked),
            ("waiting", event.waiting, event.queued),
        ):
            if column != rows:
                says = f"events.{word} is {column}, the bookings say {rows}"
                self.drifts.append(Drift(self.event_id, None, "record_counter", None, says))

    def _compare(
        self, kind: str, held: Mapping[str, str], field: str, wanted: str, says: str
    ) -> None:
        if held.get(field) != wanted:
            found = f"{field} {held[field][:200]!r}" if field in held else f"no {field}"
            self.drifts.append(Drift(self.event_id, None, kind, found, says))

    def _decide(self, user: str, held: str | None, row: str | None, note: str = "") -> None:
        kind = "differs"
        if held is None:
            kind = "missing_in_redis"
        elif row is None:
            kind = "missing_on_record"
        elif without_turn(held).split(" ", 3)[:3] == row.split(" ", 3)[:3]:
            kind = "keyed"
        self.named.add(user)
        redis = None if held is None else in_words(held)
        record = None if row is None else in_words(row) + note
        if kind == "keyed" and held is not None and row is not None:
            redis = f"{redis}, {_keys_in_words(_keyed_in(without_turn(held)))}"
            record = f"{record}, {_keys_in_words(_keyed_in(row))}"
        self.drifts.append(Drift(self.event_id, user, kind, redis, record))


def by_user(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """Return the changes about users, in order, by user."""
    found: dict[str, list[Change]] = {}
    for change in changes:
        if change.user_id is not None:
            found.setdefault(change.user_id, []).append(change)
    return found
