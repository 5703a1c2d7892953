"""The watch of one worker on real stores: what each level needs, and what a hidden Redis tells."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from urllib.parse import quote

import pytest

from service.ledger import LedgerPool
from service.metrics import Metrics
from service.redis_store import RedisStore
from service.settings import Durability
from service.store_watch import StoreWatch
from service.suspension import Suspension
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually

STATED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


@contextlib.asynccontextmanager
async def watching(
    stores: Stores,
    durability: Durability = "fsync",
    *,
    redis_url: str = "",
    postgresql_url: str = "",
    stated: Mapping[str, str] | None = None,
) -> AsyncIterator[Suspension]:
    """Watch meanwhile."""
    redis = RedisStore(redis_url or stores.redis_url)
    ledgers = LedgerPool(postgresql_url or stores.postgresql_url, size=1, purpose="api watch")
    suspension = Suspension()
    watch = StoreWatch(
        redis, ledgers, suspension, Metrics(), durability=durability, stated=stated or {}
    )
    watch.start()
    try:
        yield suspension
    finally:
        await watch.stop()
        await redis.aclose()
        await ledgers.aclose()


@contextlib.asynccontextmanager
async def configured(valkey: Client, **settings: str) -> AsyncIterator[None]:
    """Set Redis so meanwhile."""
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    usual = await valkey.config_get(*names)
    await valkey.config_set(*(word for pair in names.items() for word in pair))
    try:
        yield
    finally:
        for name, value in usual.items():
            await valkey.config_set(name, value)


async def suspended(suspension: Suspension) -> str:
    """Wait until there is a reason."""

    async def is_suspended() -> bool:
        return bool(suspension.why)

    await eventually(is_suspended)
    return suspension.why


async def resumed(suspension: Suspension) -> None:
    """Wait until there is none."""

    async def is_resumed() -> bool:
        return not suspension.why

    await eventually(is_resumed)


async def test_recorded_needs_no_file(stores: Stores, valkey: Client) -> None:
    """What is looked at is what the level needs: an AOF is not, an eviction policy is."""
    async with watching(stores, "recorded") as suspension:
        async with configured(valkey, appendonly="no", appendfsync="no"):
            async with configured(valkey, maxmemory_policy="volatile-lru"):
                why = await suspended(suspension)
            await resumed(suspension)
        assert "maxmemory-policy 'volatile-lru'" in why
        assert "append" not in why


@pytest.fixture
async def hidden(valkey: Client, stores: Stores) -> AsyncIterator[str]:
    """The URL of a user that may not ask CONFIG GET."""
    await valkey.execute_command(
        "ACL", "SETUSER", "hosted", "on", ">word", "~*", "&*", "+@all", "-config"
    )
    yield stores.redis_url.replace("unix://", "unix://hosted:word@")
    await valkey.execute_command("ACL", "DELUSER", "hosted")


@pytest.mark.parametrize(
    ("setting", "value"), [("appendonly", "no"), ("maxmemory_policy", "allkeys-random")]
)
async def test_a_redis_that_hides_its_configuration_is_watched_by_info(
    stores: Stores, valkey: Client, hidden: str, setting: str, value: str
) -> None:
    """Against what is stated of it."""
    async with watching(stores, redis_url=hidden, stated=STATED) as suspension:
        async with configured(valkey, **{setting: value}):
            assert f"{setting.replace('_', '-')} '{value}'; fsync" in await suspended(suspension)
        await resumed(suspension)


async def test_what_info_does_not_tell_is_not_watched(
    stores: Stores, valkey: Client, hidden: str
) -> None:
    """`appendfsync` of a hidden configuration: the README says so."""
    async with (
        watching(stores, redis_url=hidden, stated=STATED) as suspension,
        configured(valkey, appendfsync="everysec", maxmemory_policy="allkeys-lru"),
    ):
        assert "appendfsync" not in await suspended(suspension)


async def test_options_of_our_own_win(stores: Stores, record: Record) -> None:
    """A session whose URL sets synchronous_commit is given it, whatever its role is."""
    database = await record.fetchval("SELECT current_database()")
    await record.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    options = quote("-c synchronous_commit=on")
    async with watching(stores) as plain:
        await suspended(plain)
        url = f"{stores.postgresql_url}&options={options}"
        async with watching(stores, "recorded", postgresql_url=url) as own:
            await asyncio.sleep(0)
            ledgers = LedgerPool(url)
            async with ledgers.acquire() as ledger:
                found = await ledger.inspect()
            await ledgers.aclose()
            assert found.settings["synchronous_commit"] == "on"
            assert found.next_settings == {}
            assert not own.why


async def test_a_record_that_is_away_is_not_ready_where_all_wait_for_it(stores: Stores) -> None:
    """At `recorded` alone, and it suspends nothing: a commit may still come in time."""
    url = "postgresql://onsale@127.0.0.1:1/onsale"
    async with (
        watching(stores, "recorded", postgresql_url=url) as recorded,
        watching(stores, "fsync", postgresql_url=url) as fsync,
    ):

        async def is_away() -> bool:
            return bool(recorded.away)

        await eventually(is_away)
        assert recorded.why == fsync.why == fsync.away == ""


async def test_a_session_begun_under_a_wrong_setting_is_ended(
    stores: Stores, record: Record
) -> None:
    """It would keep the setting, and the worker would stay suspended for ever."""
    database = await record.fetchval("SELECT current_database()")
    await record.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off')
    async with watching(stores) as suspension:  # its first session begins now
        assert "PostgreSQL has synchronous_commit 'off'; " in await suspended(suspension)
        await record.execute(f'ALTER DATABASE "{database}" RESET synchronous_commit')
        await resumed(suspension)


async def test_a_file_that_was_off_counts_once_it_is_written_anew(
    stores: Stores, valkey: Client
) -> None:
    """Switched on again it holds nothing of what came meanwhile until its rewrite has ended."""
    await valkey.mset({f"key{number}": "value" for number in range(2_000)})
    slow = configured(valkey, rdb_key_save_delay="1000")  # µs a key: two seconds in all
    async with watching(stores) as suspension, configured(valkey, aof_use_rdb_preamble="yes"):
        async with slow, configured(valkey, appendonly="no"):
            assert "appendonly 'no'" in await suspended(suspension)

        async def is_written() -> bool:
            return suspension.why == "Valkey is still writing its AOF anew"

        await eventually(is_written)
        await resumed(suspension)
        assert not (await valkey.info("persistence"))["aof_rewrite_in_progress"]
