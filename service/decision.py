"""The transaction in which a handshake decides, from the inside.

Made by `Ledger.deciding`, which holds the cursor's lock; nothing here begins, commits or decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.lineage import Lineage, Position
from service.losses import Loss
from service.outbox import Change
from service.times import from_microseconds


@dataclass(frozen=True, slots=True)
class ClosedEpoch:
    """Why a partition stays closed at the moment; `loss` is None where nothing can be confirmed."""

    epoch: int
    reason: str
    since: datetime
    loss: Loss | None
    confirmed: bool


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
        loss: Loss | None = None,
    ) -> None:
        """Put an epoch on record; the first of a partition also makes its cursor."""
        await self._connection.execute(
            "INSERT INTO epochs (partition, epoch, verdict, beginning, predecessor, reason,"
            " lost_epoch, lost_first, lost_last) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            self._partition,
            epoch,
            verdict,
            beginning,
            predecessor,
            reason,
            loss.epoch if loss else None,
            loss.first if loss else None,
            loss.last if loss else None,
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

    async def confirmed_losses(self) -> list[Loss]:
        """Return what operators have confirmed to be lost."""
        rows = await self._connection.fetch(
            "SELECT lost_epoch, lost_first, lost_last FROM epochs"
            " WHERE partition = $1 AND confirmed_at IS NOT NULL",
            self._partition,
        )
        return [Loss(*row) for row in rows]

    async def closed_epoch(self) -> ClosedEpoch | None:
        """Return the newest epoch if it is one that stays closed."""
        row = await self._connection.fetchrow(
            "SELECT epoch, verdict, reason, decided_at, lost_epoch, lost_first, lost_last,"
            " confirmed_at FROM epochs WHERE partition = $1 ORDER BY epoch DESC LIMIT 1",
            self._partition,
        )
        if row is None or row["verdict"] != "stay_closed":
            return None
        return ClosedEpoch(
            row["epoch"],
            row["reason"],
            row["decided_at"],
            Loss(row["lost_epoch"], row["lost_first"], row["lost_last"])
            if row["lost_epoch"] is not None
            else None,
            row["confirmed_at"] is not None,
        )

    async def confirm(self, epoch: int) -> None:
        """Put on record that an operator has confirmed what an epoch stays closed for."""
        await self._connection.execute(
            "UPDATE epochs SET confirmed_at = now()"
            " WHERE partition = $1 AND epoch = $2 AND confirmed_at IS NULL",
            self._partition,
            epoch,
        )
