"""What PostgreSQL has on record about one event, and the checks of it against its own journal.

Reads only, in one snapshot. The journal is read from the event's opening to its end, with all
events of the partition, because a row more or less shows in the chain of hashes.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg

from loadtests.checks import Check
from loadtests.replay import History, Row
from service.lineage import Position
from service.outbox import STATUS_AFTER
from service.record import change_of
from service.redis_store import RedisStore
from service.rows import chain

PAGE = 10_000
POLL_S = 0.1
STATEMENT_S = 120.0


class CannotTellError(Exception):
    """The stores do not let it be seen; the text is for the terminal."""


@dataclass(frozen=True, slots=True)
class OnRecord:
    """One event on record. `states`: each user's status and seq in the table bookings."""

    opened: int
    rows: list[Row]
    capacity_opened: int
    capacity: int
    sold: int
    waiting: int
    states: dict[str, tuple[str, int]]
    journal: Check


class Record:
    """A connection to PostgreSQL."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """Wrap a connection."""
        self._connection = connection

    async def await_all(self, redis: RedisStore, event_id: int, *, patience_s: float) -> None:
        """Wait until P is at or beyond the R of the event's partition. Raises CannotTellError."""
        partitions = await self._connection.fetchval("SELECT partitions FROM deployment")
        partition = event_id % partitions
        meta = await redis.meta(partition)
        if meta is None:
            raise CannotTellError("Redis is empty: is it that of the service?")
        until = time.monotonic() + patience_s
        while (recorded := await self._cursor(partition))[0] < meta.last:
            if time.monotonic() > until:
                msg = (
                    f"after {patience_s:.0f} s the record is still at {recorded[0].entry_id},"
                    f" Redis was at {meta.last.entry_id}: does the writer run?"
                )
                raise CannotTellError(msg)
            await asyncio.sleep(POLL_S)

    async def read(self, event_id: int) -> OnRecord:
        """Read all of an event, in one snapshot. Raises CannotTellError where there is none."""
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            event = await self._connection.fetchrow(
                "SELECT capacity, sold, waiting FROM events WHERE id = $1", event_id
            )
            opened = await self._connection.fetchrow(
                "SELECT partition, seq, details FROM journal"
                " WHERE event_id = $1 AND kind = 'opened' ORDER BY seq LIMIT 1",
                event_id,
            )
            letters = await self._connection.fetchval(
                "SELECT count(*) FROM dead_letters WHERE event_id = $1", event_id
            )
            if letters:
                msg = f"event {event_id} is frozen: {letters} changes of it were set aside"
                raise CannotTellError(msg)
            if event is None or opened is None:
                msg = f"event {event_id} is not on this record: is it that of the service?"
                raise CannotTellError(msg)
            states = await self._connection.fetch(
                "SELECT user_id, status, seq FROM bookings WHERE event_id = $1", event_id
            )
            journal = await self._journal(opened["partition"], opened["seq"])
            found = await self._connection.fetch(
                "SELECT partition, seq, kind, user_id FROM journal WHERE event_id = $1"
                " AND NOT (partition = $2 AND seq = $3) ORDER BY seq",
                event_id,
                opened["partition"],
                opened["seq"],
            )
        rows = []
        for row in found:
            own = row["partition"] == opened["partition"] and row["seq"] > opened["seq"]
            if own and row["kind"] in STATUS_AFTER and row["user_id"] is not None:
                rows.append(Row(row["seq"], row["kind"], row["user_id"]))
            else:
                what = f"partition {row['partition']}, seq {row['seq']}: {row['kind']}"
                journal.wrong.append(f"{what}, which is no change of this sale")
        return OnRecord(
            opened=opened["seq"],
            rows=rows,
            capacity_opened=json.loads(opened["details"])["totalTickets"],
            capacity=event["capacity"],
            sold=event["sold"],
            waiting=event["waiting"],
            states={row["user_id"]: (row["status"], row["seq"]) for row in states},
            journal=journal,
        )

    async def _cursor(self, partition: int) -> tuple[Position, bytes]:
        row = await self._connection.fetchrow(
            "SELECT epoch, seq, head FROM cursors WHERE partition = $1", partition
        )
        if row is None:
            raise CannotTellError("nothing is on this record: is it that of the service?")
        return Position(row["epoch"], row["seq"]), row["head"]

    async def _journal(self, partition: int, first: int) -> Check:
        """Follow the chain of hashes from a seq to the end, over other events' dead letters too."""
        check = Check("the journal has no gap, and its hashes hold")
        before = await self._connection.fetchval(
            "SELECT hash FROM journal WHERE partition = $1 AND seq = $2 UNION ALL"
            " SELECT hash FROM dead_letters WHERE partition = $1 AND seq = $2",
            partition,
            first - 1,
        )
        head, seq = before or b"", first - 1
        cursor = await self._connection.cursor(
            "SELECT seq, epoch, at, kind, event_id, user_id, details, hash FROM journal"
            " WHERE partition = $1 AND seq >= $2 UNION ALL"
            " SELECT seq, epoch, at, kind, event_id, user_id, details, hash FROM dead_letters"
            " WHERE partition = $1 AND seq >= $2 ORDER BY seq",
            partition,
            first,
        )
        while page := await cursor.fetch(PAGE):
            for row in page:
                check.expect(row["seq"] == seq + 1, f"after seq {seq} comes {row['seq']}")
                change = change_of(row)
                holds = chain(head, partition, change) == row["hash"]
                check.expect(holds, f"seq {row['seq']}: its hash does not follow the one before")
                head, seq = row["hash"], row["seq"]
        last, hash_ = await self._cursor(partition)
        check.expect(last.seq == seq, f"it ends at seq {seq}, the cursor at {last.seq}")
        check.expect(hash_ == head, "the cursor has another hash than the last row")
        return check


def check_record(found: OnRecord, history: History, tickets: int) -> Iterator[Check]:
    """Hold the tables `events` and `bookings` against the replayed journal."""
    yield found.journal
    bookings = Check("the table bookings is the replayed journal")
    for user in found.states.keys() | history.states.keys():
        there = found.states.get(user)
        stay = history.states.get(user)
        replayed = (stay.state, stay.since) if stay else None
        bookings.expect(
            there == replayed, f"{user}: on record {_said(there)}, replayed {_said(replayed)}"
        )
    yield bookings
    event = Check("the table events is the replayed journal")
    for name, is_, should in (
        ("tickets when it was opened", found.capacity_opened, tickets),
        ("capacity", found.capacity, tickets),
        ("sold", found.sold, history.sold),
        ("waiting", found.waiting, history.waiting),
    ):
        event.expect(is_ == should, f"{name}: on record {is_:,}, should be {should:,}")
    yield event


def _said(state: tuple[str, int] | None) -> str:
    return f"{state[0]} since seq {state[1]}" if state else "nothing"
