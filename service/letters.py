"""The table `dead_letters`: changes that PostgreSQL refused, kept whole, in order, out of the way.

An event is frozen as long as it has a row here: there is no second mark on record that could say
otherwise. Nothing here begins or commits, and nothing decides; rows are given as they are stored.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy


class LetterRow(NamedTuple):
    """A change as it is stored, with its hash in the chain; `reason` says why it is here."""

    seq: int
    epoch: int
    at: datetime
    kind: str
    event_id: int
    user_id: str | None
    details: str | None
    hash: bytes
    reason: str


class Letters:
    """What is kept. Methods raise what `UNAVAILABLE` lists."""

    def __init__(self, connection: "asyncpg.Connection | PoolConnectionProxy") -> None:
        """Work on a connection, inside whatever transaction it is in."""
        self._connection = connection

    async def frozen(self, partition: int) -> dict[int, int]:
        """Return the frozen events of a partition, by id, each with the number of its letters."""
        rows = await self._connection.fetch(
            "SELECT event_id, count(*) AS letters FROM dead_letters WHERE partition = $1"
            " GROUP BY event_id ORDER BY event_id",
            partition,
        )
        return {row["event_id"]: row["letters"] for row in rows}

    async def frozen_among(self, event_ids: Collection[int]) -> set[int]:
        """Return those of the events that are frozen."""
        rows = await self._connection.fetch(
            "SELECT id FROM unnest($1::bigint[]) AS asked (id)"
            " WHERE EXISTS (SELECT FROM dead_letters WHERE event_id = id)",
            list(event_ids),
        )
        return {row["id"] for row in rows}

    async def counted(self) -> dict[int, int]:
        """Return the number of letters of each partition that has any."""
        rows = await self._connection.fetch(
            "SELECT partition, count(*) AS letters FROM dead_letters GROUP BY partition"
        )
        return {row["partition"]: row["letters"] for row in rows}

    async def kept(self, event_id: int | None = None) -> list[asyncpg.Record]:
        """Return all letters, or an event's, by partition and seq."""
        return list(
            await self._connection.fetch(
                "SELECT partition, seq, epoch, at, kind, event_id, user_id, details, hash, reason,"
                " moved_at FROM dead_letters"
                " WHERE $1::bigint IS NULL OR event_id = $1 ORDER BY partition, seq",
                event_id,
            )
        )

    async def holds(self, partition: int, seqs: Collection[int]) -> bool:
        """Whether all changes with these seqs are dead letters."""
        found = await self._connection.fetchval(
            "SELECT count(*) FROM dead_letters WHERE partition = $1 AND seq = ANY($2)",
            partition,
            list(seqs),
        )
        return bool(found == len({*seqs}))

    async def put(self, partition: int, rows: Sequence[LetterRow]) -> None:
        """Keep changes. For who holds the cursor's lock."""
        columns = [list(column) for column in zip(*rows, strict=True)]
        await self._connection.execute(
            "INSERT INTO dead_letters"
            " (partition, seq, epoch, at, kind, event_id, user_id, details, hash, reason)"
            " SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::timestamptz[], $5::text[],"
            " $6::bigint[], $7::text[], $8::text[], $9::bytea[], $10::text[])",
            partition,
            *columns,
        )

    async def remove(self, event_id: int) -> None:
        """Let an event's letters go, once they are in the journal."""
        await self._connection.execute("DELETE FROM dead_letters WHERE event_id = $1", event_id)

    async def note(self, partition: int, seq: int, reason: str) -> None:
        """Say anew why a letter is here."""
        await self._connection.execute(
            "UPDATE dead_letters SET reason = $3 WHERE partition = $1 AND seq = $2",
            partition,
            seq,
            reason,
        )
