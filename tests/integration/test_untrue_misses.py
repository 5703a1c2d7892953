"""A 404 is only said of a record that cannot have lost the event: clients give up at a 404."""

import asyncio

import pytest

from service.app import Worker
from service.engine import Engine
from service.errors import Problem
from service.lineage import NOWHERE, Position
from service.loader import Loader
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import ready, writing
from tests.integration.restoring import RecordCopies, caught_up, replacing, somebody_waits


@pytest.fixture
async def event_id(
    settings: Settings, stores: Stores, engine: Engine, redis_store: RedisStore, valkey: Client
) -> int:
    """Copy the record, sell, and have Redis made anew: it misses what the copy never had."""
    await ready(engine)
    copies = RecordCopies(stores)
    async with writing(settings):
        await caught_up(copies, redis_store)
        await copies.take()
        event = await engine.initialize("Event Name", 3)
        await engine.book(event.event_id, "a")
        await caught_up(copies, redis_store)
    await valkey.flushall()
    await ready(engine)
    return event.event_id


async def test_a_record_that_went_back_says_nothing_of_an_event(
    stores: Stores, engine: Engine, event_id: int, redis_store: RedisStore
) -> None:
    """Nobody has noticed yet: whoever asks has the stores compared, and hears that it is closed."""
    await RecordCopies(stores).restore()
    with pytest.raises(Problem, match="PostgreSQL") as caught:
        await engine.event(event_id)
    assert caught.value.code == "closed"
    meta = await redis_store.meta(0)
    assert meta is not None
    assert not meta.open


async def test_a_record_that_goes_back_during_a_load_says_nothing_of_it(
    settings: Settings,
    stores: Stores,
    engine: Engine,
    event_id: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was looked at before, and had caught up: what is read then must reach as far."""
    catch_up = Loader._catch_up

    async def restored(self: Loader, missed_at: Position) -> None:
        monkeypatch.undo()
        async with writing(settings):
            await catch_up(self, missed_at)
        await RecordCopies(stores).restore()

    monkeypatch.setattr(Loader, "_catch_up", restored)
    with pytest.raises(Problem) as caught:
        await engine.event(event_id)
    assert caught.value.code == "closed"


async def test_a_load_waits_for_a_restore(
    settings: Settings, stores: Stores, engine: Engine, event_id: int
) -> None:
    """The tables are empty for a moment that nobody may see."""
    async with writing(settings):
        async with replacing(stores.postgresql_url) as record:
            asking = asyncio.ensure_future(engine.event(event_id))
            await somebody_waits(record)
        assert (await asking).available == 2


async def test_one_that_was_never_drawn_is_none_whoever_is_away(
    engine: Engine, event_id: int, record: Record
) -> None:
    """P lags behind R, as no writer runs: 404 at once all the same, not 503."""
    assert await record.fetchval("SELECT seq FROM cursors") == 3
    async with asyncio.timeout(1):
        with pytest.raises(Problem) as caught:
            await engine.event(event_id + 1)
    assert caught.value.code == "event_not_found"


async def test_a_watermark_is_of_its_epoch(settings: Settings, valkey: Client) -> None:
    """What another epoch knows to be on record says nothing about the one that missed an event."""
    worker = Worker(settings)
    async with worker as engine:
        await ready(engine)
        partition = worker.partitions[0]
        assert await partition.watermark(1) == NOWHERE
        assert await partition.watermark(2) is None
        await valkey.flushall()
        assert await partition.watermark(1) is None
