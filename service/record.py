"""The transaction in which changes go on record, from the inside: the writer's, and a replay's.

Made by `Ledger.applying`, which holds the cursors' locks; nothing here begins, commits or decides.
Times are PostgreSQL's to store and never to order by: order is seq.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.errors import RefusedChangeError
from service.keyed import kept, keyed_of
from service.lineage import Epoch, Lineage, Position
from service.outbox import STATUS_AFTER, Change

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


@dataclass(frozen=True, slots=True)
class JournalEnd:
    """The last change of a journal, and the hash of its row."""

    change: Change
    hash: bytes


class Application:
    """The inside of a transaction that holds the locks of cursors."""

    def __init__(
        self,
        connection: "asyncpg.Connection | PoolConnectionProxy",
        cursors: Mapping[int, Cursor],
        lineages: Mapping[int, Lineage],
    ) -> None:
        """Made by `Ledger.applying`."""
        self._connection = connection
        self.cursors = cursors
        self.lineages = dict(lineages)

    async def record(self, partition: int, changes: Sequence[Change]) -> Position:
        """Write changes, in order, to journal, events and bookings; move the cursor to the last."""
        head = await self._journal(partition, changes)
        await self._open_events([c for c in changes if c.kind == "opened"])
        await self._bookings(changes)
        await self._counters(changes)
        last = Position(changes[-1].epoch, changes[-1].seq)
        await self._connection.execute(
            "UPDATE cursors SET epoch = $2, seq = $3, head = $4, updated_at = now()"
            " WHERE partition = $1",
            partition,
            last.epoch,
            last.seq,
            head,
        )
        return last

    async def _journal(self, partition: int, changes: Sequence[Change]) -> bytes:
        head = self.cursors[partition].head
        hashes: list[bytes] = []
        for change in changes:
            head = chain(head, partition, change)
            hashes.append(head)
        await self._connection.execute(
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
            hashes,
        )
        return head

    async def _open_events(self, opened: Sequence[Change]) -> None:
        """Open the events' rows; one that was lost with its draw is made anew."""
        for change in opened:
            await self._connection.execute(
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
        await self._connection.execute(
            "SELECT setval('events_id_seq', $1) FROM events_id_seq"
            " WHERE last_value < $1 OR (last_value = $1 AND NOT is_called)",
            highest,
        )

    async def _bookings(self, changes: Sequence[Change]) -> None:
        """Keep each user's last state: a user may change several times in a batch."""
        latest = {(c.event_id, c.user_id): c for c in changes if c.kind in STATUS_AFTER}
        if not latest:
            return
        users = list(latest.values())
        keyed = await self._keyed(changes)
        await self._connection.execute(
            "INSERT INTO bookings (event_id, user_id, status, seq, updated_at, keyed)"
            " SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[],"
            " $5::timestamptz[], $6::text[])"
            " ON CONFLICT (event_id, user_id) DO UPDATE SET status = excluded.status,"
            " seq = excluded.seq, updated_at = excluded.updated_at,"
            " keyed = CASE excluded.keyed WHEN '' THEN bookings.keyed ELSE excluded.keyed END",
            [c.event_id for c in users],
            [c.user_id for c in users],
            [STATUS_AFTER[c.kind] for c in users],
            [c.seq for c in users],
            [from_microseconds(c.at) for c in users],
            [keyed.get((c.event_id, c.user_id), "") for c in users],
        )

    async def _keyed(self, changes: Sequence[Change]) -> dict[tuple[int | None, str | None], str]:
        """Return what is kept of keyed changes, of those users alone who made one in the batch."""
        made = [(c, k) for c in changes if c.details and (k := keyed_of(c.kind, c.details))]
        if not made:
            return {}
        # Nobody else writes these rows: the cursor's lock is held.
        rows = await self._connection.fetch(
            "SELECT event_id, user_id, keyed FROM bookings"
            " JOIN unnest($1::bigint[], $2::text[]) AS made (event, who)"
            " ON event_id = event AND user_id = who",
            [c.event_id for c, _ in made],
            [c.user_id for c, _ in made],
        )
        held = {(row["event_id"], row["user_id"]): row["keyed"] for row in rows}
        for change, keyed in made:
            user = (change.event_id, change.user_id)
            held[user] = kept(held.get(user, ""), keyed, change.seq)
        return held

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
        done = await self._connection.fetch(
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

    # What a replay asks of a record that went back.

    async def journal_end(self, partition: int) -> JournalEnd | None:
        """Return the journal's last row, wherever the cursor is; None when it has none."""
        row = await self._connection.fetchrow(
            "SELECT seq, epoch, at, kind, event_id, user_id, details, hash FROM journal"
            " WHERE partition = $1 ORDER BY seq DESC LIMIT 1",
            partition,
        )
        if row is None:
            return None
        seq, epoch, at, kind, event_id, user_id, details, hash_ = row
        change = Change(seq, epoch, to_microseconds(at), kind, event_id, user_id, details)
        return JournalEnd(change, hash_)

    async def events_that_do_not_add_up(self, partition: int) -> list[int]:
        """Return some events whose counters are not what their users' rows add up to, by id."""
        rows = await self._connection.fetch(
            "SELECT id FROM events LEFT JOIN (SELECT event_id,"
            " count(*) FILTER (WHERE status = 'booked') AS booked,"
            " count(*) FILTER (WHERE status = 'waiting') AS queued"
            " FROM bookings GROUP BY event_id) AS counted ON event_id = id"
            " WHERE id % (SELECT partitions FROM deployment) = $1"
            " AND (sold, waiting) IS DISTINCT FROM (coalesce(booked, 0), coalesce(queued, 0))"
            " ORDER BY id LIMIT 10",
            partition,
        )
        return [row["id"] for row in rows]

    async def make_good(self, partition: int, epochs: Sequence[Epoch], reason: str) -> None:
        """Put epochs on record that were lost with it; those that had stayed closed are none.

        The number of one that stayed closed may be met: on the record that is gone it was another.
        """
        for epoch in epochs:
            await self._connection.execute(
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
