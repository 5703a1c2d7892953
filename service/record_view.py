"""What a comparison reads of the record. Its session, an audit's too, can write nothing.

What belongs together is read inside one `snapshot`; the journal only grows, and is read outside.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Self

from service.ledger import Ledger
from service.outbox import Change
from service.record import change_of
from service.sessions import open_session

_PAGE = 10_000
_RESTORE_S = 30
"""So long a restore may hold the tables before a comparison gives up."""


@dataclass(slots=True)
class RecordedEvent:
    """One event as the record has it, all of one snapshot.

    `users` holds each user's state as `<status> <seq> <quantity>[ <keyed> ...]`, the words that
    Redis has, without the turn. `booked` and `queued` count the rows that say so; `sold` and
    `waiting` are columns.
    """

    name: str
    capacity: int
    sold: int
    waiting: int
    users: dict[str, str | None] = field(default_factory=dict)
    booked: int = 0
    queued: int = 0


class RecordView(Ledger):
    """One read-only connection to the record. Methods raise what `UNAVAILABLE` lists."""

    @classmethod
    async def open(cls, url: str, *, purpose: str = "reconcile", timeout_s: float = 5.0) -> Self:
        """Connect. The server itself refuses every change that this session might try."""
        connection = await open_session(
            url,
            purpose,
            timeout_s=timeout_s,
            default_transaction_read_only="on",
            lock_timeout=f"{_RESTORE_S}s",
            idle_in_transaction_session_timeout="60s",
        )
        return cls(connection)

    async def partitions(self) -> int | None:
        """Return the number of partitions on record, None before the first start."""
        held: int | None = await self._connection.fetchval("SELECT partitions FROM deployment")
        return held

    async def sizes(self) -> dict[int, int]:
        """Return every open event with its number of users on record."""
        rows = await self._connection.fetch(
            "SELECT id, coalesce(users, 0) AS users FROM events LEFT JOIN"
            " (SELECT event_id, count(*) AS users FROM bookings GROUP BY event_id) AS counted"
            " ON event_id = id WHERE status = 'open'"
        )
        return {row["id"]: row["users"] for row in rows}

    async def events(
        self, event_ids: Collection[int], on_rows: Callable[[int], None]
    ) -> dict[int, RecordedEvent]:
        """Return those of the events that are open, with all their users.

        To be asked inside a `snapshot`. `on_rows` is told how many users each page had.
        """
        rows = await self._connection.fetch(
            "SELECT id, name, capacity, sold, waiting FROM events"
            " WHERE id = ANY($1) AND status = 'open'",
            list(event_ids),
        )
        events = {
            row["id"]: RecordedEvent(row["name"], row["capacity"], row["sold"], row["waiting"])
            for row in rows
        }
        cursor = await self._connection.cursor(
            "SELECT event_id, user_id,"
            " rtrim(status || ' ' || seq || ' ' || quantity || ' ' || keyed) FROM bookings"
            " WHERE event_id = ANY($1)",
            list(events),
        )
        while page := await cursor.fetch(_PAGE):
            for event_id, user_id, state in page:
                event = events[event_id]
                event.users[user_id] = state
                if state.startswith("booked "):
                    event.booked += 1
                elif state.startswith("waiting "):
                    event.queued += 1
            on_rows(len(page))
        return events

    async def journal(self, partition: int, after: int, upto: int) -> list[Change]:
        """Return the changes on record with `after` < seq <= `upto`, in order, letters too."""
        rows = await self._connection.fetch(
            "SELECT seq, epoch, at, kind, event_id, user_id, details FROM journal"
            " WHERE partition = $1 AND seq > $2 AND seq <= $3 UNION ALL"
            " SELECT seq, epoch, at, kind, event_id, user_id, details FROM dead_letters"
            " WHERE partition = $1 AND seq > $2 AND seq <= $3 ORDER BY seq",
            partition,
            after,
            upto,
        )
        return [change_of(row) for row in rows]
