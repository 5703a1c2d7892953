"""One event on record, as a load asks for it: whether there is one, and all that it holds.

Reads only. What is said of an event comes with how far its partition's record goes, of the same
moment: a record that went back says of many an event that there is none.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service.lineage import Position
from service.times import to_microseconds

_PAGE_OF_USERS = (
    "SELECT user_id, status, quantity, seq, keyed FROM bookings"
    " WHERE event_id = $1 AND (seq, user_id) > ($2, $3) ORDER BY seq, user_id LIMIT $4"
)


class Extent(NamedTuple):
    """How far a partition's record goes: the newest epoch that it has, 0 for none, and P."""

    newest: int
    recorded: Position

    def reaches(self, epoch: int, at: Position) -> bool:
        """Whether it can be the record of a Redis that is in `epoch`, and has it up to `at`.

        An epoch is on record before Redis begins it; a newer one is about to begin, or another's.
        """
        return self.newest == epoch and self.recorded >= at


@dataclass(frozen=True, slots=True)
class EventOnRecord:
    """One event as the record has it. Times in microseconds."""

    name: str
    capacity: int
    sold: int
    waiting: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class UserOnRecord:
    """One user of an event."""

    user_id: str
    status: str
    quantity: int
    seq: int
    keyed: str


@dataclass(frozen=True, slots=True)
class Look:
    """What was found of an event: whether it was drawn, and itself if it was opened."""

    extent: Extent
    drawn: bool
    event: EventOnRecord | None


class EventRecord:
    """What is asked of the record about one event. Methods raise what `UNAVAILABLE` lists."""

    def __init__(self, connection: "asyncpg.Connection | PoolConnectionProxy") -> None:
        """Work on a connection, inside whatever transaction it is in."""
        self._connection = connection

    async def look(self, event_id: int, partition: int) -> Look:
        """Return what there is of an event, and how far the record goes, all of one moment.

        One statement: it waits for whoever empties the tables before it takes its snapshot. They
        stand in it in the order in which a restore locks them.
        """
        row = await self._connection.fetchrow(
            "SELECT newest, cursors.epoch, cursors.seq, status, name, capacity, sold, waiting,"
            " created_at, events.updated_at"
            " FROM (SELECT max(epoch) AS newest FROM epochs"
            " WHERE partition = $2 AND beginning IS NOT NULL) AS lineage"
            " LEFT JOIN cursors ON cursors.partition = $2 LEFT JOIN events ON events.id = $1",
            event_id,
            partition,
        )
        assert row is not None  # an aggregate has a row
        recorded = Position(row["epoch"] or 0, row["seq"] or 0)
        event = None
        if row["status"] == "open":
            event = EventOnRecord(
                name=row["name"],
                capacity=row["capacity"],
                sold=row["sold"],
                waiting=row["waiting"],
                created_at=to_microseconds(row["created_at"]),
                updated_at=to_microseconds(row["updated_at"]),
            )
        return Look(Extent(row["newest"] or 0, recorded), row["status"] is not None, event)

    async def users(self, event_id: int, *, count: int) -> AsyncIterator[list[UserOnRecord]]:
        """Yield an event's users in pages, those who wait in the order in which they joined.

        To be asked inside a `snapshot`. Each page is a question of its own that the index answers
        from where the last one ended: no statement grows with the event, and nothing is sorted.
        """
        # Whatever the planner believes of a table that has grown since it was analysed.
        await self._connection.execute(
            "SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off;"
            " SET LOCAL enable_bitmapscan = off"
        )
        seq, user_id = 0, ""
        while rows := await self._connection.fetch(_PAGE_OF_USERS, event_id, seq, user_id, count):
            yield [UserOnRecord(*row) for row in rows]
            if len(rows) < count:
                return
            user_id, seq = rows[-1]["user_id"], rows[-1]["seq"]
