"""Restores a backup: the record is replaced while every partition is closed by its handshake.

The restore is a handshake like any other. Rows are staged, and audited, before anything is closed.
Then the hook of each partition's handshake runs that of the next; the innermost replaces all tables
in one transaction, on the session that holds its lock. What follows is the ordinary comparison with
a record that went back: replayed, rebuilt, or closed with the reason. Killed anywhere it leaves the
record of before or the backup's, and partitions that the next handshake compares anew.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import asyncpg
import structlog
from redis.exceptions import RedisError

from service.auditor import Auditor, OnProgress
from service.backup_files import MANIFEST, BackupRefusedError, Manifest, chunks
from service.handshake import Handshake, HandshakeImpossible, Opened, StaysClosed
from service.ledger import UNAVAILABLE, Ledger
from service.orders import Order
from service.record_tables import RecordTables
from service.redis_store import Closed
from service.unrecorded import Touch
from service.violations import AuditReport

log = structlog.stdlib.get_logger("onsale.restore")

_AWAKE_S = 3.0
_TRIES = 10
_PAUSE_S = 0.5

Connect = Callable[[int], Awaitable[Ledger]]
MakeHandshakes = Callable[[Connect | None], Mapping[int, Handshake]]
"""Makes the handshakes of all partitions, on sessions of their own or on those that it is given."""

Result = Opened | StaysClosed | str
"""What a comparison came to; a text says why it could not be made."""

OnRows = Callable[[int], None]
"""Told how many rows more are staged."""


async def stage(
    directory: Path, manifest: Manifest, postgresql_url: str, on_rows: OnRows
) -> RecordTables:
    """Take the backup's rows into a session of the record, and return that session.

    The record itself is not changed. Raises BackupRefusedError where the rows are not those that
    the manifest promises, and what `UNAVAILABLE` lists.
    """
    staged = await RecordTables.connect(postgresql_url, purpose="restore")
    try:
        for table in manifest.tables:
            if await staged.columns(table.table) != table.columns:
                msg = f"{table.file} has other columns than the table {table.table}"
                raise BackupRefusedError(msg)
            chunked = _rows(chunks(directory, table), on_rows)
            try:
                rows = await staged.stage(table.table, table.columns, chunked)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                msg = f"{table.file} holds what is no row of the table {table.table}: {error}"
                raise BackupRefusedError(msg) from None
            if rows != table.rows:
                msg = f"{table.file} has {rows:,} rows, the manifest says {table.rows:,}"
                raise BackupRefusedError(msg)
    except BaseException:
        await staged.__aexit__()
        raise
    return staged


async def audit_staged(
    manifest: Manifest, staged: RecordTables, on_progress: OnProgress | None
) -> AuditReport:
    """Replay the staged journal, hold it against the staged tables, and see the record again.

    Raises BackupRefusedError where the rows do not end where the manifest says.
    """
    async with staged.snapshot():
        report = await Auditor(staged, None, (), on_progress).run()
    await staged.see_record()
    heads = [(p.head.epoch, p.head.seq, p.head.hash.hex()) for p in report.partitions]
    if heads != [(p.epoch, p.seq, p.head) for p in manifest.partitions]:
        msg = f"{MANIFEST} says other ends of the journal than the tables have"
        raise BackupRefusedError(msg)
    return report


class CannotReplaceError(Exception):
    """The record is what it was before, or that is not known; says which."""


class Restoration:
    """One restore of what was staged. `replaced`: None where a commit was not answered."""

    def __init__(
        self, manifest: Manifest, staged: RecordTables, make_handshakes: MakeHandshakes
    ) -> None:
        """Take what it works with. The session is the last handshake's, which closes it."""
        self.replaced: bool | None = False
        self._manifest = manifest
        self._staged = staged
        self._make_handshakes = make_handshakes
        self._closed: list[_Awake] = []
        self._results: dict[int, Result] = {}

    async def run(self) -> Mapping[int, Result]:
        """Replace the record, and return what the comparison of each partition came to.

        Raises CannotReplaceError where the record is as it was before, or may be; the partitions
        are compared with whatever is there.
        """
        numbers = [partition.partition for partition in self._manifest.partitions]
        failure = ""
        try:
            await self._close_from(numbers)
        except (HandshakeImpossible, RedisError, *UNAVAILABLE) as error:
            failure = str(error) or type(error).__name__
        handshakes = self._make_handshakes(None)
        for number in numbers:
            if number not in self._results:
                self._results[number] = await _compared(handshakes[number])
        if self.replaced is None:
            msg = (
                f"whether the record was replaced is not known: {failure}; restore again, the plan"
                " says what is on record"
            )
            raise CannotReplaceError(msg)
        if not self.replaced:
            msg = f"the record was not replaced: {failure or 'no handshake came so far'}"
            raise CannotReplaceError(msg)
        return self._results

    async def _close_from(self, numbers: list[int]) -> None:
        """Run the first partition's handshake, and inside it those of the others."""
        number, *others = numbers

        async def while_closed(ledger: Ledger, _: Closed, __: Touch) -> None:
            if self.replaced is not False:
                return  # another attempt: it compares what is there
            if others:
                async with _keeping_awake(ledger) as awake:
                    self._closed.append(awake)
                    await self._close_from(others)
            else:
                await self._replace()

        order = Order(
            reason="restored from a backup",
            while_closed=while_closed,
            epoch_above=self._manifest.partitions[number].highest_epoch,
        )
        handshake = self._make_handshakes(None if others else self._lend)[number]
        self._results[number] = await handshake.run(order=order)

    async def _lend(self, idle_s: int) -> Ledger:
        await self._staged.become_handshake(idle_s)
        return self._staged

    async def _replace(self) -> None:
        columns = {table.table: table.columns for table in self._manifest.tables}
        await self._staged.replace(columns, self._manifest.sequences, self._all_closed)
        self.replaced = True
        log.warning("the record was restored", partitions=len(self._manifest.partitions))

    async def _all_closed(self) -> None:
        """Prove, last before the commit, that no lock of a handshake was lost meanwhile."""
        for awake in self._closed:
            await awake.prove()
        self.replaced = None


class _Awake:
    """A handshake's session that waits for the others."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._one_at_a_time = asyncio.Lock()

    async def prove(self) -> None:
        """Ask the session something. Raises what `UNAVAILABLE` lists where it is lost."""
        async with self._one_at_a_time:
            await self._ledger.keep_alive()


@contextlib.asynccontextmanager
async def _keeping_awake(ledger: Ledger) -> AsyncIterator[_Awake]:
    """Keep a session from being taken for frozen. Whether it was lost, `prove` tells."""
    awake, ended = _Awake(ledger), asyncio.Event()

    async def keep() -> None:
        while not ended.is_set():
            await awake.prove()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AWAKE_S):
                    await ended.wait()

    task = asyncio.create_task(keep())
    try:
        yield awake
    finally:
        ended.set()
        await asyncio.gather(task, return_exceptions=True)


async def _compared(handshake: Handshake) -> Result:
    """Have a partition compared that was left closed; a text says why that cannot be done."""
    for _ in range(_TRIES):
        try:
            return await handshake.run()
        except (HandshakeImpossible, RedisError, OSError) as error:
            why = str(error) or type(error).__name__
        await asyncio.sleep(_PAUSE_S)
    return why


async def _rows(rows: Iterator[bytes], on_rows: OnRows) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(next, rows, b""):
        yield chunk
        on_rows(chunk.count(b"\n"))
