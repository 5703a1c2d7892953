"""What changes come to: the rows of `events` and `bookings`, beside the journal that says why.

Inside the transaction that holds the cursor's lock, so that nobody else writes these rows; nothing
here begins, commits or decides. Invariant: the tables are what the journal's rows come to, in
order.
"""

from collections.abc import Sequence

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.columns import as_numbers, as_words, words
from service.errors import RefusedChangeError
from service.keyed import kept, keyed_of
from service.outbox import STATUS_AFTER, Change
from service.rows import UserRows
from service.times import from_microseconds

_USERS = (
    "WITH booked AS (INSERT INTO bookings (event_id, user_id, status, seq, updated_at, keyed)"  # noqa: S608  # only parameters' numbers
    " SELECT coalesce(event_id, $12::bigint), user_id, coalesce(status, $13::text),"
    " coalesce(seq, $14::bigint + place), $1::timestamptz + after * interval '1 microsecond',"
    " coalesce(keyed, '') FROM (SELECT generate_series(1, $15::bigint) AS place"
    f", {as_numbers(2)} AS event_id, {as_words(3)} AS user_id"
    f", {as_words(4)} AS status, {as_numbers(5)} AS seq, {as_numbers(6)} AS after"
    f", {as_words(7)} AS keyed) AS changes"
    " ON CONFLICT (event_id, user_id) DO UPDATE SET status = excluded.status,"
    " seq = excluded.seq, updated_at = excluded.updated_at,"
    " keyed = CASE excluded.keyed WHEN '' THEN bookings.keyed ELSE excluded.keyed END)"
    " UPDATE events SET sold = events.sold + d.sold, waiting = events.waiting + d.waiting,"
    " updated_at = d.at FROM unnest($8::bigint[], $9::integer[], $10::integer[],"
    " $11::timestamptz[]) AS d (id, sold, waiting, at)"
    " WHERE events.id = d.id AND events.status = 'open' RETURNING events.id"
)
"""Both in one question: a commit of a few changes costs what its questions cost."""


class Projection:
    """The two tables, as a transaction writes them."""

    def __init__(self, connection: "asyncpg.Connection | PoolConnectionProxy") -> None:
        """Take the connection of the transaction."""
        self._connection = connection

    async def carry(self, changes: Sequence[Change], rows: UserRows | None) -> None:
        """Carry changes over, in order; `rows`: their users'.

        Raises RefusedChangeError, and what PostgreSQL raises.
        """
        await self._open_events([c for c in changes if c.kind == "opened"])
        if rows is not None:
            await self._users(changes, rows)

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
            await raise_event_ids(self._connection, max(change.event_id or 0 for change in opened))

    async def _users(self, changes: Sequence[Change], rows: UserRows) -> None:
        """Keep each user's last state (one may change several times in a batch), and the counters.

        A change about an event that is not on record is refused.
        """
        keyed = await self._keyed(changes)
        each_keyed = words([keyed.get(user, "") for user in rows.users]) if keyed else ""
        parameters = (*rows.parameters[:6], each_keyed, *rows.parameters[6:])
        done = await self._connection.fetch(_USERS, *parameters)
        if missing := sorted(set(rows.events) - {row["id"] for row in done}):
            msg = f"changes about events that are not on record: {missing}"
            raise RefusedChangeError(msg)

    async def _keyed(self, changes: Sequence[Change]) -> dict[tuple[int | None, str | None], str]:
        """Return what is kept of keyed changes, of those users alone who made one in the batch."""
        made = [
            (c, k)
            for c in changes
            if c.details and c.kind in STATUS_AFTER and (k := keyed_of(c.kind, c.details))
        ]
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


async def raise_event_ids(
    connection: "asyncpg.Connection | PoolConnectionProxy", highest: int
) -> None:
    """Have no id drawn that an event has already: a restored record forgets what it drew.

    Not undone by a rollback: an id that is left out does no harm. Nor does one that another
    partition has raised in between, and this sets back: the next draw raises it again.
    """
    await connection.execute(
        "SELECT setval('events_id_seq', $1) FROM events_id_seq"
        " WHERE last_value < $1 OR (last_value = $1 AND NOT is_called)",
        highest,
    )
