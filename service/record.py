"""The transaction in which changes go on record, from the inside: the writer's, and a replay's.

Made by `Ledger.applying`, which holds the cursors' locks; nothing here begins, commits or decides.
Times are PostgreSQL's to store and never to order by: order is seq.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.errors import RefusedChangeError
from service.letters import LetterRow, Letters
from service.lineage import Epoch, Lineage, Position
from service.outbox import STATUS_AFTER, Change
from service.sqlstates import refusing

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_SOLD = {"booked": 1, "promoted": 1, "cancelled": -1}
_WAITING = {"waiting": 1, "promoted": -1, "left": -1}


def from_microseconds(at: int) -> datetime:
    """Return a time of Redis's clock as PostgreSQL stores it, to the microsecond."""
    return _EPOCH_START + timedelta(microseconds=at)


def to_microseconds(at: datetime) -> int:
    """Return a stored time as Redis's clock counts it."""
    return (at - _EPOCH_START) // timedelta(microseconds=1)


def chain(head: bytes, partition: int, change: Change) -> bytes:
    """Return the hash of a journal row: SHA-256 over the one before and every word of this one."""
    words = (
        partition,
        change.seq,
        change.epoch,
        change.at,
        change.kind,
        "-" if change.event_id is None else change.event_id,
        change.user_id or "-",
        change.details or "-",
    )
    return sha256(head + " ".join(map(str, words)).encode()).digest()


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


class Application:
    """The inside of a transaction that holds the locks of cursors."""

    def __init__(
        self,
        connection: "asyncpg.Connection | PoolConnectionProxy",
        cursors: Mapping[int, Cursor],
        lineages: Mapping[int, Lineage],
    ) -> None:
        """Made by `Ledger.applying`."""
        self.connection = connection
        self.cursors = cursors
        self.letters = Letters(connection)
        self.lineages = dict(lineages)

    async def record(
        self, partition: int, changes: Sequence[Change], refused: Mapping[int, Refused] = _NOTHING
    ) -> Position:
        """Write changes, in order, to journal, events and bookings; move the cursor to the last.

        Changes of a frozen event follow its dead letters instead; so do, of the events in
        `refused`, those from the refused one on. The chain of hashes runs over all of them.
        """
        head = self.cursors[partition].head
        hashes: dict[int, bytes] = {}
        for change in changes:
            hashes[change.seq] = head = chain(head, partition, change)
        aside = await self._set_aside(partition, changes, hashes, refused)
        await self._place(partition, [c for c in changes if c.seq not in aside], hashes)
        last = Position(changes[-1].epoch, changes[-1].seq)
        await self.connection.execute(
            "UPDATE cursors SET epoch = $2, seq = $3, head = $4, updated_at = now()"
            " WHERE partition = $1",
            partition,
            last.epoch,
            last.seq,
            head,
        )
        return last

    async def restore(
        self, partition: int, changes: Sequence[Change], hashes: Mapping[int, bytes]
    ) -> None:
        """Put dead letters of one event on record after all, at their own seqs, in order.

        They are still in their table afterwards, and the cursor stays where it is.
        """
        async with self.savepoint():
            await self._place(partition, changes, hashes)

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
        about = {c.event_id for c in changes if c.event_id is not None}
        frozen = await self.letters.frozen_among(about)
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
        return {row.seq for row in rows}

    async def _place(
        self, partition: int, changes: Sequence[Change], hashes: Mapping[int, bytes]
    ) -> None:
        """Write changes to the journal, and what they come to."""
        await self._journal(partition, changes, hashes)
        await self._open_events([c for c in changes if c.kind == "opened"])
        await self._bookings(changes)
        await self._counters(changes)

    async def _journal(
        self, partition: int, changes: Sequence[Change], hashes: Mapping[int, bytes]
    ) -> None:
        await self.connection.execute(
            "INSERT INTO journal"
            " (partition, seq, epoch, at, kind, event_id, user_id, details, hash)"
            " SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::timestamptz[], $5::text[],"
            " $6::bigint[], $7::text[], $8::text[], $9::bytea[])",
            partition,
            [c.seq for c in changes],
            [c.epoch for c in changes],
            [from_microseconds(c.at) for c in changes],
            [c.kind for c in changes],
            [c.event_id for c in changes],
            [c.user_id for c in changes],
            [c.details for c in changes],
            [hashes[c.seq] for c in changes],
        )

    async def _open_events(self, opened: Sequence[Change]) -> None:
        """Open the events' rows; one that was lost with its draw is made anew."""
        for change in opened:
            await self.connection.execute(
                "INSERT INTO events (id, status, name, capacity, created_at, updated_at)"
                " SELECT $1, 'open', d->>'name', (d->>'totalTickets')::integer, $3, $3"
                " FROM (SELECT $2::jsonb AS d) AS details"
                " ON CONFLICT (id) DO UPDATE SET status = 'open', name = excluded.name,"
                " capacity = excluded.capacity, created_at = excluded.created_at,"
                " updated_at = excluded.updated_at",
                change.event_id,
                change.details,
                from_microseconds(change.at),
            )

        if opened:
            await self._raise_event_ids(max(change.event_id or 0 for change in opened))

    async def _raise_event_ids(self, highest: int) -> None:
        """Have no id drawn that an event has already: a restored record forgets what it drew.

        Never lowered, and not undone by a rollback: an id that is left out does no harm.
        """
        await self.connection.execute(
            "SELECT setval('events_id_seq', $1) FROM events_id_seq"
            " WHERE last_value < $1 OR (last_value = $1 AND NOT is_called)",
            highest,
        )

    async def _bookings(self, changes: Sequence[Change]) -> None:
        """Keep each user's last state: a user may change several times in a batch."""
        latest = {(c.event_id, c.user_id): c for c in changes if c.kind in STATUS_AFTER}
        if not latest:
            return
        kept = list(latest.values())
        await self.connection.execute(
            "INSERT INTO bookings (event_id, user_id, status, seq, updated_at)"
            " SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[],"
            " $5::timestamptz[])"
            " ON CONFLICT (event_id, user_id) DO UPDATE SET status = excluded.status,"
            " seq = excluded.seq, updated_at = excluded.updated_at",
            [c.event_id for c in kept],
            [c.user_id for c in kept],
            [STATUS_AFTER[c.kind] for c in kept],
            [c.seq for c in kept],
            [from_microseconds(c.at) for c in kept],
        )

    async def _counters(self, changes: Sequence[Change]) -> None:
        """Net of the batch; a change about an event that is not on record is refused."""
        sold: dict[int, int] = {}
        waiting: dict[int, int] = {}
        latest: dict[int, int] = {}
        for change in changes:
            if change.event_id is None or change.kind not in STATUS_AFTER:
                continue
            event_id = change.event_id
            sold[event_id] = sold.get(event_id, 0) + _SOLD.get(change.kind, 0)
            waiting[event_id] = waiting.get(event_id, 0) + _WAITING.get(change.kind, 0)
            latest[event_id] = change.at
        if not latest:
            return
        ids = list(latest)
        done = await self.connection.fetch(
            "UPDATE events SET sold = events.sold + d.sold, waiting = events.waiting + d.waiting,"
            " updated_at = d.at FROM unnest($1::bigint[], $2::integer[], $3::integer[],"
            " $4::timestamptz[]) AS d (id, sold, waiting, at)"
            " WHERE events.id = d.id AND events.status = 'open' RETURNING events.id",
            ids,
            [sold[i] for i in ids],
            [waiting[i] for i in ids],
            [from_microseconds(latest[i]) for i in ids],
        )
        if missing := sorted(set(ids) - {row["id"] for row in done}):
            msg = f"changes about events that are not on record: {missing}"
            raise RefusedChangeError(msg)

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
                " reason = excluded.reason, decided_at = excluded.decided_at"
                " WHERE epochs.beginning IS NULL",
                partition,
                epoch.epoch,
                epoch.verdict,
                epoch.beginning,
                epoch.predecessor,
                reason,
            )
            self.lineages[partition] = self.lineages[partition].joined(epoch)
