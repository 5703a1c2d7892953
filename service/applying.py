"""How changes go on record: only if they are the next ones. Shared by the writer and a replay.

Inside a transaction that holds the cursor's lock, and so of nobody's memory: cursor and lineage are
what the transaction itself has read. Nothing is written of entries that do not follow.
"""

from collections.abc import Iterator, Sequence

from service.errors import LineageError
from service.lineage import Position
from service.outbox import Entry
from service.record import Application
from service.rows import Rows


async def apply(
    application: Application,
    partition: int,
    entries: Sequence[Entry],
    rows: Rows | None = None,
) -> Position:
    """Record entries, oldest first, at least one; return where the cursor stands then.

    `rows`: what was made ready of them, if anything was. Raises LineageError, before anything is
    written, or RefusedChangeError; the transaction is to be rolled back then.
    """
    if partition not in application.cursors:
        msg = f"partition {partition} has no cursor on record"
        raise LineageError(msg)
    cursor = application.cursors[partition].last
    lineage = application.lineages[partition]
    for first, last in _spans(entries):
        if not lineage.follows(cursor, first, last):
            msg = (
                f"changes {first} to {last.seq} of epoch {last.epoch} do not follow"
                f" {cursor.entry_id}"
            )
            raise LineageError(msg)
        cursor = last
    changes = [change for entry in entries for change in entry.changes]
    return await application.record(partition, changes, rows=rows)


def _spans(entries: Sequence[Entry]) -> Iterator[tuple[int, Position]]:
    """Join entries of one epoch without a gap: their changes follow if those from end to end do.

    What an epoch may hold is a range, so that nothing between two that belong to it does not.
    """
    first, last = entries[0].first, entries[0].last
    for entry in entries[1:]:
        if entry.last.epoch != last.epoch or entry.first != last.seq + 1:
            yield first, last
            first = entry.first
        last = entry.last
    yield first, last
