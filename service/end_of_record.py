"""How a record ends that may have gone back, and whether it is of one moment: for a replay.

Asked inside the transaction that holds the cursor's lock; reads only.
"""

from dataclasses import dataclass

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.outbox import Change
from service.times import to_microseconds


@dataclass(frozen=True, slots=True)
class JournalEnd:
    """The last change of a record, a dead letter included, and the hash of its row."""

    change: Change
    hash: bytes


class EndOfRecord:
    """What a replay asks. Methods raise what `UNAVAILABLE` lists."""

    def __init__(self, connection: "asyncpg.Connection | PoolConnectionProxy") -> None:
        """Work on the connection of an `Application`."""
        self._connection = connection

    async def journal_end(self, partition: int) -> JournalEnd | None:
        """Return the record's last change, wherever the cursor is; None when it has none."""
        row = await self._connection.fetchrow(
            "SELECT * FROM (SELECT seq, epoch, at, kind, event_id, user_id, details, hash"
            " FROM journal WHERE partition = $1 ORDER BY seq DESC LIMIT 1) AS recorded"
            " UNION ALL SELECT * FROM (SELECT seq, epoch, at, kind, event_id, user_id, details,"
            " hash FROM dead_letters WHERE partition = $1 ORDER BY seq DESC LIMIT 1) AS aside"
            " ORDER BY seq DESC LIMIT 1",
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
