"""PostgreSQL, simulated: sessions, transactions, a row's lock and an advisory one.

It owns what is committed. A transaction works on a copy that becomes the record at COMMIT, whole;
whoever ends before takes the copy along. Locks end with their transaction or session; sessions end
when the client is killed or silent for too long, and never because it is frozen for a moment.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from service.letters import Letters
from service.lineage import NOWHERE, Epoch, Lineage, Position
from service.losses import Loss
from service.outbox import Change
from service.record import Cursor
from tests.simulation.network import Answer, Server

if TYPE_CHECKING:
    from tests.simulation.world import World

IN_TRANSACTION_S = 10.0
LOCK_S = 5.0
_FROZEN_S = 1.0
_LOOK_S = 0.25


class EpochRow(NamedTuple):
    """A row of the table epochs."""

    verdict: str
    beginning: int | None
    predecessor: int | None
    reason: str
    loss: Loss | None = None
    confirmed: bool = False
    at: float = 0.0


class EventRow(NamedTuple):
    """A row of the table events."""

    status: str
    name: str
    capacity: int
    sold: int = 0
    waiting: int = 0
    created_at: int = 0
    updated_at: int = 0


class BookingRow(NamedTuple):
    """A row of the table bookings."""

    status: str
    seq: int
    keyed: str


@dataclass(slots=True)
class Record:
    """All tables, of one moment."""

    cursor: Cursor | None = None
    epochs: dict[int, EpochRow] = field(default_factory=dict)
    journal: dict[int, tuple[Change, bytes]] = field(default_factory=dict)
    events: dict[int, EventRow] = field(default_factory=dict)
    bookings: dict[tuple[int, str], BookingRow] = field(default_factory=dict)
    orphans: dict[tuple[int, int], Change] = field(default_factory=dict)
    last_event_id: int = 0

    def copy(self) -> "Record":
        """Return one that can be changed."""
        return Record(
            self.cursor,
            dict(self.epochs),
            dict(self.journal),
            dict(self.events),
            dict(self.bookings),
            dict(self.orphans),
            self.last_event_id,
        )

    @property
    def last(self) -> Position:
        """P."""
        return self.cursor.last if self.cursor else NOWHERE

    @property
    def lineage(self) -> Lineage:
        """The epochs that have a beginning."""
        return Lineage(
            Epoch(number, row.beginning, row.predecessor, row.verdict)
            for number, row in self.epochs.items()
            if row.beginning is not None and row.predecessor is not None
        )


@dataclass(slots=True, eq=False)
class Session:
    """A session as the server has it. `idle_s`: silent for so long it is ended; 0 for never."""

    number: int
    owner: str
    idle_s: float
    at: float
    open: bool = True
    copy: Record | None = None
    base: Record | None = None
    began_event_id: int = 0


Step = Callable[[Session], Any]


class PostgresServer(Server):
    """One server."""

    def __init__(self, world: "World") -> None:
        super().__init__("postgres", world.process("postgres"))
        self.world = world
        self.committed = Record()
        self.past: list[Record] = [self.committed]
        self.ever: set[Position] = {NOWHERE}
        self.went_back = False
        self.began = True
        self.sessions: dict[int, Session] = {}
        self._opened = 0
        self._row: Session | None = None
        self._advisory: Session | None = None
        self._waiting: list[tuple[Session, str, float, Callable[[bool], None]]] = []
        self._looks = False

    # Its life.

    def crash(self) -> None:
        """End every session; what is committed stays."""
        for session in list(self.sessions.values()):
            self.end_session(session)
        self._waiting = []
        self.end()

    def put_back(self, record: Record) -> None:
        """While it is down: its files are an older copy's."""
        self.went_back = True
        self.began = self.began and record.cursor is not None
        self.committed = record
        self.past.append(record)

    def end_sessions_of(self, owner: str) -> None:
        """The client's machine has closed its sockets."""
        for session in list(self.sessions.values()):
            if session.owner == owner:
                self.end_session(session)

    def end_session(self, session: Session) -> None:
        """Roll back, and let its locks go."""
        session.open, session.copy = False, None
        self.sessions.pop(session.number, None)
        self._waiting = [waiter for waiter in self._waiting if waiter[0] is not session]
        self._release(session, advisory=True)

    # What a client asks.

    def connecting(self, owner: str, idle_s: float) -> Callable[[Answer], None]:
        """Return what opens a session."""

        def run(answer: Answer) -> None:
            self._opened += 1
            session = Session(self._opened, owner, idle_s, self.world.loop.time())
            self.sessions[session.number] = session
            answer(session)

        return run

    def stating(self, session: Session, step: Step) -> Callable[[Answer], None]:
        """Return what runs a statement; one that fails inside a transaction ends that."""

        def run(answer: Answer) -> None:
            if not self._is_open(session):
                answer(None, asyncpg.ConnectionDoesNotExistError("the session was ended"))
                return
            session.at = self.world.loop.time()
            try:
                answer(step(session))
            except Exception as error:
                answer(None, error)

        return run

    def locking(
        self, session: Session, which: str, wait_s: float, step: Step
    ) -> Callable[[Answer], None]:
        """Return what runs a statement once it has a lock: `row` or `advisory`."""

        def run(answer: Answer) -> None:
            if not self._is_open(session):
                answer(None, asyncpg.ConnectionDoesNotExistError("the session was ended"))
                return
            session.at = self.world.loop.time()

            def granted(got: bool) -> None:
                session.at = self.world.loop.time()
                if got:
                    answer(step(session))
                else:
                    session.copy = None
                    error = "canceling statement due to lock timeout"
                    answer(None, asyncpg.LockNotAvailableError(error))

            if self._take(session, which):
                granted(True)
            else:
                until = self.world.loop.time() + wait_s
                self._waiting.append((session, which, until, granted))
                self._look_on()

        return run

    def begin(self, session: Session) -> None:
        """BEGIN."""
        session.base = session.copy = self.committed

    def begin_locked(self, session: Session) -> Record:
        """Return what a transaction sees that has the cursor's lock, to be changed."""
        session.base = self.committed
        session.copy = self.committed.copy()
        return session.copy

    def commit(self, session: Session) -> None:
        """COMMIT: all of it, or an error and nothing."""
        copy, base = session.copy, session.base
        if copy is not None and copy is not base:
            self._check_commit(session)
            if self.committed is not base:
                # Drawn meanwhile, without the cursor's lock.
                for event_id, row in self.committed.events.items():
                    copy.events.setdefault(event_id, row)
                copy.last_event_id = max(copy.last_event_id, self.committed.last_event_id)
            self.put(copy)
            self.world.note(f"committed at {copy.last.entry_id} by {session.owner}")
        session.copy = session.base = None
        self._release(session)

    def rollback(self, session: Session) -> None:
        """ROLLBACK."""
        session.copy = session.base = None
        self._release(session)

    def put(self, record: Record) -> None:
        """Make this the record."""
        if record.last != self.committed.last:
            news = [Position(c.epoch, c.seq) for c, _ in list(record.journal.values())[-40:]]
            self.ever.update(news)
            self.ever.update(
                Position(change.epoch, change.seq) for change, _ in record.journal.values()
            )
        self.committed = record
        self.past.append(record)
        del self.past[:-200]

    def end_frozen_holders(self, asking: Session) -> None:
        """End the session that holds the cursor's lock and waits for its client."""
        holder = self._row
        if holder and holder is not asking and self.world.loop.time() - holder.at > _FROZEN_S:
            self.world.note(f"{asking.owner} ends the frozen session of {holder.owner}")
            self.end_session(holder)

    # Its locks.

    def _is_open(self, session: Session) -> bool:
        """Whether a session lives; one that was silent for too long is ended here."""
        silent = self.world.loop.time() - session.at
        limit = IN_TRANSACTION_S if session.base is not None else session.idle_s
        if session.open and limit and silent > limit:
            self.end_session(session)
        return session.open

    def _holder(self, which: str) -> Session | None:
        return self._row if which == "row" else self._advisory

    def _take(self, session: Session, which: str) -> bool:
        holder = self._holder(which)
        if holder is not None and not self._is_open(holder):
            holder = self._holder(which)  # whoever waited longest has it by now
        if holder is not None and holder is not session:
            return False
        if which == "advisory":
            self._advisory = session
        elif self.committed.cursor is not None:
            self._row = session  # a row that does not exist is locked by nobody
        return True

    def _release(self, session: Session, *, advisory: bool = False) -> None:
        if self._row is session:
            self._row = None
        if advisory and self._advisory is session:
            self._advisory = None
        self._grant()

    def _grant(self) -> None:
        waiting, self._waiting = self._waiting, []
        now = self.world.loop.time()
        while waiting:
            waiter = waiting.pop(0)
            session, which, until, granted = waiter
            if not session.open:
                continue
            if self._take(session, which):
                granted(True)
            elif now >= until:
                self.rollback_waiting(session, granted)
            else:
                self._waiting.append(waiter)

    def rollback_waiting(self, session: Session, granted: Callable[[bool], None]) -> None:
        """Tell a waiter that its time is up."""
        session.base = session.copy = None
        granted(False)

    def _look_on(self) -> None:
        """Look now and then whether a lock's holder is gone or a waiter's time is up."""
        if self._looks:
            return
        self._looks = True

        def look() -> None:
            self._looks = False
            self._grant()
            if self._waiting:
                self._look_on()

        self.world.network.later(_LOOK_S, self.process, look)

    def _check_commit(self, session: Session) -> None:
        """Refuse what a unique index would, of a transaction that had no row to lock."""
        if self.committed.cursor is None and session.base is not self.committed:
            mine = session.copy.epochs.keys() if session.copy else set()
            if mine & self.committed.epochs.keys():
                raise asyncpg.UniqueViolationError("duplicate key value: epochs")
        lacked_row = session.base is not None and session.base.cursor is None
        if lacked_row and self._row is not session and self.committed.cursor is not None:
            raise asyncpg.UniqueViolationError("duplicate key value: cursors")


class NoLetters(Letters):
    """No event is frozen: dead letters are not simulated."""

    def __init__(self) -> None:
        pass

    async def frozen(self, partition: int) -> dict[int, int]:  # noqa: ARG002  # the interface
        return {}
