"""The connections of handshakes: how many there are, and a lock that none of them holds."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from service.handshake import Handshake, Opened
from service.handshakes import make_handshakes
from service.ledger import Ledger, connect
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Record, Stores
from tests.integration.conftest import eventually

_LOCK = "SELECT pg_advisory_lock(7302771, 0)"


@contextlib.asynccontextmanager
async def holding(stores: Stores, name: str, **settings: str) -> AsyncIterator[asyncpg.Connection]:
    """Hold the lock of partition 0's handshakes in a session of that name."""
    wanted = {"application_name": name, **settings}
    connection = await asyncpg.connect(stores.postgresql_url, server_settings=wanted)
    await connection.execute(_LOCK)
    yield connection
    await connection.close()


@pytest.mark.parametrize("state", ["idle", "idle in transaction"])
async def test_a_lock_in_a_foreign_session_is_ended(
    stores: Stores, handshake: Handshake, state: str
) -> None:
    """A pooler's, whose client of then is gone and that serves others by now."""
    async with holding(stores, "psql") as left:
        if state != "idle":
            await left.execute("BEGIN")
        assert await handshake.run() == Opened(1)
        await eventually_closed(left)


async def test_a_lock_in_a_session_that_is_silent_for_too_long_is_ended(
    stores: Stores, handshake: Handshake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is ours; the server would have ended it, had its settings been kept."""
    monkeypatch.setattr("service.sessions.HANDSHAKE_IDLE_S", -5)
    async with holding(stores, "onsale api handshake") as left:
        assert await handshake.run() == Opened(1)
        await eventually_closed(left)


async def test_a_living_handshake_is_not_ended(stores: Stores, record: Record) -> None:
    """However often another one asks, and whether it works or waits."""
    async with (
        await connect(stores.postgresql_url, purpose="api handshake", idle_s=15) as living,
        await connect(stores.postgresql_url, purpose="writer handshake", idle_s=15) as other,
    ):
        assert await living.lock_handshake(0, wait_s=1)
        working = asyncio.create_task(living._connection.execute("SELECT pg_sleep(0.3)"))
        for _ in range(3):
            assert not await other.lock_handshake(0, wait_s=0.05)
        await working
        assert not await other.lock_handshake(0, wait_s=0.05)
        assert await other.lock_handshake(1, wait_s=0.05)
        await living.keep_alive()


async def eventually_closed(connection: asyncpg.Connection) -> None:
    """Wait until the server has ended a session."""

    async def is_closed() -> bool:
        return connection.is_closed()

    await eventually(is_closed)


async def test_a_process_makes_two_connections_for_all_its_handshakes(
    settings: Settings, redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 partitions at once; and all are opened."""
    settings = settings.model_copy(update={"partitions": 16})
    open_now, most = set[Ledger](), list[int]()
    closed = Ledger.__aexit__

    async def counted(*arguments: object, **options: object) -> Ledger:
        ledger = await connect(*arguments, **options)  # type: ignore[arg-type]
        open_now.add(ledger)
        most.append(len(open_now))
        return ledger

    async def uncounted(self: Ledger, *error: object) -> None:
        await closed(self, *error)
        open_now.discard(self)

    monkeypatch.setattr("service.ledger.connect", counted)
    monkeypatch.setattr(Ledger, "__aexit__", uncounted)
    handshakes = make_handshakes(settings, redis_store, "api", bounded=True).values()
    assert await asyncio.gather(*(one.run() for one in handshakes)) == [Opened(1)] * 16
    assert max(most) == 2


async def test_too_many_clients_are_tried_again(
    settings: Settings, redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few times, before the handshake gives up for this time."""
    refused = iter([True, True, False])

    async def full(*arguments: object, **options: object) -> Ledger:
        if next(refused):
            raise asyncpg.TooManyConnectionsError("sorry, too many clients already")
        return await connect(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("service.ledger.connect", full)
    assert await make_handshakes(settings, redis_store, "api")[0].run() == Opened(1)
