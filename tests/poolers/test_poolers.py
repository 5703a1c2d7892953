"""PgBouncer between the service and its record: session pooling serves, any other is refused."""

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from service.app import Worker
from service.errors import ConfigurationError
from service.ledger import LedgerPool, connect
from service.migrations import migrate_up
from service.probes import probe_postgresql
from service.resources import sql_directory
from service.sessions import SharedSessionError, open_session, settings
from service.settings import Settings
from tests.conftest import Record, Stores
from tests.integration.conftest import eventually, writing
from tests.poolers.conftest import Pooler

pytestmark = pytest.mark.usefixtures("_apart")


@pytest.fixture
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has answered is no witness of another's stores."""
    monkeypatch.setenv("ONSALE_DATA_DIR", str(tmp_path / "data"))


SHARING = [
    {"mode": "transaction"},
    {"mode": "transaction", "server_round_robin": 1},
    {"mode": "transaction", "default_pool_size": 1},
    {"mode": "transaction", "min_pool_size": 5},
    {"mode": "transaction", "min_pool_size": 2, "server_round_robin": 1},
    {"mode": "statement"},
]


@pytest.mark.parametrize("how", SHARING, ids=str)
async def test_a_shared_session_is_refused_with_one_line(
    pooler: Pooler, how: dict[str, object]
) -> None:
    """At the start; each time, whatever the pooler lends next."""
    url = pooler(**how)
    for _ in range(5):
        with pytest.raises(ConfigurationError, match=r"pool_mode = session") as refused:
            await probe_postgresql(url)
        assert str(refused.value).startswith("DATABASE_URL: it leads through a connection pooler")
        assert "\n" not in str(refused.value)


async def test_a_session_of_a_role_is_refused_while_others_use_the_pooler(pooler: Pooler) -> None:
    """Also at run time, where the start was another address's; the pool's sessions too."""
    url = pooler("transaction")
    busy = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(3)]

    async def use(connection: asyncpg.Connection) -> None:
        while True:
            await connection.execute("SELECT 1")

    using = [asyncio.create_task(use(one)) for one in busy]
    for _ in range(5):
        with pytest.raises(SharedSessionError):
            await connect(url, purpose="writer")
    pool = LedgerPool(url)
    with pytest.raises(SharedSessionError):
        async with pool.acquire():
            pass
    await pool.aclose()
    for task in using:
        task.cancel()
    await asyncio.gather(*using, return_exceptions=True)
    for one in busy:
        one.terminate()


async def test_a_session_keeps_its_settings_through_a_session_pooler(pooler: Pooler) -> None:
    """Those of each role, also when the pool lends a connection again; none is refused."""
    url = pooler("session")
    session = await open_session(url, "writer", idle_s=15)
    names = "application_name", "lock_timeout", "idle_session_timeout", "timezone"
    shown = [await session.fetchval(f"SHOW {name}") for name in names]
    assert shown == ["onsale writer", "5s", "15s", "UTC"]
    await session.close()
    pool = LedgerPool(url)
    for _ in range(3):
        async with pool.acquire() as ledger:
            held = await ledger._connection.fetchval("SHOW statement_timeout")
            assert held == "1min" == settings("api")["statement_timeout"].replace("60s", "1min")
    await pool.aclose()


async def test_all_works_through_a_session_pooler(
    pooler: Pooler, stores: Stores, record: Record
) -> None:
    """Probe, migration, handshake, bookings, and the writer."""
    url = pooler("session")
    await probe_postgresql(url)
    await migrate_up(url, sql_directory())
    through = Settings(redis_url=stores.redis_url, database_url=url)
    async with writing(through), Worker(through) as engine:
        event = await engine.initialize("Event Name", 1)
        assert (await engine.book(event.event_id, "a")).status == "booked"

        async def is_on_record() -> bool:
            return bool(await record.fetchval("SELECT count(*) FROM bookings"))

        await eventually(is_on_record)


async def test_a_full_session_pool_is_no_shared_one(pooler: Pooler) -> None:
    """The one session that there is answers; another connection would wait for it."""
    session = await open_session(pooler("session", default_pool_size=1), "writer")
    assert await session.fetchval("SELECT 1") == 1
    session.terminate()


async def test_locks_that_were_left_in_a_pooled_session_are_let_go(
    pooler: Pooler, record: Record
) -> None:
    """By the next session of ours that is lent it, where the pooler does not reset sessions."""
    url = pooler("session", default_pool_size=2, server_reset_query="")
    careless = await asyncpg.connect(url)
    await careless.execute("SELECT pg_advisory_lock(77, 1)")
    await careless.close()
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 77"
    assert await record.fetchval(held) == 1
    session = await open_session(url, "writer")
    assert await record.fetchval(held) == 0
    await session.close()


def test_the_evidence_is_said() -> None:
    """An operator reads what was seen, and what to change."""
    assert re.search(r"\(it was seen\).*pool_mode", str(SharedSessionError("it was seen")))
