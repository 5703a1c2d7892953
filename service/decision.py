"""The transaction in which a handshake decides, from the inside.

Made by `Ledger.deciding`, which holds the cursor's lock; nothing here begins, commits or decides.
"""

from collections.abc import Sequence

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.lineage import Lineage, Position
from service.outbox import Change
from service.record import from_microseconds


class Decision:
    """The inside of the handshake's transaction: P and the lineage, standing still."""

    def __init__(
        self,
        connection: "asyncpg.Connection | PoolConnectionProxy",
        partition: int,
        recorded: Position | None,
        lineage: Lineage,
    ) -> None:
        """Made by `Ledger.deciding`. `recorded` is None where the partition was never begun."""
        self._connection = connection
        self._partition = partition
        self.recorded = recorded
        self.lineage = lineage

    async def put_epoch(
        self,
        epoch: int,
        verdict: str,
        beginning: int | None,
        predecessor: int | None,
        reason: str,
    ) -> None:
        """Put an epoch on record; `begin` also makes the partition's cursor."""
        await self._connection.execute(
            "INSERT INTO epochs (partition, epoch, verdict, beginning, predecessor, reason)"
            " VALUES ($1, $2, $3, $4, $5, $6)",
            self._partition,
            epoch,
            verdict,
            beginning,
            predecessor,
            reason,
        )
        if self.recorded is None:
            await self._connection.execute(
                "INSERT INTO cursors (partition, epoch, seq, head) VALUES ($1, 0, 0, '')",
                self._partition,
            )

    async def put_orphans(self, changes: Sequence[Change], found_by: int) -> None:
        """Keep changes that no lineage leads to."""
        await self._connection.executemany(
            "INSERT INTO orphans (partition, epoch, seq, at, kind, event_id, user_id, details,"
            " found_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            [
                (
                    self._partition,
                    c.epoch,
                    c.seq,
                    from_microseconds(c.at),
                    c.kind,
                    c.event_id,
                    c.user_id,
                    c.details,
                    found_by,
                )
                for c in changes
            ],
        )
