"""What the service is given in place of its ledger: the same methods, statement by statement.

Each statement is a question over the network; a transaction is several. What a lost answer means is
what it means to asyncpg: an error, after which the session is of no more use, and a COMMIT that may
have been.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn, Self

import asyncpg

from service.decision import ClosedEpoch, Decision
from service.end_of_record import JournalEnd
from service.errors import RefusedChangeError
from service.event_record import EventOnRecord, EventRecord, Extent, Look, UserOnRecord
from service.keyed import kept, keyed_of
from service.ledger import Ledger, LedgerPool
from service.lineage import Epoch, Lineage, Position
from service.losses import Loss
from service.outbox import STATUS_AFTER, Change
from service.record import Application, Cursor, Refused
from service.rows import Rows, chain
from service.sqlstates import refusing
from tests.simulation.network import Answer, Network, Reset, Silent
from tests.simulation.network import Refused as ConnectRefused
from tests.simulation.postgres_server import (
    LOCK_S,
    BookingRow,
    EpochRow,
    EventRow,
    NoLetters,
    PostgresServer,
    Record,
    Session,
    Step,
)

_COMMAND_S = 60.0
_SOLD = {"booked": 1, "promoted": 1, "cancelled": -1}
_WAITING = {"waiting": 1, "promoted": -1, "left": -1}


class Connection:
    """One session, as its client has it."""

    def __init__(self, network: Network, server: PostgresServer, session: Session) -> None:
        self.server = server
        self._network = network
        self._session = session
        self._broken = False

    async def ask(self, step: Step, *, timeout_s: float = _COMMAND_S) -> Any:
        """One statement."""
        return await self._send(self.server.stating(self._session, step), timeout_s)

    async def lock(self, which: str, wait_s: float, step: Step) -> Any:
        """One statement that waits for a lock."""
        return await self._send(self.server.locking(self._session, which, wait_s, step), _COMMAND_S)

    async def _send(self, effect: Any, timeout_s: float) -> Any:
        if self._broken:
            raise asyncpg.InterfaceError("connection is closed")
        try:
            return await self._network.ask(self.server, effect, timeout_s)
        except (Reset, ConnectRefused) as error:
            self._broken = True
            self._network.later(0.001, self.server.process, self.server.end_session, self._session)
            why = "connection was closed in the middle of operation"
            raise asyncpg.ConnectionDoesNotExistError(why) from error
        except Silent as error:
            self._broken = True
            raise TimeoutError from error
        except asyncpg.ConnectionDoesNotExistError:
            self._broken = True
            raise

    async def close(self) -> None:
        """Say goodbye, unless the session is gone; nobody waits for long."""
        if self._broken:
            return
        self._broken = True

        def goodbye(answer: Answer) -> None:
            self.server.end_session(self._session)
            answer()

        try:
            await self._network.ask(self.server, goodbye, 1.0)
        except (Reset, ConnectRefused, Silent):
            self._network.later(1.0, self.server.process, self.server.end_session, self._session)

    @asynccontextmanager
    async def transaction(self, step: Step | None = None) -> AsyncIterator[Any]:
        """BEGIN and what comes after it, with the row's lock; COMMIT, or ROLLBACK."""
        await self.ask(self.server.begin)
        try:
            found = await self.lock("row", LOCK_S, step) if step else None
            yield found
        except BaseException:
            if not self._broken:
                try:
                    await self.ask(self.server.rollback)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                    self._broken = True
            raise
        await self.ask(self.server.commit)


class SimulatedLedger(Ledger):
    """One connection to the record."""

    def __init__(self, connection: Connection) -> None:
        self.link = connection
        self.letters = NoLetters()
        self.event_record: SimulatedEventRecord = SimulatedEventRecord(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.close()

    async def keep_alive(self) -> None:
        await self.link.ask(lambda _: None)

    async def cursors(self, partitions: Iterable[int]) -> dict[int, Cursor]:
        cursor: Cursor | None = await self.link.ask(lambda _: self.link.server.committed.cursor)
        return {0: cursor} if cursor else {}

    async def lineages(self, partitions: Iterable[int]) -> dict[int, Lineage]:
        return {0: await self.link.ask(lambda _: self.link.server.committed.lineage)}

    async def newest_epoch(self, partition: int) -> int:
        newest = (await self.lineages([partition]))[partition].newest
        return newest.epoch if newest else 0

    async def position_of(self, partition: int, seq: int) -> Position:
        return (await self.lineages([partition]))[partition].position_of(seq)

    async def draw_event(self, name: str, capacity: int, above: int = 0) -> int:
        server = self.link.server

        def draw(_: Session) -> int:
            record = server.committed.copy()
            record.last_event_id = max(record.last_event_id, above) + 1
            record.events[record.last_event_id] = EventRow("opening", name, capacity)
            server.put(record)
            return record.last_event_id

        drawn: int = await self.link.ask(draw)
        return drawn

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Self]:
        await self.link.ask(self.event_record.take)
        yield self

    @asynccontextmanager
    async def _with_lock(self) -> AsyncIterator[Record]:
        server = self.link.server
        try:
            async with self.link.transaction(server.begin_locked) as record:
                yield record
        except asyncpg.LockNotAvailableError:
            await self.link.ask(server.end_frozen_holders)
            raise

    @asynccontextmanager
    async def applying(self, partitions: Iterable[int]) -> AsyncIterator[Application]:
        with refusing():
            async with self._with_lock() as record:
                lineage: Lineage = await self.link.ask(lambda _: record.lineage)
                yield SimulatedApplication(self.link, record, lineage)

    async def lock_handshake(self, partition: int, *, wait_s: float) -> bool:
        try:
            await self.link.lock("advisory", wait_s, lambda _: None)
        except asyncpg.LockNotAvailableError:
            return False
        return True

    async def highest_epoch(self, partition: int) -> int:
        def highest(_: Session) -> int:
            record = self.link.server.committed
            orphans = [epoch for epoch, _ in record.orphans]
            return max([*record.epochs, *orphans, record.last.epoch])

        found: int = await self.link.ask(highest)
        return found

    async def pause_before_epoch(self, partition: int) -> float:
        def pause(_: Session) -> float:
            server = self.link.server
            newest = sorted(server.committed.epochs.items(), reverse=True)[:3]
            if len(newest) < 3:
                return 0.0
            return max(0.0, newest[-1][1].at + 1 - server.world.loop.time())

        found: float = await self.link.ask(pause)
        return found

    @asynccontextmanager
    async def deciding(self, partition: int) -> AsyncIterator[Decision]:
        async with self._with_lock() as record:
            lineage: Lineage = await self.link.ask(lambda _: record.lineage)
            yield SimulatedDecision(self.link, record, lineage)


class SimulatedEventRecord(EventRecord):
    """What is asked of the record about one event; of one moment, once a snapshot is taken."""

    def __init__(self, link: Connection) -> None:
        self.link = link
        self.seen: Record | None = None

    def take(self, _: Session) -> None:
        """Take the snapshot."""
        self.seen = self.link.server.committed

    async def look(self, event_id: int, partition: int) -> Look:
        record: Record = await self.link.ask(lambda _: self.seen or self.link.server.committed)
        newest = record.lineage.newest
        extent = Extent(newest.epoch if newest else 0, record.last)
        row = record.events.get(event_id)
        event = None
        if row is not None and row.status == "open":
            times = (row.created_at, row.updated_at)
            event = EventOnRecord(row.name, row.capacity, row.sold, row.waiting, *times)
        return Look(extent, row is not None, event)

    async def users(self, event_id: int, *, count: int) -> AsyncIterator[list[UserOnRecord]]:
        assert self.seen is not None  # asked inside a snapshot
        found = [
            UserOnRecord(user, row.status, 1, row.seq, row.keyed)
            for (event, user), row in self.seen.bookings.items()
            if event == event_id
        ]
        found.sort(key=lambda user: user.seq)
        page = min(count, 3)
        for start in range(0, len(found), page):
            await self.link.ask(lambda _: None)
            yield found[start : start + page]


class SimulatedApplication(Application):
    """The inside of the transaction in which changes go on record."""

    cursor_apart = False
    """A broken variant: the cursor moves in a transaction of its own."""

    def __init__(self, link: Connection, record: Record, lineage: Lineage) -> None:
        self.link = link
        self.copy = record
        self.cursors = {0: record.cursor} if record.cursor else {}
        self.lineages = {0: lineage}
        self.letters = NoLetters()
        self.connection: Any = self

    async def record(
        self,
        partition: int,
        changes: Sequence[Change],
        refused: Mapping[int, Refused] = {},  # never changed
        rows: Rows | None = None,
    ) -> Position:
        after = head = self.cursors[0].head
        hashes = {}
        for change in changes:
            hashes[change.seq] = head = chain(head, 0, change)
        # What was made ready is what would be made now, or is not taken.
        assert rows is None or rows.after != after or rows.hashes == hashes
        try:
            await self.link.ask(lambda _: _journal(self.copy, changes, hashes))
            await self.link.ask(lambda _: _carry(self.copy, changes))
        except (asyncpg.IntegrityConstraintViolationError, RefusedChangeError) as error:
            self.link.server.world.checks.refused(str(error))
            raise
        last = Position(changes[-1].epoch, changes[-1].seq)
        await self.link.ask(lambda session: self._move(session, Cursor(last, head)))
        return last

    def _move(self, session: Session, cursor: Cursor) -> None:
        self.copy.cursor = cursor
        if self.cursor_apart:
            server = self.link.server
            record = server.committed.copy()
            record.cursor = cursor
            server.put(record)
            session.base = record

    async def make_good(self, partition: int, epochs: Sequence[Epoch], reason: str) -> None:
        for epoch in epochs:
            row = EpochRow(epoch.verdict, epoch.beginning, epoch.predecessor, reason)
            upsert = partial(_upsert_epoch, self.copy, epoch.epoch, row)
            await self.link.ask(lambda _, upsert=upsert: upsert())  # type: ignore[misc]
            self.lineages[partition].join(epoch)


class SimulatedEndOfRecord:
    """What a replay asks of the record's end."""

    def __init__(self, application: SimulatedApplication) -> None:
        self._application = application

    async def journal_end(self, partition: int) -> JournalEnd | None:
        journal = self._application.copy.journal
        await self._application.link.ask(lambda _: None)
        return JournalEnd(*journal[max(journal)]) if journal else None

    async def events_that_do_not_add_up(self, partition: int) -> list[int]:
        record = self._application.copy
        await self._application.link.ask(lambda _: None)
        return [id_ for id_, row in record.events.items() if counted(record, id_) != row[3:5]]


class SimulatedDecision(Decision):
    """The inside of the transaction in which a handshake decides."""

    def __init__(self, link: Connection, record: Record, lineage: Lineage) -> None:
        self.link = link
        self.copy = record
        self.recorded = record.cursor.last if record.cursor else None
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
        def put(_: Session) -> None:
            if epoch in self.copy.epochs:
                raise asyncpg.UniqueViolationError("duplicate key value: epochs")
            world = self.link.server.world
            now = world.loop.time()
            row = EpochRow(verdict, beginning, predecessor, reason, loss, at=now)
            self.copy.epochs[epoch] = row
            self.copy.cursor = self.copy.cursor or Cursor(Position(0, 0), b"")
            world.note(f"verdict {epoch} {verdict} {reason}")
            world.checks.decided(row)

        await self.link.ask(put)

    async def put_orphans(self, changes: Sequence[Change], found_by: int) -> None:
        def put(_: Session) -> None:
            for change in changes:
                self.copy.orphans.setdefault((change.epoch, change.seq), change)

        await self.link.ask(put)

    async def confirmed_losses(self) -> list[Loss]:
        found: list[Loss] = await self.link.ask(
            lambda _: [r.loss for r in self.copy.epochs.values() if r.confirmed and r.loss]
        )
        return found

    async def closed_epoch(self) -> ClosedEpoch | None:
        await self.link.ask(lambda _: None)
        if not self.copy.epochs:
            return None
        number = max(self.copy.epochs)
        row = self.copy.epochs[number]
        if row.verdict != "stay_closed":
            return None
        since = datetime(2026, 11, 22, tzinfo=UTC)
        return ClosedEpoch(number, row.reason, since, row.loss, row.confirmed)

    async def confirm(self, epoch: int) -> None:
        def put(_: Session) -> None:
            self.copy.epochs[epoch] = self.copy.epochs[epoch]._replace(confirmed=True)

        await self.link.ask(put)


class SimulatedLedgerPool(LedgerPool):
    """A session for each borrower."""

    def __init__(self, connect: Callable[..., Any]) -> None:
        self._make = connect

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Ledger]:
        async with await self._make() as ledger:
            yield ledger

    async def aclose(self) -> None:
        """Nothing is held."""


async def connect(
    network: Network,
    server: PostgresServer,
    owner: str,
    *,
    idle_s: float = 0,
    timeout_s: float = 5.0,
) -> SimulatedLedger:
    """Open a session. Raises what asyncpg does."""
    try:
        session = await network.ask(server, server.connecting(owner, idle_s), timeout_s)
    except (ConnectRefused, Reset) as error:
        raise ConnectionRefusedError(str(error)) from error
    except Silent as error:
        raise TimeoutError from error
    return SimulatedLedger(Connection(network, server, session))


def counted(record: Record, event_id: int) -> tuple[int, int]:
    """Return how many have a ticket of an event, and how many wait, by their rows."""
    states = [row.status for (event, _), row in record.bookings.items() if event == event_id]
    return states.count("booked"), states.count("waiting")


def _journal(record: Record, changes: Sequence[Change], hashes: Mapping[int, bytes]) -> None:
    for change in changes:
        if change.seq in record.journal:
            _refuse(asyncpg.UniqueViolationError, f"journal has {change.seq} already")
        record.journal[change.seq] = (change, hashes[change.seq])


def _carry(record: Record, changes: Sequence[Change]) -> None:
    """What changes come to in the tables events and bookings; counters net of the batch."""
    counters: dict[int, tuple[int, int, int]] = {}
    for c in changes:
        if c.kind == "opened" and c.event_id is not None:
            details = c.details or ""
            capacity = int(details.rpartition(":")[2].rstrip("}"))
            name = details.split('"')[3]
            record.events[c.event_id] = EventRow(
                "open", name, capacity, created_at=c.at, updated_at=c.at
            )
            record.last_event_id = max(record.last_event_id, c.event_id)
        if c.kind not in STATUS_AFTER or c.event_id is None or c.user_id is None:
            continue
        held = record.bookings.get((c.event_id, c.user_id))
        keyed = held.keyed if held else ""
        if c.details and (found := keyed_of(c.kind, c.details)):
            keyed = kept(keyed, found, c.seq)
        record.bookings[c.event_id, c.user_id] = BookingRow(STATUS_AFTER[c.kind], c.seq, keyed)
        sold, waiting, _ = counters.get(c.event_id, (0, 0, 0))
        counters[c.event_id] = (
            sold + _SOLD.get(c.kind, 0),
            waiting + _WAITING.get(c.kind, 0),
            c.at,
        )
    for event_id, (sold, waiting, at) in counters.items():
        row = record.events.get(event_id)
        if row is None or row.status != "open":
            msg = f"changes about events that are not on record: [{event_id}]"
            raise RefusedChangeError(msg)
        row = row._replace(sold=row.sold + sold, waiting=row.waiting + waiting, updated_at=at)
        if not 0 <= row.sold <= row.capacity or row.waiting < 0:
            _refuse(asyncpg.CheckViolationError, f"event {event_id} would be oversold")
        record.events[event_id] = row


def _upsert_epoch(record: Record, number: int, row: EpochRow) -> None:
    held = record.epochs.get(number)
    if held is None or held.beginning is None:
        record.epochs[number] = row


def _refuse(error: type[asyncpg.PostgresError], why: str) -> NoReturn:
    raise error(why)
