"""What an audit and a history read of the record, page by page. The session can write nothing.

All of it is to be asked inside one `snapshot`, so that journal, cursor and tables are of one
moment; rows come through a cursor of the server, and no more than a page is held, beside letters.
"""

from collections import deque
from collections.abc import AsyncIterator, Collection
from typing import NamedTuple

from service.outbox import Change
from service.record_view import RecordView

_PAGE = 10_000
_POSTGRESQL_EPOCH = 946_684_800_000_000
"""2000-01-01, from where PostgreSQL counts, in microseconds since 1970."""


class JournalRow(NamedTuple):
    """One change on record: a row of the journal, or of `dead_letters`, with the `reason` there."""

    change: Change
    hash: bytes
    reason: str | None = None


class EventRow(NamedTuple):
    """One row of the table events."""

    event_id: int
    status: str
    name: str
    capacity: int
    sold: int
    waiting: int


class BookingRow(NamedTuple):
    """One row of the table bookings."""

    event_id: int
    user_id: str
    status: str
    quantity: int
    seq: int
    keyed: str = ""


class JournalView(RecordView):
    """One read-only connection to the record. Methods raise what `UNAVAILABLE` lists."""

    async def partitions_found(self) -> list[int]:
        """Return every partition that has a cursor, an epoch or a row of the journal."""
        rows = await self._connection.fetch(
            "SELECT partition FROM cursors UNION SELECT partition FROM epochs"
            " UNION SELECT partition FROM journal UNION SELECT partition FROM dead_letters"
            " ORDER BY partition"
        )
        return [row["partition"] for row in rows]

    async def orphans(self) -> dict[int, int]:
        """Return the number of orphans of each partition that has any."""
        rows = await self._connection.fetch(
            "SELECT partition, count(*) AS orphans FROM orphans GROUP BY partition"
        )
        return {row["partition"]: row["orphans"] for row in rows}

    async def bookings_count(self) -> int:
        """Return the number of rows of the table bookings."""
        return int(await self._connection.fetchval("SELECT count(*) FROM bookings"))

    async def event_rows(self, event_ids: Collection[int] | None) -> list[EventRow]:
        """Return the rows of these events, or of all of them, `opening` ones included."""
        rows = await self._connection.fetch(
            "SELECT id, status, name, capacity, sold, waiting FROM events"
            " WHERE $1::bigint[] IS NULL OR id = ANY($1) ORDER BY id",
            None if event_ids is None else list(event_ids),
        )
        return [EventRow(*row) for row in rows]

    async def booking_pages(
        self, event_ids: Collection[int] | None
    ) -> AsyncIterator[list[BookingRow]]:
        """Yield the bookings of these events, or of all of them, in any order."""
        cursor = await self._connection.cursor(
            "SELECT event_id, user_id, status, quantity, seq, keyed FROM bookings"
            " WHERE $1::bigint[] IS NULL OR event_id = ANY($1)",
            None if event_ids is None else list(event_ids),
        )
        while page := await cursor.fetch(_PAGE):
            yield [BookingRow(*row) for row in page]

    async def journal_pages(
        self, partition: int, event_id: int | None = None
    ) -> AsyncIterator[list[JournalRow]]:
        """Yield a partition's changes in the order of seq, or those about one event.

        Wherever they are kept: the chain runs over journal and dead letters together. They are
        merged here, since PostgreSQL would sort the whole journal for it; of the letters, which are
        few beside it, all are held.
        """
        letters = deque(
            _row(*row)
            for row in await self._connection.fetch(
                "SELECT seq, epoch, timestamptz_send(at), kind, event_id, user_id, details, hash,"
                " reason FROM dead_letters"
                " WHERE partition = $1 AND ($2::bigint IS NULL OR event_id = $2) ORDER BY seq",
                partition,
                event_id,
            )
        )
        cursor = await self._connection.cursor(
            "SELECT seq, epoch, timestamptz_send(at), kind, event_id, user_id, details, hash"
            " FROM journal WHERE partition = $1 AND ($2::bigint IS NULL OR event_id = $2)"
            " ORDER BY seq",
            partition,
            event_id,
        )
        while found := await cursor.fetch(_PAGE):
            page = [_row(*row) for row in found]
            between = []
            while letters and letters[0].change.seq <= page[-1].change.seq:
                between.append(letters.popleft())
            yield sorted([*page, *between], key=_seq_of) if between else page
        if letters:
            yield list(letters)


def _row(
    seq: int,
    epoch: int,
    at: bytes,
    kind: str,
    event_id: int | None,
    user_id: str | None,
    details: str | None,
    hash_: bytes,
    reason: str | None = None,
) -> JournalRow:
    change = Change(seq, epoch, _microseconds(at), kind, event_id, user_id, details)
    return JournalRow(change, hash_, reason)


def _seq_of(row: JournalRow) -> int:
    return row.change.seq


def _microseconds(sent: bytes) -> int:
    """Return a time as PostgreSQL sends it: whatever was written there, `infinity` too, is one."""
    return int.from_bytes(sent, "big", signed=True) + _POSTGRESQL_EPOCH
