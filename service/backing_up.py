"""Takes a backup while the sale is open: the record, at or after what Redis has answered by now.

What Redis holds at a seq follows from the record up to that seq, and a rebuild makes it: so a
record at one seq per partition is both stores at that seq. R is read of every partition first;
once P has reached it, all tables are read in one snapshot. Neither store is changed, and nobody
waits.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from service.backup_files import (
    BackedUpPartition,
    BackedUpTable,
    Manifest,
    NewBackup,
    new_backup,
)
from service.ledger import TABLES
from service.lineage import NOWHERE, Position
from service.record_tables import RecordTables
from service.redis_store import RedisStore

_POLL_S = 0.05

OnProgress = Callable[[int, int], None]
"""Told how many changes or rows are done, and how many there are."""


class CannotBackUpError(Exception):
    """There is no moment to back up: the record does not reach what Redis has answered."""


async def back_up(
    redis_url: str,
    postgresql_url: str,
    directory: Path,
    *,
    version: str,
    patience_s: float,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Make a backup, and return what it says of itself; where that fails, nothing is left.

    Raises BackupRefusedError for the directory, CannotBackUpError where the record does not come
    to what was answered within `patience_s`, and what the stores' clients raise.
    """
    redis = RedisStore(redis_url)
    try:
        with new_backup(directory) as files:
            async with await RecordTables.connect(postgresql_url, purpose="backup") as record:
                began = datetime.now(UTC)
                backup = Backup(redis, record, files, on_progress or (lambda _, __: None))
                answered = await backup.reach(patience_s)
                manifest = await backup.copy(answered, version, began)
            await asyncio.to_thread(files.publish, manifest)
            return manifest
    finally:
        await redis.aclose()


class Backup:
    """One backup that is being made."""

    def __init__(
        self, redis: RedisStore, record: RecordTables, files: NewBackup, on_progress: OnProgress
    ) -> None:
        """Take what it works with."""
        self._redis = redis
        self._record = record
        self._files = files
        self._on_progress = on_progress
        self._rows = 0
        self._rows_done = 0

    async def reach(self, patience_s: float) -> dict[int, Position]:
        """Wait until the record has all that Redis has answered by now; return R as it was.

        Raises CannotBackUpError.
        """
        deadline = time.monotonic() + patience_s
        partitions = await self._record.partitions()
        if partitions is None:
            msg = "the record was never begun: there is nothing to back up"
            raise CannotBackUpError(msg)
        answered = {number: await self._answered(number, deadline) for number in range(partitions)}
        started = await self._recorded(answered)
        while True:
            recorded = await self._recorded(answered)
            behind = [number for number, at in answered.items() if recorded[number] < at]
            self._on_progress(
                sum(at.seq - started[number].seq for number, at in recorded.items()),
                max(1, sum(at.seq - started[number].seq for number, at in answered.items())),
            )
            if not behind:
                return answered
            if time.monotonic() > deadline:
                at = behind[0]
                msg = (
                    f"partition {at}: Redis has answered up to {answered[at].entry_id}, the record"
                    f" ends at {recorded[at].entry_id} after {patience_s:g} s: is the writer"
                    " running?"
                )
                raise CannotBackUpError(msg)
            await asyncio.sleep(_POLL_S)

    async def _answered(self, partition: int, deadline: float) -> Position:
        """Return R of an open partition; a handshake that is under way is waited for."""
        while True:
            meta = await self._redis.meta(partition)
            if meta is None and await self._record.cursor(partition) == NOWHERE:
                return NOWHERE
            if meta is not None and meta.open:
                return meta.last
            why = meta.reason if meta else "Redis is empty, and is rebuilt by the next request"
            if why or time.monotonic() > deadline:
                msg = f"partition {partition} is closed: {why or 'a handshake is under way'}"
                raise CannotBackUpError(msg)
            await asyncio.sleep(_POLL_S)

    async def _recorded(self, partitions: dict[int, Position]) -> dict[int, Position]:
        cursors = await self._record.cursors(partitions)
        return {
            number: cursors[number].last if number in cursors else NOWHERE for number in partitions
        }

    async def copy(self, answered: dict[int, Position], version: str, began: datetime) -> Manifest:
        """Copy every table, of one moment. Raises CannotBackUpError where that lacks an answer."""
        record = self._record
        async with record.snapshot():
            partitions = [await self._standing(number, at) for number, at in answered.items()]
            self._rows = max(1, sum([await record.rows(table) for table in TABLES]))
            tables = [await self._copy_table(table) for table in TABLES]
            return Manifest(
                format=1,
                onsale=version,
                schema_=await record.schema(),
                began=began,
                ended=datetime.now(UTC),
                partitions=partitions,
                sequences=await record.drawn(),
                tables=tables,
            )

    async def _standing(self, partition: int, answered: Position) -> BackedUpPartition:
        """Return P, which has to have what was answered on its lineage."""
        cursor = (await self._record.cursors([partition])).get(partition)
        lineage = (await self._record.lineages([partition]))[partition]
        recorded = cursor.last if cursor else NOWHERE
        if recorded.seq < answered.seq or not lineage.holds(answered):
            msg = (
                f"partition {partition}: {answered.entry_id} is not on record any more: one of the"
                " stores went back meanwhile"
            )
            raise CannotBackUpError(msg)
        return BackedUpPartition(
            partition=partition,
            epoch=recorded.epoch,
            seq=recorded.seq,
            head=cursor.head.hex() if cursor else "",
            highest_epoch=await self._record.highest_epoch(partition),
        )

    async def _copy_table(self, table: str) -> BackedUpTable:
        columns = await self._record.columns(table)
        with self._files.table(table) as file:

            async def on_chunk(rows: bytes) -> None:
                await asyncio.to_thread(file.write, rows)
                self._rows_done = min(self._rows, self._rows_done + rows.count(b"\n"))
                self._on_progress(self._rows_done, self._rows)

            rows = await self._record.hand_out(table, columns, on_chunk)
            return await asyncio.to_thread(file.finish, table, columns, rows)
