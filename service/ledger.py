"""PostgreSQL, the record: its connections, what is read from it, and the locks on it.

With `record` and `decision` the only holder of SQL; nothing here decides. A connection is thrown
away after any error; see `connect`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Self

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from service import postgresql_client
from service.decision import Decision
from service.errors import ConfigurationError
from service.event_record import EventRecord
from service.inspection import inspect_postgresql
from service.letters import Letters
from service.lineage import NOWHERE, Epoch, Lineage, Position
from service.projection import raise_event_ids
from service.record import Application, Cursor
from service.sessions import (
    POOL_COMMAND_S,
    end_frozen_holders,
    end_stale_holder,
    make_own,
    open_session,
    settings,
)
from service.soundness import PostgresqlAsFound
from service.sqlstates import refusing

UNAVAILABLE = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # of a connection that ends in the middle: "cannot switch to …"
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
)
"""What a statement raises when PostgreSQL cannot do it now; another connection may, later."""

TABLES = (
    "deployment",
    "cursors",
    "epochs",
    "journal",
    "dead_letters",
    "events",
    "bookings",
    "orphans",
)
"""Every table that a migration makes, in the order in which they are locked: `cursors` before what
the writer touches while it holds a cursor. A database may hold others, which are not ours."""

_HANDSHAKE_LOCK = 0x6F6E73
"""First key of the advisory locks under which handshakes run, one at a time per partition."""

_EPOCHS_PER_SECOND = 3

_CURSORS = (
    "SELECT partition, epoch, seq, head FROM cursors WHERE partition = ANY($1) ORDER BY partition"
)
_LOCK_CURSORS = _CURSORS + " FOR UPDATE"


class Ledger:
    """One connection to the record. Methods raise what `UNAVAILABLE` lists."""

    def __init__(self, connection: "asyncpg.Connection | PoolConnectionProxy") -> None:
        """Wrap a connection made by `connect`."""
        self._connection = connection
        self.letters = Letters(connection)
        self.event_record = EventRecord(connection)

    async def __aenter__(self) -> Self:
        """Nothing to do: it is connected."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close; whatever the connection held (locks, a transaction) is let go by the server."""
        try:
            await self._connection.close(timeout=1)
        except UNAVAILABLE:
            self._connection.terminate()

    async def inspect(self) -> PostgresqlAsFound:
        """Return what its soundness depends on, as this session has it."""
        return await inspect_postgresql(self._connection)

    async def keep_alive(self) -> None:
        """Prove to the server that this session is not frozen."""
        await self._connection.execute("SELECT 1")

    async def claim_partitions(self, partitions: int) -> None:
        """Put the number of partitions on record at the first start, or compare it.

        Raises ConfigurationError when the record has another: events would change partition.
        """
        await self._connection.execute(
            "INSERT INTO deployment (partitions) VALUES ($1) ON CONFLICT DO NOTHING",
            partitions,
        )
        held = await self._connection.fetchval("SELECT partitions FROM deployment")
        if held != partitions:
            msg = f"ONSALE_PARTITIONS is {partitions}, but this record was begun with {held}"
            raise ConfigurationError(msg)

    async def cursors(self, partitions: Iterable[int]) -> dict[int, Cursor]:
        """Return P of each partition; one that was never begun is absent."""
        return await self._cursors(_CURSORS, partitions)

    async def cursor(self, partition: int) -> Position:
        """Return P of one partition."""
        found = await self.cursors([partition])
        return found[partition].last if partition in found else NOWHERE

    async def lineages(self, partitions: Iterable[int]) -> dict[int, Lineage]:
        """Return the lineage of each partition, whole: for what is asked seldom."""
        return (await self._lineages(dict.fromkeys(partitions, 0)))[0]

    async def newest_epoch(self, partition: int) -> int:
        """Return the newest epoch that has begun or is about to, 0 for none."""
        return int(
            await self._connection.fetchval(
                "SELECT coalesce(max(epoch), 0) FROM epochs"
                " WHERE partition = $1 AND beginning IS NOT NULL",
                partition,
            )
        )

    async def position_of(self, partition: int, seq: int) -> Position:
        """Return a seq with the epoch that it belongs to on the lineage (0 for none).

        Reads the epochs that began at that seq or later, and the one before them.
        """
        epoch = await self._connection.fetchval(
            "SELECT epoch FROM epochs WHERE partition = $1 AND beginning < $2"
            " ORDER BY epoch DESC LIMIT 1",
            partition,
            seq,
        )
        return Position(epoch or 0, seq)

    async def _lineages(self, since: Mapping[int, int]) -> tuple[dict[int, Lineage], bool]:
        """Return each partition's epochs from a number on, and whether there are dead letters.

        Asked in one question, partition by partition in the order of the index: the planner takes
        a range of unknown bounds for a third of the table.
        """
        rows = await self._connection.fetch(
            "SELECT wanted.partition, epoch, beginning, predecessor, verdict,"
            " EXISTS (SELECT FROM dead_letters) AS has_letters"
            " FROM unnest($1::integer[], $2::bigint[]) AS wanted (partition, since)"
            " CROSS JOIN LATERAL (SELECT epoch, beginning, predecessor, verdict FROM epochs"
            " WHERE epochs.partition = wanted.partition AND epoch >= since"
            " AND beginning IS NOT NULL ORDER BY epoch) AS found",
            list(since),
            list(since.values()),
        )
        epochs: dict[int, list[Epoch]] = {partition: [] for partition in since}
        for row in rows:
            epochs[row["partition"]].append(
                Epoch(row["epoch"], row["beginning"], row["predecessor"], row["verdict"])
            )
        lineages = {partition: Lineage(found) for partition, found in epochs.items()}
        return lineages, any(row["has_letters"] for row in rows)

    async def _cursors(self, query: str, partitions: Iterable[int]) -> dict[int, Cursor]:
        rows = await self._connection.fetch(query, list(partitions))
        return {
            row["partition"]: Cursor(Position(row["epoch"], row["seq"]), row["head"])
            for row in rows
        }

    async def draw_event(self, name: str, capacity: int, above: int = 0) -> int:
        """Put a new event on record as `opening`, and return its id, which is greater than `above`.

        A record that was put back, or two partitions that are brought forward at once, may have set
        the ids back behind those of events that are there: then the next is above all of them.
        """
        if above:
            await raise_event_ids(self._connection, above)
        while True:
            drawn = await self._connection.fetchval(
                "INSERT INTO events (name, capacity) VALUES ($1, $2)"
                " ON CONFLICT DO NOTHING RETURNING id",
                name,
                capacity,
            )
            if drawn is not None:
                return int(drawn)
            newest = await self._connection.fetchval("SELECT max(id) FROM events")
            await raise_event_ids(self._connection, newest)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Self]:
        """Make all that is read inside be of one moment, of every table.

        The locks come before the snapshot: a restore that empties the tables is over by then, or
        waits. An older snapshot would find them empty.
        """
        async with self._connection.transaction(isolation="repeatable_read", readonly=True):
            await self._connection.execute(f"LOCK TABLE {', '.join(TABLES)} IN ACCESS SHARE MODE")
            yield self

    @asynccontextmanager
    async def _locking(self, partitions: Iterable[int]) -> AsyncIterator[dict[int, Cursor]]:
        """One transaction that holds the cursors' locks.

        Who is kept from a lock for too long ends the session that holds it frozen, and fails.
        """
        wanted = sorted(partitions)
        try:
            async with self._connection.transaction():
                yield await self._cursors(_LOCK_CURSORS, wanted)
        except asyncpg.LockNotAvailableError:
            await end_frozen_holders(self._connection, wanted)
            raise

    @asynccontextmanager
    async def applying(self, partitions: Iterable[int]) -> AsyncIterator[Application]:
        """One transaction that holds the cursors' locks; commits at the end, or not at all.

        The epochs are read after the locks, so that a handshake's verdict is seen or waits; those
        from the cursor's on, which are all that a change that follows it can be of.
        Raises RefusedChangeError for a change that PostgreSQL refuses for what it says.
        """
        wanted = list(partitions)
        with refusing():
            async with self._locking(wanted) as cursors:
                since = {n: cursors[n].last.epoch if n in cursors else 0 for n in wanted}
                lineages, has_letters = await self._lineages(since)
                yield Application(self._connection, cursors, lineages, has_letters=has_letters)

    async def lock_handshake(self, partition: int, *, wait_s: float) -> bool:
        """Become the only handshake of a partition, until this connection ends.

        False when another held it all the time. A holder that can be no handshake is ended.
        """
        if await self._lock_handshake(partition, wait_s):
            return True
        ended = await end_stale_holder(self._connection, _HANDSHAKE_LOCK, partition)
        return bool(ended) and await self._lock_handshake(partition, wait_s)

    async def _lock_handshake(self, partition: int, wait_s: float) -> bool:
        try:
            async with self._connection.transaction():
                await self._connection.execute(f"SET LOCAL lock_timeout = {int(wait_s * 1000)}")
                await self._connection.execute(
                    "SELECT pg_advisory_lock($1, $2)", _HANDSHAKE_LOCK, partition
                )
        except asyncpg.LockNotAvailableError:
            return False
        return True

    async def highest_epoch(self, partition: int) -> int:
        """Return the greatest epoch that the record knows of, closed ones included."""
        return int(
            await self._connection.fetchval(
                "SELECT coalesce(max(epoch), 0) FROM (SELECT epoch FROM epochs WHERE partition = $1"
                " UNION ALL SELECT epoch FROM cursors WHERE partition = $1"
                " UNION ALL SELECT epoch FROM orphans WHERE partition = $1) AS known",
                partition,
            )
        )

    async def pause_before_epoch(self, partition: int) -> float:
        """Return in how many seconds another epoch may begin: three a second, by this clock.

        Two processes that disagree about Redis end each other's epochs as fast as they can.
        """
        pause = await self._connection.fetchval(
            "SELECT extract(epoch FROM decided_at - clock_timestamp())::float + 1 FROM epochs"
            " WHERE partition = $1 ORDER BY epoch DESC OFFSET $2 LIMIT 1",
            partition,
            _EPOCHS_PER_SECOND - 1,
        )
        # Above a second: the clock was set back since.
        return pause if pause is not None and 0 < pause <= 1 else 0.0

    @asynccontextmanager
    async def deciding(self, partition: int) -> AsyncIterator[Decision]:
        """One transaction in which P stands still and a verdict is put on record."""
        async with self._locking([partition]) as cursors:
            yield Decision(
                self._connection,
                partition,
                cursors[partition].last if partition in cursors else None,
                (await self.lineages([partition]))[partition],
            )


async def connect(
    url: str, *, purpose: str, idle_s: int = 0, timeout_s: float = 5.0, **more: str
) -> Ledger:
    """Connect to the record. Nothing a session does may hang for ever, whoever is frozen.

    `idle_s` (0: never) ends a session that asks nothing for so long, and with it its locks; `more`
    settings of the server.
    """
    return Ledger(
        await open_session(url, purpose, idle_s=idle_s, timeout_s=timeout_s, certain=False, **more)
    )


async def _keep_settings(_: object) -> None:
    """Lend a connection again as it is: asyncpg's own reset would undo the session's settings."""


class LedgerPool:
    """A few connections for what the API asks of the record outside a handshake."""

    def __init__(
        self, url: str, *, size: int = 4, timeout_s: float = 2.0, purpose: str = "api"
    ) -> None:
        """Remember where PostgreSQL is; connections are made when needed."""
        self._url = url
        self._purpose = purpose
        self._size = size
        self._timeout_s = timeout_s
        self._pool: asyncpg.Pool | None = None

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Ledger]:
        """Lend a connection. Raises what `UNAVAILABLE` lists."""
        if self._pool is None:
            connect = partial(postgresql_client.connect, self._url, timeout=self._timeout_s)
            self._pool = postgresql_client.create_pool(
                self._url,
                min_size=0,
                max_size=self._size,
                timeout=self._timeout_s,
                command_timeout=POOL_COMMAND_S,
                init=partial(make_own, wanted=settings(self._purpose), connect=connect),
                reset=_keep_settings,
            )
            await self._pool
        async with self._pool.acquire(timeout=self._timeout_s) as connection:
            yield Ledger(connection)

    async def expire(self) -> None:
        """Have each connection that there is closed rather than lent again."""
        if self._pool is not None:
            await self._pool.expire_connections()

    async def aclose(self) -> None:
        """Close all connections, without waiting for a server that is away."""
        if self._pool is not None:
            self._pool.terminate()
