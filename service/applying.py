"""How changes go on record: only if they are the next ones. Shared by the writer and a replay.

Inside a transaction that holds the cursor's lock, and so of nobody's memory: cursor and lineage are
what the transaction itself has read. Nothing is written of entries that do not follow.
"""

from collections.abc import Sequence

from service.errors import LineageError
from service.lineage import Position
from service.outbox import Entry
from service.record import Application


async def apply(application: Application, partition: int, entries: Sequence[Entry]) -> Position:
    """Record entries, oldest first, at least one; return where the cursor stands then.

    Raises LineageError, before anything is written, or RefusedChangeError; the transaction is to be
    rolled back then.
    """
    if partition not in application.cursors:
        msg = f"partition {partition} has no cursor on record"
        raise LineageError(msg)
    cursor = application.cursors[partition].last
    lineage = application.lineages[partition]
    for entry in entries:
        if not lineage.follows(cursor, entry.first, entry.last):
            msg = (
                f"changes {entry.first} to {entry.last.seq} of epoch"
                f" {entry.last.epoch} do not follow {cursor.entry_id}"
            )
            raise LineageError(msg)
        cursor = entry.last
    changes = [change for entry in entries for change in entry.changes]
    return await application.record(partition, changes)
