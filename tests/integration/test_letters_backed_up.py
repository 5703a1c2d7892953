"""Dead letters in a backup: they and the frozen event come back, and can be put on record there."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from service.app import Worker
from service.auditor import audit
from service.engine import Engine
from service.errors import Problem
from service.handshake import Opened, StaysClosed
from service.reconciler import reconcile
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Record, Stores
from tests.integration.backups import booked, elsewhere, is_sound, made, restored
from tests.integration.conftest import eventually, operating, writing
from tests.integration.restoring import RecordCopies, caught_up


@dataclass(frozen=True)
class Sale:
    """Two events: of one, vip and who came after vip are dead letters. `seq` is vip's."""

    one: int
    two: int
    seq: int


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the backup of the sale with its letters is."""
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "frozen"


@pytest.fixture
async def sale(engine: Engine, settings: Settings, stores: Stores, redis_store: RedisStore,
               record: Record, directory: Path) -> Sale:  # fmt: skip
    """Back up before vip books; have PostgreSQL refuse vip, set that aside, and back up again."""
    async with writing(settings):
        one = (await engine.initialize("One", 3)).event_id
        two = (await engine.initialize("Two", 3)).event_id
        await engine.book(one, "early")
        await made(stores, directory.with_name("before"))
        await record.execute("ALTER TABLE bookings ADD CONSTRAINT n CHECK (user_id <> 'vip')")
    seq = (await engine.book(one, "vip")).at.seq
    await engine.book(one, "b")
    await engine.book(two, "a")
    async with operating(settings) as letters, writing(settings):
        assert (await letters.move(0, [seq], apply=True)).done == Opened(2)
        await caught_up(RecordCopies(stores), redis_store)
        await made(stores, directory)
    return Sale(one, two, seq)


async def is_frozen(engine: Engine, sale: Sale) -> None:
    """Wait until nobody books at the first event, for that reason."""

    async def refused() -> bool:
        try:
            await engine.book(sale.one, "anybody")
        except Problem as problem:
            return problem.code == "closed" and "frozen" in problem.detail
        return False

    await eventually(refused)


async def is_recorded(settings: Settings) -> None:
    """Wait until both stores agree, nothing in flight."""
    assert settings.own_redis_url is not None
    assert settings.postgresql_url is not None
    urls = settings.own_redis_url, settings.postgresql_url

    async def clean() -> bool:
        report = await audit(urls[1])
        return report.verdict == "holds" and (await reconcile(*urls)).verdict == "clean"

    await eventually(clean)


async def letters_of(settings: Settings) -> list[tuple[str, int]]:
    """Return who and what is set aside."""
    async with operating(settings) as letters:
        return [(row["user_id"], row["seq"]) for row in (await letters.kept()).letters]


async def test_they_are_restored_on_another_machine_and_retried_there(
    stores: Stores, sale: Sale, directory: Path
) -> None:
    """Frozen from the first answer on; the record there takes them, and all of it holds."""
    there = await elsewhere(stores)
    done = await restored(there, directory)
    assert (done.exit_code, done.audit, done.reconcile) == (0, "holds", "frozen")
    assert await letters_of(there) == [("vip", sale.seq), ("b", sale.seq + 1)]
    assert await booked(there) == {"early": "booked", "a": "booked"}
    async with Worker(there) as engine, writing(there):
        await is_frozen(engine, sale)
        assert (await engine.book(sale.two, "c")).status == "booked"
        async with operating(there) as letters:
            done_retry = await letters.retry(sale.one, apply=True)
            assert isinstance(done_retry.done, Opened)
            assert (await letters.retry(sale.one, apply=True)).letters == []
        assert (await engine.user(sale.one, "vip")).seq == sale.seq
        assert (await engine.book(sale.one, "late")).position == 1
    async with writing(there):
        await is_recorded(there)
    report = await is_sound(there)
    assert report.partitions[0].dead_letters == 0
    assert (await booked(there))["vip"] == "booked"


async def test_letters_since_the_backup_are_replayed_behind_it(
    settings: Settings, stores: Stores, engine: Engine, sale: Sale, directory: Path,
    redis_store: RedisStore, record: Record,
) -> None:  # fmt: skip
    """Onto the stores that it came from: what the outbox has beyond it follows, all in order."""
    async with writing(settings):
        await engine.book(sale.two, "c")
        await caught_up(RecordCopies(stores), redis_store)
    done = await restored(settings, directory)
    assert (done.exit_code, done.audit, done.reconcile) == (0, "holds", "frozen")
    assert done.results[0].how == "replay"  # type: ignore[union-attr]  # it is Opened
    await is_frozen(engine, sale)
    assert (await engine.user(sale.two, "c")).status == "booked"
    await record.execute("ALTER TABLE bookings DROP CONSTRAINT n")
    async with operating(settings) as letters, writing(settings):
        assert isinstance((await letters.retry(sale.one, apply=True)).done, Opened)
        await caught_up(RecordCopies(stores), redis_store)
    await is_sound(settings)


async def test_a_backup_of_before_is_brought_past_the_refused_change(
    settings: Settings, stores: Stores, engine: Engine, sale: Sale, directory: Path,
    redis_store: RedisStore, record: Record,
) -> None:  # fmt: skip
    """The restore ends closed, before vip; set aside again it opens, and nothing is lost."""
    done = await restored(settings, directory.with_name("before"))
    assert (done.exit_code, done.audit) == (1, "holds")
    result = done.results[0]
    assert isinstance(result, StaysClosed)
    assert result.reason.endswith("see `onsale deadletters list`")
    assert await letters_of(settings) == []
    async with operating(settings) as letters:
        assert isinstance((await letters.move(0, [sale.seq], apply=True)).done, Opened)
    await is_frozen(engine, sale)
    assert await letters_of(settings) == [("vip", sale.seq), ("b", sale.seq + 1)]
    await record.execute("ALTER TABLE bookings DROP CONSTRAINT n")
    async with operating(settings) as letters, writing(settings):
        assert isinstance((await letters.retry(sale.one, apply=True)).done, Opened)
        await caught_up(RecordCopies(stores), redis_store)
    assert await booked(settings) == dict.fromkeys(["early", "vip", "b", "a"], "booked")
    await is_sound(settings)
