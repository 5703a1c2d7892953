"""A writer that is frozen and wakes after another has taken over: nothing happens twice.

`onsale writer` processes on their own, stopped with SIGSTOP until the other has gone far beyond.
`ONSALE_TEST_FROZEN_S=30` keeps them frozen for so long on top, and `ONSALE_TEST_POINTS` says at how
many moments.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.auditor import audit
from service.engine import Engine
from service.keys import partition_keys
from service.reconciler import reconcile
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually
from tests.servers import Role

FROZEN_S = float(os.environ.get("ONSALE_TEST_FROZEN_S", "0"))
"""How long a frozen writer stays so, once the other has taken over."""

META, _, _ = partition_keys(0)


class Crowd:
    """People who book and cancel at one event, for as long as it lasts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.event_id = 0
        self._number = 0

    async def open(self) -> None:
        """Open the event."""
        self.event_id = (await self._engine.initialize("Event Name", 50)).event_id

    async def some(self, count: int = 20) -> None:
        """Have some people book, and every third cancel."""
        users = [f"u{number}" for number in range(self._number, self._number + count)]
        self._number += count
        await asyncio.gather(*(self._engine.book(self.event_id, user) for user in users))
        await asyncio.gather(*(self._engine.cancel(self.event_id, user) for user in users[::3]))

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Go on with it in the background."""

        async def go_on() -> None:
            while True:
                await self.some()
                await asyncio.sleep(0.02)

        task = asyncio.create_task(go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def crowd(engine: Engine) -> Crowd:
    """A crowd at an event."""
    crowd = Crowd(engine)
    await crowd.open()
    return crowd


@asynccontextmanager
async def writers(stores: Stores, count: int) -> AsyncIterator[list[Role]]:
    """Writers as processes of their own; one that is frozen is woken before it is ended."""
    roles = [Role("writer", {**stores.environment, "ONSALE_ROLE": ""}) for _ in range(count)]
    try:
        yield roles
    finally:
        for role in roles:
            if role._process is not None:
                role._process.send_signal(signal.SIGCONT)
                role.kill()


async def is_recorded(record: Record, valkey: Client) -> bool:
    """Whether P is R."""
    row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
    held = await valkey.hmget(META, "epoch", "seq")
    return row is not None and [str(word) for word in row] == held


async def backends(record: Record) -> set[int]:
    """Return the pids of the writers' sessions."""
    rows = await record.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'onsale writer'"
    )
    return {row["pid"] for row in rows}


async def holders(record: Record) -> bool:
    """Whether a writer is inside its transaction, with the cursor's lock."""
    return bool(
        await record.fetchval(
            "SELECT count(*) FROM cursors c JOIN pg_locks l ON l.transactionid = c.xmax"
            " AND l.locktype = 'transactionid' AND l.granted JOIN pg_stat_activity a USING (pid)"
            " WHERE a.application_name = 'onsale writer'"
        )
    )


async def all_is_well(stores: Stores, record: Record, valkey: Client) -> None:
    """Nothing twice, no gap, and both stores say the same."""
    await eventually(lambda: is_recorded(record, valkey))
    report = await audit(stores.postgresql_url)
    assert report.violations.kept == []
    assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"
    assert await record.fetchval("SELECT count(*) FROM epochs") == 1


@pytest.mark.timeout(300)
async def test_a_writer_frozen_inside_its_transaction_does_nothing_twice(
    stores: Stores, crowd: Crowd, record: Record, valkey: Client
) -> None:
    """It holds the cursor's lock: the other ends its session, goes on, and wakes it to nothing."""
    async with writers(stores, 2) as (first, second):
        first.start()
        await crowd.some()
        await eventually(lambda: is_recorded(record, valkey))
        async with record.transaction():
            # The writer waits for this with the cursor's lock in its hand, and is frozen there.
            await record.execute("LOCK TABLE bookings IN SHARE MODE")
            await crowd.some()
            await eventually(lambda: holders(record))
            os.kill(first.pid, signal.SIGSTOP)
        # Its statement goes through on the server, and nobody sends the next: idle in transaction.
        (frozen,) = await backends(record)
        second.start()
        async with crowd.going_on():

            async def taken_over() -> bool:
                return frozen not in await backends(record) and bool(await backends(record))

            await eventually(taken_over)
            before = await record.fetchval("SELECT seq FROM cursors")

            async def goes_on() -> bool:
                return bool(await record.fetchval("SELECT seq FROM cursors") > before + 100)

            await eventually(goes_on)
            await asyncio.sleep(FROZEN_S)
            os.kill(first.pid, signal.SIGCONT)

            async def awake() -> bool:
                return len(await backends(record)) == 2

            await eventually(awake)
        await all_is_well(stores, record, valkey)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("moment", range(int(os.environ.get("ONSALE_TEST_POINTS", "1"))))
async def test_a_writer_frozen_at_any_moment_does_nothing_twice(
    stores: Stores, crowd: Crowd, record: Record, valkey: Client, moment: int
) -> None:
    """Under load, wherever it is: the other takes over, and the first wakes among its changes."""
    async with writers(stores, 2) as (first, second):
        first.start()
        async with crowd.going_on():

            async def at_work() -> bool:
                at = await record.fetchval("SELECT seq FROM cursors")
                return bool(at and at > 60 + 37 * moment)

            await eventually(at_work)
            os.kill(first.pid, signal.SIGSTOP)
            stood_at = await record.fetchval("SELECT seq FROM cursors")
            second.start()

            async def taken_over() -> bool:
                return bool(await record.fetchval("SELECT seq FROM cursors") > stood_at + 100)

            await eventually(taken_over)
            await asyncio.sleep(FROZEN_S)
            os.kill(first.pid, signal.SIGCONT)
            woke_at = await record.fetchval("SELECT seq FROM cursors")

            async def both() -> bool:
                seq = await record.fetchval("SELECT seq FROM cursors")
                return bool(seq > woke_at + 100) and len(await backends(record)) == 2

            await eventually(both)
        await all_is_well(stores, record, valkey)


@pytest.mark.timeout(300)
async def test_two_writers_under_load_apply_nothing_twice(
    stores: Stores, crowd: Crowd, record: Record, valkey: Client
) -> None:
    """Both live all the while; the cursor's row decides who applies."""
    async with writers(stores, 2) as (first, second):
        first.start()
        second.start()
        async with crowd.going_on():

            async def far() -> bool:
                at = await record.fetchval("SELECT seq FROM cursors")
                return bool(at and at > 1_500) and len(await backends(record)) == 2

            await eventually(far)
        await all_is_well(stores, record, valkey)
        for role in (first, second):
            assert role._process is not None
            assert role._process.poll() is None
