"""Copies of a record, put back while the sale goes on: what the tests of a replay share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncpg

from service.auditor import audit
from service.engine import Engine
from service.errors import Problem
from service.ledger import TABLES
from service.reconciler import reconcile
from service.redis_store import RedisStore
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually
from tests.integration.test_writer import check_record, is_recorded


class RecordCopies:
    """Takes a copy of a test's database, and puts it back in the place of the newer one.

    Either takes a moment in which nobody can connect, as if PostgreSQL were away.
    """

    def __init__(self, stores: Stores) -> None:
        self._url = stores.postgresql_url
        self.name = self._url.partition("?")[0].rpartition("/")[2]
        self._admin_url = self._url.replace(f"/{self.name}?", "/postgres?")

    def url(self, suffix: str = "") -> str:
        return self._url.replace(f"/{self.name}?", f"/{self.name}{suffix}?")

    async def take(self) -> None:
        async with self._alone() as admin:
            await admin.execute(
                f'CREATE DATABASE "{self.name}_copy" TEMPLATE "{self.name}" STRATEGY file_copy'
            )
            await admin.execute(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS true')

    async def restore(self, *, kept_as: str = "lost", suffix: str = "copy") -> None:
        """Put a copy in the place of the database, which is kept under another name."""
        async with self._alone() as admin:
            kept = f"{self.name}_{kept_as}"
            await admin.execute(f'ALTER DATABASE "{self.name}" RENAME TO "{kept}"')
            await admin.execute(f'ALTER DATABASE "{self.name}_{suffix}" RENAME TO "{self.name}"')
            await admin.execute(f'ALTER DATABASE "{kept}" ALLOW_CONNECTIONS true')

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[Record]:
        """Connect as the only one: the database lets nobody else in."""
        admin = await asyncpg.connect(self._admin_url)
        try:
            await admin.execute(f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS false')
            await admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1",
                self.name,
            )
            yield admin
        finally:
            await admin.close()

    @contextlib.asynccontextmanager
    async def connected(self, suffix: str = "") -> AsyncIterator[Record]:
        connection = await asyncpg.connect(self.url(suffix))
        try:
            yield connection
        finally:
            await connection.close()


@dataclass
class Crowd:
    """People who book one event, and repeat until they are answered; every fourth cancels."""

    engine: Engine
    event_id: int
    booked: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    refusals: set[str] = field(default_factory=set)
    stopping: bool = False

    async def attend(self, name: str) -> None:
        number = 0
        while not self.stopping:
            user = f"{name}-{number}"
            await self._until_answered(user, cancel=False)
            self.booked.add(user)
            if number % 4 == 0:
                await self._until_answered(user, cancel=True)
                self.cancelled.add(user)
            number += 1

    async def grow(self, count: int) -> None:
        """Wait until so many more were answered."""
        target = len(self.booked) + count

        async def grown() -> bool:
            return len(self.booked) >= target

        await eventually(grown)

    async def _until_answered(self, user: str, *, cancel: bool) -> None:
        while True:
            try:
                if cancel:
                    await self.engine.cancel(self.event_id, user)
                else:
                    await self.engine.book(self.event_id, user)
            except Problem as problem:
                if problem.code == "not_booked":
                    return  # the first answer was lost
                self.refusals.add(problem.code)
                await asyncio.sleep(0.02)
            else:
                return


@contextlib.asynccontextmanager
async def crowding(engine: Engine, event_id: int, people: int = 6) -> AsyncIterator[Crowd]:
    """Have people come until the end of the block, and answer the last of them."""
    crowd = Crowd(engine, event_id)
    tasks = [asyncio.create_task(crowd.attend(f"p{number}")) for number in range(people)]
    try:
        yield crowd
    finally:
        crowd.stopping = True
        await asyncio.gather(*tasks)


async def is_whole(
    copies: RecordCopies, stores: Stores, valkey: Client, crowd: Crowd | None, event_id: int
) -> None:
    """Everything answered is on record once, as it was before, and both stores agree."""
    async with copies.connected() as record:
        await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event_id)
        rows = await record.fetch("SELECT kind, user_id FROM journal WHERE event_id = $1", event_id)
        if crowd is not None:
            joined = [row["user_id"] for row in rows if row["kind"] in ("booked", "waiting")]
            gone = [row["user_id"] for row in rows if row["kind"] in ("cancelled", "left")]
            assert len(joined) == len(set(joined))
            assert len(gone) == len(set(gone))
            assert set(joined) >= crowd.booked
            assert set(gone) >= crowd.cancelled
        async with copies.connected("_lost") as lost:
            await _is_the_same(record, lost)
    assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"
    assert (await audit(stores.postgresql_url)).verdict == "holds"


async def _is_the_same(record: Record, lost: Record) -> None:
    """What the lost record had, the new one has, hash by hash; and its epochs."""
    journal = "SELECT seq, hash FROM journal ORDER BY seq"
    had = [tuple(row) for row in await lost.fetch(journal)]
    assert [tuple(row) for row in await record.fetch(journal)][: len(had)] == had
    epochs = (
        "SELECT epoch, beginning, predecessor FROM epochs WHERE beginning IS NOT NULL"
        " ORDER BY epoch"
    )
    had = [tuple(row) for row in await lost.fetch(epochs)]
    assert [tuple(row) for row in await record.fetch(epochs)][: len(had)] == had


async def caught_up(copies: RecordCopies, redis_store: RedisStore, *, partitions: int = 1) -> None:
    """Wait until P is R and Redis knows."""

    async def done() -> bool:
        async with copies.connected() as record:
            rows = await record.fetch("SELECT epoch, seq FROM cursors ORDER BY partition")
        metas = [await redis_store.meta(number) for number in range(partitions)]
        return len(rows) == partitions and all(
            meta is not None and tuple(row) == meta.last == meta.recorded
            for row, meta in zip(rows, metas, strict=True)
        )

    await eventually(done)


@contextlib.asynccontextmanager
async def replacing(postgresql_url: str) -> AsyncIterator[Record]:
    """Hold the record as a restore does: all locked, emptied, and filled again as it was."""
    record = await asyncpg.connect(postgresql_url)
    try:
        async with record.transaction():
            # First of all: what was committed after a copy would be undone by it.
            await record.execute(f"LOCK TABLE {', '.join(TABLES)} IN ACCESS EXCLUSIVE MODE")
            for table in TABLES:
                await record.execute(f"CREATE TEMPORARY TABLE kept_{table} AS TABLE {table}")
            await record.execute(f"TRUNCATE {', '.join(TABLES)}")
            for table in TABLES:
                await record.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
            yield record
    finally:
        await record.close()


async def somebody_waits(record: Record) -> None:
    """Wait until another session waits for a lock."""

    async def waits() -> bool:
        found: bool = await record.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted"
            " AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
        )
        return found

    await eventually(waits)
