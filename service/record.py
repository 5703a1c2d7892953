"""The transaction in which changes go on record, from the inside: the writer's, and a replay's.

Made by `Ledger.applying`, which holds the cursors' locks; nothing here begins, commits or decides.
Times are PostgreSQL's to store and never to order by: order is seq.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.columns import as_numbers, as_words
from service.letters import LetterRow, Letters
from service.lineage import Epoch, Lineage, Position
from service.outbox import Change
from service.projection import Projection
from service.rows import Rows, chained, rows_of
from service.sqlstates import refusing
from service.times import from_microseconds, to_microseconds


def change_of(row: asyncpg.Record) -> Change:
    """Return the change that a row of the journal holds, its hash apart."""
    return Change(
        seq=row["seq"],
        epoch=row["epoch"],
        at=to_microseconds(row["at"]),
        kind=row["kind"],
        event_id=row["event_id"],
        user_id=row["user_id"],
        details=row["details"],
    )


@dataclass(frozen=True, slots=True)
class Cursor:
    """P: the last change on record, and the hash of its journal row."""

    last: Position
    head: bytes


class Refused(NamedTuple):
    """The first change of an event that cannot go on record, and why."""

    seq: int
    reason: str


_NOTHING: Mapping[int, Refused] = {}

_JOURNAL = (
    "INSERT INTO journal (partition, seq, epoch, at, kind, event_id, user_id, details, hash)"  # noqa: S608  # only parameters' numbers
    " SELECT $1::integer, coalesce(seq, $12::bigint + place), coalesce(epoch, $13::bigint),"
    " $2::timestamptz + after * interval '1 microsecond', coalesce(kind, $14::text),"
    " coalesce(event_id, $15::bigint), user_id, coalesce(details, $16::text),"
    " substring($3::bytea FROM (place * 32 - 31)::integer FOR 32)"
    " FROM (SELECT generate_series(1, $4::bigint) AS place"
    f", {as_numbers(5)} AS seq, {as_numbers(6)} AS epoch, {as_numbers(7)} AS after"
    f", {as_words(8)} AS kind, {as_numbers(9)} AS event_id, {as_words(10)} AS user_id"
    f", {as_words(11)} AS details) AS changes"
)
_JOURNAL_AND_CURSOR = (
    "WITH moved AS (UPDATE cursors SET epoch = $17, seq = $18, head = $19, updated_at = now()"  # noqa: S608  # only parameters' numbers
    " WHERE partition = $1) " + _JOURNAL
)
"""Both in one question: a commit of a few changes costs what its questions cost."""


class Application:
    """The inside of a transaction that holds the locks of cursors."""

    def __init__(
        self,
        connection: "asyncpg.Connection | PoolConnectionProxy",
        cursors: Mapping[int, Cursor],
        lineages: Mapping[int, Lineage],
        *,
        has_letters: bool,
    ) -> None:
        """Made by `Ledger.applying`; `has_letters`: whether any event is frozen."""
        self.connection = connection
        self.cursors = cursors
        self.letters = Letters(connection)
        self.lineages = dict(lineages)
        self._has_letters = has_letters

    async def record(
        self,
        partition: int,
        changes: Sequence[Change],
        refused: Mapping[int, Refused] = _NOTHING,
        rows: Rows | None = None,
    ) -> Position:
        """Write changes, in order, to journal, events and bookings; move the cursor to the last.

        Changes of a frozen event follow its dead letters instead; so do, of the events in
        `refused`, those from the refused one on. The chain of hashes runs over all of them.
        `rows`: what `rows_of` made of the same changes, good if it was for this head.
        """
        after = self.cursors[partition].head
        if rows is None or rows.after != after:
            rows = rows_of(after, changes, chained(after, partition, changes))
        head, placed = rows.head, changes
        aside = await self._set_aside(partition, changes, rows.hashes, refused)
        if aside:
            placed = [c for c in changes if c.seq not in aside]
            rows = rows_of(after, placed, rows.hashes)
        last = Position(changes[-1].epoch, changes[-1].seq)
        await self.connection.execute(
            _JOURNAL_AND_CURSOR, partition, *rows.journal, last.epoch, last.seq, head
        )
        await Projection(self.connection).carry(placed, rows.users)
        return last

    async def restore(
        self, partition: int, changes: Sequence[Change], hashes: Mapping[int, bytes]
    ) -> None:
        """Put dead letters of one event on record after all, at their own seqs, in order.

        They are still in their table afterwards, and the cursor stays where it is.
        """
        async with self.savepoint():
            rows = rows_of(b"", changes, hashes)
            await self.connection.execute(_JOURNAL, partition, *rows.journal)
            await Projection(self.connection).carry(changes, rows.users)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo what was done inside if it raises. A refused change raises RefusedChangeError."""
        with refusing():
            async with self.connection.transaction():
                yield

    async def _set_aside(
        self,
        partition: int,
        changes: Sequence[Change],
        hashes: Mapping[int, bytes],
        refused: Mapping[int, Refused],
    ) -> set[int]:
        """Make dead letters of what must not go on record; return their seqs."""
        frozen: set[int] = set()
        if self._has_letters:
            about = {c.event_id for c in changes if c.event_id is not None}
            frozen = await self.letters.frozen_among(about)
        if not (frozen or refused):
            return set()
        rows = []
        for c in changes:
            if c.event_id is None:
                continue
            first = refused.get(c.event_id)
            if c.event_id in frozen:
                reason = "its event is frozen"
            elif first is None or c.seq < first.seq:
                continue
            else:
                reason = first.reason if c.seq == first.seq else f"follows change {first.seq}"
            rows.append(
                LetterRow(
                    *(c.seq, c.epoch, from_microseconds(c.at), c.kind, c.event_id),
                    *(c.user_id, c.details, hashes[c.seq], reason),
                )
            )
        if rows:
            await self.letters.put(partition, rows)
            self._has_letters = True
        return {row.seq for row in rows}

    async def make_good(self, partition: int, epochs: Sequence[Epoch], reason: str) -> None:
        """Put epochs on record that were lost with it; those that had stayed closed are none.

        The number of one that stayed closed may be met: on the record that is gone it was another.
        """
        for epoch in epochs:
            await self.connection.execute(
                "INSERT INTO epochs (partition, epoch, verdict, beginning, predecessor, reason)"
                " VALUES ($1, $2, $3, $4, $5, $6)"
                " ON CONFLICT (partition, epoch) DO UPDATE SET verdict = excluded.verdict,"
                " beginning = excluded.beginning, predecessor = excluded.predecessor,"
                " reason = excluded.reason, decided_at = excluded.decided_at,"
                " lost_epoch = NULL, lost_first = NULL, lost_last = NULL, confirmed_at = NULL"
                " WHERE epochs.beginning IS NULL",
                partition,
                epoch.epoch,
                epoch.verdict,
                epoch.beginning,
                epoch.predecessor,
                reason,
            )
            self.lineages[partition].join(epoch)
