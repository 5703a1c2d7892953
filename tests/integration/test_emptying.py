"""Emptying a partition: by its own index, in steps, with the lock's session kept alive."""

import pytest

from service import redis_store, unrecorded
from service.app import Worker
from service.handshake import Handshake
from service.keys import event_keys, events_key, partition_keys
from service.ledger import Ledger
from service.orders import Order
from service.settings import Settings
from tests.conftest import Client
from tests.integration.conftest import writing

META, CALLS, OUTBOX = partition_keys(0)
REBUILD = Order("a test orders it", "rebuild")
FOREIGN = 2_000


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """How often the lock's session was asked; it is at each step."""
    asked: list[None] = []

    async def keep_alive(_: Ledger) -> None:
        asked.append(None)

    monkeypatch.setattr(unrecorded, "_KEEP_ALIVE_S", -1.0)
    monkeypatch.setattr(Ledger, "keep_alive", keep_alive)
    return asked


async def scans(valkey: Client) -> int:
    """Return how often the keyspace was scanned."""
    stats = await valkey.info("commandstats")
    return int(stats.get("cmdstat_scan", {}).get("calls", 0))


async def with_events(handshake: Handshake, valkey: Client, count: int) -> None:
    """Begin, with events that Redis holds, in the index and of every key."""
    await handshake.run()
    pipe = valkey.pipeline()
    for event_id in range(1, count + 1):
        pipe.sadd(events_key(0), event_id)
        for name in event_keys(0, event_id):
            pipe.hset(name, "x", "y")
    await pipe.execute()


async def test_a_rebuild_does_not_look_at_the_keyspace(
    handshake: Handshake, valkey: Client, asked: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others keep in this Redis costs nothing, and stays; ours goes in bounded steps."""
    monkeypatch.setattr(redis_store, "_SCANNED", 100)
    await with_events(handshake, valkey, 2_000)
    await valkey.mset({f"foreign:{i}": "x" for i in range(FOREIGN)})
    before, asked[:] = await scans(valkey), []
    assert (await handshake.run(order=REBUILD)).how == "rebuild"  # type: ignore[union-attr]
    assert await scans(valkey) <= before + 1  # the right to it is tried
    assert len(asked) >= 8  # 8,000 keys of events, at most 1,000 a step
    assert await valkey.smembers(events_key(0)) == {"complete"}
    left = await valkey.keys("{p00}:*")
    assert set(left) == {META, OUTBOX, events_key(0)}
    assert await valkey.dbsize() == FOREIGN + len(left)


@pytest.mark.parametrize("meddled", ["none", "incomplete", "another type"])
async def test_a_partition_without_a_whole_index_is_found_by_a_scan(
    handshake: Handshake,
    valkey: Client,
    asked: list[None],
    meddled: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that was written before there was an index; the session is asked at each step."""
    await with_events(handshake, valkey, 1)
    monkeypatch.setattr(redis_store, "_SCANNED", 100)
    await valkey.mset({f"foreign:{i}": "x" for i in range(FOREIGN)})
    if meddled == "incomplete":
        await valkey.srem(events_key(0), "complete", "1")
    else:
        await valkey.delete(events_key(0))
    if meddled == "another type":
        await valkey.set(events_key(0), "meddled")
    asked[:] = []
    assert (await handshake.run(order=REBUILD)).how == "rebuild"  # type: ignore[union-attr]
    assert len(asked) >= FOREIGN // 120  # more than the removals of four keys alone
    assert set(await valkey.keys("{p00}:*")) == {META, OUTBOX, events_key(0)}


async def test_what_is_opened_and_loaded_is_in_the_index(
    settings: Settings, handshake: Handshake, valkey: Client
) -> None:
    """An event is there again after a rebuild, and a second rebuild still finds it."""
    async with Worker(settings) as engine, writing(settings):
        event = await engine.initialize("Event Name", 5)
        await engine.book(event.event_id, "a")
        assert await valkey.sismember(events_key(0), str(event.event_id))
        for _ in range(2):
            await handshake.run(order=REBUILD)
            assert not await valkey.keys("{p00}:event:*")
            assert (await engine.user(event.event_id, "a")).status == "booked"
            assert await valkey.sismember(events_key(0), str(event.event_id))
