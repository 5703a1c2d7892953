"""What a restore would do: the backup, what is on record, and what Redis knows. Changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from service.backup_files import MANIFEST, BackedUpPartition, BackupRefusedError, Manifest
from service.ledger import TABLES
from service.lineage import NOWHERE, Lineage, Position
from service.record_tables import RecordTables
from service.redis_store import RedisStore


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """One partition: P of the backup, P now, R and W of Redis (NOWHERE for none).

    `outbox_from` is the seq of the oldest change that the outbox has, 0 for none. `expected` says
    in words what the comparison will come to; it is the handshake that decides.
    """

    partition: int
    backup: Position
    recorded: Position
    last: Position
    watermark: Position
    outbox_from: int
    expected: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole. `has_schema` is False where the tables have to be made first."""

    manifest: Manifest
    partitions: Sequence[PartitionPlan]
    has_schema: bool


async def make_plan(
    manifest: Manifest,
    redis: RedisStore,
    postgresql_url: str,
    *,
    migrations: Sequence[str],
    partitions: int,
) -> Plan:
    """Read both stores. `migrations` are those of this release, `partitions` the setting.

    Raises BackupRefusedError for a backup that does not fit, and what the stores' clients raise.
    """
    if manifest.schema_ != list(migrations):
        msg = (
            f"the backup is of Onsale {manifest.onsale} and its schema"
            f" {_latest(manifest.schema_)}, this release has {_latest(migrations)}: restore it with"
            " that release, and upgrade then"
        )
        raise BackupRefusedError(msg)
    wrong = {*TABLES} ^ {table.table for table in manifest.tables}
    if wrong:
        msg = f"{MANIFEST} is of other tables than this release has: {', '.join(sorted(wrong))}"
        raise BackupRefusedError(msg)
    if len(manifest.partitions) != partitions:
        held = len(manifest.partitions)
        msg = f"the backup has {held} partitions, ONSALE_PARTITIONS is {partitions}"
        raise BackupRefusedError(msg)
    try:
        async with await RecordTables.connect(postgresql_url, purpose="restore") as record:
            return await _plan(manifest, redis, record)
    except asyncpg.InvalidCatalogNameError:
        return Plan(manifest, await _compared(manifest, redis, None), has_schema=False)


async def _plan(manifest: Manifest, redis: RedisStore, record: RecordTables) -> Plan:
    applied = await record.schema()
    if not applied:
        return Plan(manifest, await _compared(manifest, redis, None), has_schema=False)
    if applied != manifest.schema_:
        msg = (
            f"the database has the schema {_latest(applied)}, the backup"
            f" {_latest(manifest.schema_)}: bring it there with `onsale migrate up`"
        )
        raise BackupRefusedError(msg)
    held = await record.partitions()
    if held is not None and held != len(manifest.partitions):
        msg = f"the backup has {len(manifest.partitions)} partitions, the record {held}"
        raise BackupRefusedError(msg)
    return Plan(manifest, await _compared(manifest, redis, record), has_schema=True)


async def _compared(
    manifest: Manifest, redis: RedisStore, record: RecordTables | None
) -> list[PartitionPlan]:
    return [await _partition(of, redis, record) for of in manifest.partitions]


async def _partition(
    backup: BackedUpPartition, redis: RedisStore, record: RecordTables | None
) -> PartitionPlan:
    number = backup.partition
    recorded, lineage = NOWHERE, Lineage()
    if record is not None:
        recorded = await record.cursor(number)
        lineage = (await record.lineages([number]))[number]
    meta = await redis.meta(number)
    outbox_from = (await redis.outbox_size(number))[1] if meta else 0
    last = meta.last if meta and not meta.loading else NOWHERE
    watermark = meta.recorded if meta else NOWHERE
    foreseen = expected(backup.last, recorded, last, outbox_from, lineage)
    return PartitionPlan(number, backup.last, recorded, last, watermark, outbox_from, foreseen)


def expected(
    backup: Position, recorded: Position, last: Position, outbox_from: int, lineage: Lineage
) -> str:
    """Say what a comparison is likely to come to: P of the backup and now, R, and the outbox."""
    gone = ""
    if recorded > backup:
        gone = (
            f": what came after {backup.entry_id} is gone; where it was answered,"
            " `onsale confirm-loss` opens the sale"
        )
    if last == backup:
        return f"goes on at {backup.entry_id}{gone}" if gone else "nothing was changed since"
    if last < backup:
        return f"Redis is rebuilt at {backup.entry_id}{gone}"
    if lineage.epochs and not lineage.holds(backup):
        return (
            f"stays closed: {backup.entry_id} is not on the lineage of what is on record now; what"
            " came after it is gone"
        )
    if outbox_from == backup.seq + 1:
        return f"stays closed: the outbox begins behind {backup.entry_id}, which is to be compared"
    if 0 < outbox_from <= backup.seq:
        return (
            f"changes {backup.seq + 1} to {last.seq} are replayed from the outbox: nothing is lost"
        )
    return (
        f"stays closed: changes {backup.seq + 1} to {(outbox_from or last.seq + 1) - 1} are neither"
        " in the backup nor in the outbox"
    )


def _latest(migrations: Sequence[str]) -> str:
    return migrations[-1] if migrations else "none"
