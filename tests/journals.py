"""Journals as the writer would have written them, made by the reference model; and forged ones."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from service.journal_replay import JournalReplay
from service.journal_view import JournalRow
from service.lineage import NOWHERE, Epoch, Lineage, Position
from service.outbox import Change
from service.record import Cursor
from service.rows import chain
from service.violations import Head, Violation, Violations
from tests.model import PartitionModel

FIRST_AT = 1_795_339_997_000_000
"""Microseconds: 2026-11-22T09:33:17Z."""


class Sale:
    """A partition's changes, as the model makes them, with its epochs."""

    def __init__(self, partition: int = 0, partitions: int = 1) -> None:
        self.partition = partition
        self.partitions = partitions
        self.model = PartitionModel()
        self.epochs: list[Epoch] = []
        self.changes: list[Change] = []
        self._taken = 0
        self.begin()

    def begin(self, epoch: int = 0) -> None:
        """Begin the next epoch, or this one."""
        self._take()
        before = self.epochs[-1].epoch if self.epochs else 0
        verdict = "rebuild" if before else "begin"
        self.epochs.append(Epoch(epoch or before + 1, self.model.seq, before, verdict))
        details = {"beginning": self.model.seq, "predecessor": before}
        self.model.seq += 1
        self._put(self.model.seq, "epoch_began", None, None, json.dumps(details))

    def open(self, event_id: int, capacity: int, name: str = "First night") -> None:
        self._take()
        if self.model.open(event_id, capacity).outcome == "OPENED":
            self.model.changes.pop()
            details = {"name": name, "totalTickets": capacity}
            self._put(self.model.seq, "opened", event_id, None, json.dumps(details))

    def book(self, event_id: int, *users: str, keyed: str = "") -> None:
        for user in users:
            self.model.book(event_id, user, keyed)
        self._take()

    def cancel(self, event_id: int, *users: str, keyed: str = "") -> None:
        for user in users:
            self.model.cancel(event_id, user, keyed)
        self._take()

    @property
    def lineage(self) -> Lineage:
        return Lineage(self.epochs)

    def rows(self, changes: Iterable[Change] | None = None) -> list[JournalRow]:
        """Return these changes, or its own, each with the hash that the writer would have made."""
        return hashed(self.partition, self.changes if changes is None else changes)

    def forged(self, seq: int, **words: Any) -> list[JournalRow]:
        """Return the journal with a row changed and every hash from there on made anew."""
        return self.rows(c._replace(**words) if c.seq == seq else c for c in self.changes)

    def edited(self, seq: int, **words: Any) -> list[JournalRow]:
        """Return the journal with a row changed and its hash left."""
        return [
            row._replace(change=row.change._replace(**words)) if row.change.seq == seq else row
            for row in self.rows()
        ]

    def _take(self) -> None:
        new = self.model.changes[self._taken :]
        self._taken = len(self.model.changes)
        for change in new:
            self._put(change.seq, change.kind, change.event, change.user, change.details)

    def _put(
        self, seq: int, kind: str, event: int | None, user: str | None, details: str | None
    ) -> None:
        at = FIRST_AT + 1_000 * seq
        self.changes.append(Change(seq, self.epochs[-1].epoch, at, kind, event, user, details))


def hashed(partition: int, changes: Iterable[Change]) -> list[JournalRow]:
    """Return rows whose hashes follow from one another."""
    head = b""
    rows = []
    for change in changes:
        head = chain(head, partition, change)
        rows.append(JournalRow(change, head))
    return rows


def cursor_at(rows: Sequence[JournalRow]) -> Cursor:
    """Return the cursor that the writer leaves behind these rows."""
    if not rows:
        return Cursor(NOWHERE, b"")
    change, hash_, _ = rows[-1]
    return Cursor(Position(change.epoch, change.seq), hash_)


def replay(
    sale: Sale,
    rows: Sequence[JournalRow] | None = None,
    *,
    cursor: Cursor | None = None,
    lineage: Lineage | None = None,
    kept: Sequence[Head] = (),
    only: Sequence[int] | None = None,
) -> tuple[JournalReplay, Violations]:
    """Replay rows, or the sale's own, up to their end."""
    rows = sale.rows() if rows is None else rows
    violations = Violations()
    replayed = JournalReplay(
        sale.partition,
        sale.partitions,
        cursor or cursor_at(rows),
        lineage or sale.lineage,
        violations,
        kept=kept,
        only=only,
    )
    for change, hash_, reason in rows:
        replayed.take(change, hash_, reason)
    replayed.end()
    return replayed, violations


def violated(
    sale: Sale, rows: Sequence[JournalRow] | None = None, **options: Any
) -> list[Violation]:
    """Return what a replay finds."""
    return replay(sale, rows, **options)[1].kept
