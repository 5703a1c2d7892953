"""What changes come to: the rows of `events` and `bookings`, beside the journal that says why.

Inside the transaction that holds the cursor's lock, so that nobody else writes these rows; nothing
here begins, commits or decides. Invariant: the tables are what the journal's rows come to, in
order.
"""

from collections.abc import Sequence

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.errors import RefusedChangeError
from service.keyed import kept, keyed_of
from service.outbox import STATUS_AFTER, Change
from service.times import from_microseconds

_SOLD = {"booked": 1, "promoted": 1, "cancelled": -1}
_WAITING = {"waiting": 1, "promoted": -1, "left": -1}


class Projection:
    """The two tables, as a transaction writes them."""

    def __init__(self, connection: "asyncpg.Connection | PoolConnectionProxy") -> None:
        """Take the connection of the transaction."""
        self._connection = connection

    async def carry(self, changes: Sequence[Change]) -> None:
        """Carry changes over, in order. Raises RefusedChangeError, and what PostgreSQL raises."""
        await self._open_events([c for c in changes if c.kind == "opened"])
        await self._bookings(changes)
        await self._counters(changes)

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
