"""The replay: a record that went back is brought forward from the retained outbox (PROTOCOL 12).

For a handshake that has closed the partition and holds its lock, on that same session: R stands
still, and who loses the session applies nothing more. First everything is proven, from P to R, and
nothing written; then the changes go on record in order, each batch in one transaction together with
the epochs that the record lacks, under the cursor's lock and with the writer's own checks. A death
anywhere leaves a record that is whole up to its cursor: the next handshake compares anew. Where
PostgreSQL refuses a change it ends right before that entry: an operator can set it aside there.
Redis is only read.
"""

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing

import structlog

from service.applying import apply
from service.end_of_record import EndOfRecord
from service.errors import LineageError, RefusedChangeError
from service.ledger import Ledger
from service.lineage import NOWHERE, Position
from service.outbox import Change, Entry
from service.record import Application
from service.redis_store import Closed, RedisStore
from service.succession import Succession
from service.unrecorded import Touch

log = structlog.stdlib.get_logger("onsale.handshake")

_BATCH_CHANGES = 2_000


class BringingForward:
    """Brings one partition's record forward to R. `changes` counts what it has put on record."""

    def __init__(
        self,
        partition: int,
        redis: RedisStore,
        ledger: Ledger,
        closed: Closed,
        touch: Touch,
        progress: Callable[[int, int], None] = lambda _, __: None,
        strays: Collection[str] = (),
    ) -> None:
        """`ledger` is the session that holds the handshake's lock; `strays` are passed over.

        `progress` is told how many changes are on record, and of how many.
        """
        self.changes = 0
        self._partition = partition
        self._redis = redis
        self._ledger = ledger
        self._closed = closed
        self._touch = touch
        self._progress = progress
        self._strays = strays
        self._at = NOWHERE

    async def run(self) -> None:
        """Prove, then apply. May be repeated, and cut off anywhere.

        Raises LineageError and CorruptEntryError where the outbox does not prove what comes next,
        RefusedChangeError where PostgreSQL refuses it, and what the stores raise.
        """
        self._at = await self._prove()
        log.warning(
            "PostgreSQL went back and is brought forward",
            partition=self._partition,
            after=self._at.entry_id,
            upto=self._closed.last.entry_id,
        )
        await self._apply_all()

    async def finish(self) -> None:
        """Put on record what the writer has not come to yet, of a record that is Redis's own.

        May be repeated, and cut off anywhere. Raises what `run` raises.
        """
        self._at = await self._ledger.cursor(self._partition)
        await self._apply_all()

    async def _apply_all(self) -> None:
        while self._at < self._closed.last:
            before = self._at
            try:
                await self._apply_the_rest()
            except LineageError:
                # A writer may have been quicker; what it did has passed the same checks.
                self._at = await self._ledger.cursor(self._partition)
                if self._at <= before:
                    raise
            if self._at <= before:
                msg = f"the outbox does not go on after {before.entry_id} any more"
                raise LineageError(msg)

    async def _prove(self) -> Position:
        """Return P, once it is certain that the outbox leads on from it to R. Writes nothing."""
        closed = self._closed
        if closed.loading or closed.recorded > closed.last:
            msg = "Redis is not whole: it was being rebuilt, or knows more on record than it holds"
            raise LineageError(msg)
        async with self._ledger.applying([self._partition]) as application:
            end = await _end_of_record(application, self._partition)
            at = application.cursors[self._partition].last
            succession = Succession(at, application.lineages[self._partition])
        is_compared = await self._ends_alike(at, end)
        async with aclosing(self._entries_after(at)) as entries:
            async for entry in entries:
                succession.take(entry)
                # The beginning of an epoch says itself what it follows; another change does not.
                if not is_compared and entry.last.epoch == at.epoch:
                    msg = f"change {at.entry_id}, to be compared, is not in the outbox any more"
                    raise LineageError(msg)
                is_compared = True
                await self._touch()
        succession.end(closed.last)
        return at

    def _entries_after(self, at: Position) -> AsyncGenerator[Entry, None]:
        return self._redis.outbox_after(
            self._partition, at, upto=self._closed.last, strays=self._strays
        )

    async def _ends_alike(self, at: Position, end: Change | None) -> bool:
        """Whether the outbox still has the last change on record; raises where it is another one.

        Seqs and epochs of another database may be the very same: a copy of this one, say, on which
        something else was sold. What was sold is not, nor the microsecond at which it was.
        """
        entry = await self._redis.outbox_entry(self._partition, at) if end else None
        if entry is None:
            return False
        if entry.changes[-1] != end:
            msg = f"change {at.entry_id} is another one on record than in the outbox"
            raise LineageError(msg)
        return True

    async def _apply_the_rest(self) -> None:
        """Put what follows on record, batch by batch."""
        batch: list[Entry] = []
        changes = 0
        async with aclosing(self._entries_after(self._at)) as entries:
            async for entry in entries:
                batch.append(entry)
                changes += len(entry.changes)
                if changes >= _BATCH_CHANGES:
                    await self._apply(batch)
                    batch, changes = [], 0
        if batch:
            await self._apply(batch)

    async def _apply(self, batch: Sequence[Entry]) -> None:
        """Put a batch on record, as far as PostgreSQL takes it. Raises RefusedChangeError."""
        try:
            await self._put(batch)
        except RefusedChangeError:
            for entry in batch:
                try:
                    await self._put([entry])
                except RefusedChangeError as error:
                    msg = f"PostgreSQL refuses outbox entry {entry.last.entry_id}: {error}"
                    raise RefusedChangeError(msg) from error

    async def _put(self, batch: Sequence[Entry]) -> None:
        """One transaction: the epochs that the record lacks, and the changes that follow them."""
        async with self._ledger.applying([self._partition]) as application:
            succession = Succession(
                _cursor(application, self._partition), application.lineages[self._partition]
            )
            for entry in batch:
                succession.take(entry)
            await application.make_good(
                self._partition, succession.learned, "read from the outbox by a replay"
            )
            self._at = await apply(application, self._partition, batch)
        self.changes += sum(len(entry.changes) for entry in batch)
        self._progress(self.changes, self.changes + self._closed.last.seq - self._at.seq)


async def flaw_of_record(ledger: Ledger, partition: int) -> str:
    """Return why a record is not of one piece, empty for one that is."""
    try:
        async with ledger.applying([partition]) as application:
            await _end_of_record(application, partition)
    except LineageError as error:
        return str(error)
    return ""


def _cursor(application: Application, partition: int) -> Position:
    """Return P, under its lock. Raises LineageError for a record that never began."""
    if partition not in application.cursors:
        msg = f"this record never began partition {partition}: it is empty, or another one"
        raise LineageError(msg)
    return application.cursors[partition].last


async def _end_of_record(application: Application, partition: int) -> Change | None:
    """Return the last change on record, None for none, of a record that is one piece.

    Raises LineageError where cursor, journal, epochs and counters are not of one moment, as in a
    database of which only some tables were restored.
    """
    at = _cursor(application, partition)
    record = EndOfRecord(application.connection)
    end = await record.journal_end(partition)
    change, head = (end.change, end.hash) if end else (None, b"")
    last = Position(change.epoch, change.seq) if change else NOWHERE
    if last != at or head != application.cursors[partition].head:
        msg = f"the record is not whole: its cursor is at {at.entry_id}, its journal ends otherwise"
        raise LineageError(msg)
    lineage = application.lineages[partition]
    if lineage.newest is None or not lineage.holds(at):
        msg = f"the record is not whole: its epochs do not lead to {at.entry_id}"
        raise LineageError(msg)
    if odd := await record.events_that_do_not_add_up(partition):
        msg = f"the record is not whole: the rows of these events do not add up: {odd}"
        raise LineageError(msg)
    return change
