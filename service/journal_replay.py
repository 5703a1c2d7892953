"""One partition's changes, replayed row by row: seqs, epochs, hashes, and each event. Pure.

Dead letters stand in the chain between the rows of the journal, and come to nothing.

Invariant: a row that no rule names is the very row that the writer wrote, as far as the hash behind
it, and so a head that is kept, can vouch for it.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any

from service.keyed import Keyed, kept, keyed_of, keys_in
from service.keys import partition_of
from service.lineage import NOWHERE, Lineage, Position
from service.models import ID_MAX, parse_user_id
from service.outbox import STATUS_AFTER, Change
from service.record import Cursor
from service.replay import Breach, EventReplay
from service.rows import chain
from service.violations import Head, Violation, Violations

_SEQ_MAX = 2**63 - 1


class AuditedReplay(EventReplay):
    """An event with what its opening said. `opened` is that change's seq, 0 before it."""

    def __init__(self, event_id: int, partition: int) -> None:
        """Begin before the opening."""
        super().__init__()
        self.event_id = event_id
        self.partition = partition
        self.name = ""
        self.opened = 0
        self.keyed: dict[str, str] = {}

    def open(self, change: Change) -> None:
        """Take what the opening says; nothing from details that no opening has."""
        name, capacity = _opening(change)
        self.name, self.capacity, self.opened = name or "", capacity, change.seq

    def keep(self, change: Change, keyed: Keyed) -> list[Breach]:
        """Judge the key of the change that was just applied, and keep it as the writer does."""
        assert change.user_id is not None  # only changes about users have keys
        held = self.keyed.get(change.user_id, "")
        self.keyed[change.user_id] = kept(held, keyed, change.seq)
        breaches = []
        if (before := keys_in(held).get(keyed.key)) is not None:
            says = f"{change.kind} under the key {keyed.key}, as at seq {before}"
            breaches.append(Breach("unlawful", change.seq, change.user_id, says))
        if (keyed.outcome == "reassigned") != self.owes:
            says = f"is kept as {keyed.outcome} under the key {keyed.key}, and was not"
            breaches.append(Breach("unlawful", change.seq, change.user_id, says))
        return breaches


class JournalReplay:
    """The journal of one partition. Rows are taken in the order of seq, up to the cursor."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        cursor: Cursor | None,
        lineage: Lineage,
        violations: Violations,
        *,
        kept: Iterable[Head] = (),
        only: Collection[int] | None = None,
    ) -> None:
        """Take what stands beside the journal, and heads of it that were kept.

        `only` these events are replayed, None for all; seqs, epochs and hashes are looked at whole.
        """
        self.partition = partition
        self.events: dict[int, AuditedReplay] = {}
        self._partitions = partitions
        self._cursor = cursor or Cursor(NOWHERE, b"")
        self._lineage = lineage
        self._violations = violations
        self._only = only
        self._kept: dict[int, list[Head]] = {}
        for head in kept:
            self._kept.setdefault(head.seq, []).append(head)
        self.letters = 0
        self._frozen: dict[int, int] = {}  # by event, the seq of its first dead letter
        self._last = NOWHERE
        self._hash = b""
        self._epoch = 0  # the epoch of the rows with seqs above `_begins`, up to `_ends`
        self._begins = self._ends = 0
        self._beyond = 0
        self._check_lineage()

    @property
    def head(self) -> Head:
        """The last row that was taken."""
        return Head(self.partition, *self._last, self._hash)

    @property
    def epochs(self) -> int:
        """How many epochs there are on record that have changes or will have."""
        return len(self._lineage.epochs)

    def take(self, change: Change, hash_: bytes, reason: str | None = None) -> None:
        """Judge the next row, and apply it unless it was set aside, for a `reason`."""
        if change.seq > self._cursor.last.seq:
            self._beyond = self._beyond or change.seq
            return
        if change.seq == self._last.seq + 1:
            if chain(self._hash, self.partition, change) != hash_:
                self._note("hash", change, "its hash does not follow from it and the row before")
        elif change.seq == self._last.seq != 0:
            self._note("dead_letter", change, "stands in journal and dead_letters, or twice")
        else:
            # What the row before was is not known: its hash cannot be asked about.
            self._note("gap", change, f"comes after seq {self._last.seq}")
        self._check_epoch(change)
        self._last, self._hash = Position(change.epoch, change.seq), hash_
        for head in self._kept.pop(change.seq, ()):
            if head != self.head:
                says = f"the kept head is {_head_in_words(head)}, the journal's {self._in_words()}"
                self._say("kept_head", head.seq, says)
        if why := self._unreadable(change):
            self._note("unreadable", change, why)
        elif reason is not None:
            self._take_letter(change)
        elif change.event_id is not None and (self._only is None or change.event_id in self._only):
            self._replay(change, change.event_id)

    def end(self) -> None:
        """Judge how the journal ends."""
        cursor = self._cursor
        if self._beyond:
            says = f"stands beyond the cursor, which is at {cursor.last.entry_id}"
            self._say("cursor", self._beyond, says)
        if (self._last, self._hash) != (cursor.last, cursor.head):
            says = (
                f"the journal ends with {self._in_words()}, the cursor is at"
                f" {_head_in_words(Head(self.partition, *cursor.last, cursor.head))}"
            )
            self._say("cursor", self._last.seq or None, says)
        for heads in self._kept.values():
            for head in heads:
                says = (
                    f"the journal does not have the row of the kept head {_head_in_words(head)}; it"
                    f" ends with {self._in_words()}"
                )
                self._say("kept_head", head.seq, says)
        for event in self.events.values():
            for breach in event.end():
                self._violations.add(
                    Violation(
                        breach.rule,
                        self.partition,
                        breach.seq,
                        event.event_id,
                        breach.user_id,
                        breach.says,
                    )
                )

    def _check_lineage(self) -> None:
        """Hold each epoch on record against those before: it begins at a change of theirs."""
        known = Lineage()
        for epoch in self._lineage.epochs:
            predecessor = known.position_of(epoch.beginning).epoch
            is_first = known.newest is None
            if (epoch.predecessor, epoch.verdict == "begin") != (predecessor, is_first):
                says = (
                    f"the table epochs has epoch {epoch.epoch}, verdict {epoch.verdict}, after seq"
                    f" {epoch.beginning} of epoch {epoch.predecessor}; that seq is of epoch"
                    f" {predecessor}"
                )
                self._say("epoch", None, says)
            known.join(epoch)

    def _check_epoch(self, change: Change) -> None:
        """Each seq is of one epoch on the lineage, and each epoch's first change says so."""
        seq = change.seq
        if not self._begins < seq <= self._ends:
            self._epoch = self._lineage.position_of(seq).epoch
            self._begins = self._lineage.begins(self._epoch) or 0
            ends = self._lineage.ends(self._epoch)
            self._ends = _SEQ_MAX if ends is None else ends
        if change.epoch != self._epoch:
            says = f"is of epoch {change.epoch}; by the table epochs this seq is of {self._epoch}"
            self._note("epoch", change, says)
        elif seq != self._begins + 1:
            if change.kind == "epoch_began":
                self._note("epoch", change, "an epoch_began inside an epoch")
        elif change.kind != "epoch_began":
            self._note("epoch", change, f"epoch {change.epoch} begins without an epoch_began")
        else:
            self._check_began(change)

    def _check_began(self, change: Change) -> None:
        row = self._lineage.epoch(change.epoch)
        assert row is not None  # it is the epoch of this seq
        wanted = {"beginning": row.beginning, "predecessor": row.predecessor}
        if _object(change.details) != wanted:
            says = f"says {change.details}; the table epochs says {json.dumps(wanted)}"
            self._note("epoch", change, says)

    def _unreadable(self, change: Change) -> str:
        """Return what is wrong with a row by itself, empty for one that a script can have written.

        The words that the hash covers are read back from such a row in one way only.
        """
        if change.kind == "epoch_began":
            if change.event_id is None and change.user_id is None and change.details:
                return ""
            return "an epoch_began with an event or a user, or without details"
        if change.kind != "opened" and change.kind not in STATUS_AFTER:
            return f"{change.kind!r} is no kind of change"
        if change.event_id is None or not 0 < change.event_id <= ID_MAX:
            return f"{change.kind} is about event {change.event_id}"
        if partition_of(change.event_id, self._partitions) != self.partition:
            return f"event {change.event_id} is not of this partition"
        if change.kind == "opened":
            is_one = None not in _opening(change) and change.user_id is None
            return "" if is_one else f"opened with {change.details}"
        if change.user_id is None or parse_user_id(change.user_id) is None:
            return f"{change.kind} is about user {change.user_id!r}"
        if change.details is None or keyed_of(change.kind, change.details):
            return ""
        return f"{change.kind} with details {change.details!r}"

    def _take_letter(self, change: Change) -> None:
        """Remember what froze an event; the tables are as if it had not been."""
        self.letters += 1
        if change.event_id is None:
            self._note("dead_letter", change, "is about no event, and was set aside")
        else:
            self._frozen.setdefault(change.event_id, change.seq)

    def _replay(self, change: Change, event_id: int) -> None:
        if event_id in self._frozen:
            says = f"stands in the journal though change {self._frozen[event_id]} was set aside"
            self._note("dead_letter", change, says)
        event = self.events.get(event_id)
        if event is None:
            event = self.events[event_id] = AuditedReplay(event_id, self.partition)
            if change.kind != "opened":
                self._note("unlawful", change, f"{change.kind} before the event was opened")
        elif change.kind == "opened":
            self._note("unlawful", change, "opened, which it was before")
        if change.kind == "opened":
            event.open(change)
            return
        assert change.user_id is not None  # it is readable
        breaches = event.apply(change.seq, change.kind, change.user_id)
        if change.details and (keyed := keyed_of(change.kind, change.details)):
            breaches += event.keep(change, keyed)
        for rule, seq, user_id, says in breaches:
            self._violations.add(Violation(rule, self.partition, seq, event_id, user_id, says))

    def _in_words(self) -> str:
        return _head_in_words(self.head)

    def _note(self, rule: str, change: Change, says: str) -> None:
        violation = (rule, self.partition, change.seq, change.event_id, change.user_id, says)
        self._violations.add(Violation(*violation))

    def _say(self, rule: str, seq: int | None, says: str) -> None:
        self._violations.add(Violation(rule, self.partition, seq, None, None, says))


def _head_in_words(head: Head) -> str:
    return f"{head.epoch}-{head.seq} and hash {head.hash.hex()[:16] or 'none'}"


def _opening(change: Change) -> tuple[str | None, int | None]:
    """Return name and capacity, None for what is not there or of another type."""
    details = _object(change.details)
    name, capacity = details.get("name"), details.get("totalTickets")
    return name if type(name) is str else None, capacity if type(capacity) is int else None


def _object(details: str | None) -> dict[str, Any]:
    """Return details that are a JSON object, an empty one for all else."""
    try:
        found = json.loads(details or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
