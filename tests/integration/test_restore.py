"""A restore is a handshake like any other: all is closed, the record replaced, and compared."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import asyncpg
import pytest

from service import restoring
from service.app import Worker
from service.backup_files import BackupRefusedError
from service.engine import Engine
from service.handshake import Handshake, Opened, StaysClosed
from service.handshakes import make_handshakes
from service.keys import partition_keys
from service.lineage import Position
from service.record_tables import RecordTables
from service.redis_store import RedisStore
from service.resources import sql_directory
from service.restoring import CannotReplaceError, Restoration
from service.settings import Settings
from service.witness import answered_on_host
from tests.conftest import Client, Record, Stores
from tests.integration.backups import (
    booked,
    content,
    database_of,
    elsewhere,
    is_sound,
    made,
    on_database,
    restored,
    rewrite_manifest,
)
from tests.integration.conftest import confirm_loss, eventually, ready, writing
from tests.integration.restoring import RecordCopies, caught_up, crowding, somebody_waits

META, _, OUTBOX = partition_keys(0)


class Died(BaseException):
    """What a test throws in place of a kill: nothing may catch it."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the backup is."""
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "backup"


@pytest.fixture
async def event_id(engine: Engine, settings: Settings, stores: Stores, redis_store: RedisStore,
                   directory: Path) -> int:  # fmt: skip
    """Sell 2 of 4 tickets, make a backup, sell on: 4 booked, 2 wait; all on record, no writer."""
    async with writing(settings):
        event = await engine.initialize("Event Name", 4)
        for user in ("1", "2"):
            await engine.book(event.event_id, user)
        await made(stores, directory)
        for user in ("3", "4", "5", "6"):
            await engine.book(event.event_id, user)
        await caught_up(RecordCopies(stores), redis_store)
    return event.event_id


ALL = {str(user): "booked" if user < 5 else "waiting" for user in range(1, 7)}


class TestUnderARunningService:
    """Workers and a writer go on meanwhile, and know nothing of it."""

    async def test_what_redis_still_has_is_replayed(
        self, settings: Settings, stores: Stores, engine: Engine, directory: Path,
        redis_store: RedisStore,
    ) -> None:  # fmt: skip
        """Nothing that was answered, before or meanwhile, is lost; the sale goes on."""
        event = await engine.initialize("Event Name", 60)
        async with writing(settings), crowding(engine, event.event_id) as crowd:
            await crowd.grow(40)
            await made(stores, directory)
            await crowd.grow(60)
            done = await restored(settings, directory)
            assert (done.exit_code, done.results[0]) == (0, Opened(2))
            assert done.results[0].how == "replay"  # type: ignore[union-attr]  # it is Opened
            await crowd.grow(30)
            assert crowd.refusals <= {"unavailable", "outcome_unknown"}
        async with writing(settings):
            await caught_up(RecordCopies(stores), redis_store)
        assert (await booked(settings)).keys() >= crowd.booked
        await is_sound(settings)

    async def test_who_has_a_cursor_is_waited_for(
        self, settings: Settings, event_id: int, directory: Path, record: Record
    ) -> None:
        """A writer that holds it and reads on is in nobody's way, and neither is thrown out."""
        assert event_id
        async with record.transaction():
            await record.execute("SELECT FROM cursors FOR UPDATE")
            restoring = asyncio.create_task(restored(settings, directory))
            await somebody_waits(record)
            await record.execute("SET LOCAL deadlock_timeout = '10ms'")
            assert await record.fetchval("SELECT count(*) FROM epochs")
            assert not restoring.done()
        assert (await restoring).exit_code == 0
        await is_sound(settings)

    async def test_a_redis_that_was_wiped_is_rebuilt_from_the_backup(
        self, settings: Settings, stores: Stores, engine: Engine, event_id: int, valkey: Client,
        directory: Path, redis_store: RedisStore,
    ) -> None:  # fmt: skip
        """As of then, once an operator has confirmed what is lost; what came since is sold anew."""
        await eventually(_has_witnessed(settings, Position(1, 8)))
        await valkey.flushall()
        done = await restored(settings, directory)
        assert (done.exit_code, done.audit) == (1, "holds")
        assert done.plan.partitions[0].expected == (
            "Redis is rebuilt at 1-4: what came after 1-4 is gone; where it was answered,"
            " `onsale confirm-loss` opens the sale"
        )
        result = done.results[0]
        assert isinstance(result, StaysClosed)
        assert "partition 0: answers were lost: changes 1-5 to 1-8" in result.reason
        await confirm_loss(settings)
        async with writing(settings):
            assert (await engine.user(event_id, "1")).status == "booked"
            assert (await engine.book(event_id, "6")).status == "booked"
            await caught_up(RecordCopies(stores), redis_store)
        assert await booked(settings) == {"1": "booked", "2": "booked", "6": "booked"}
        await is_sound(settings)

    async def test_what_neither_has_keeps_it_closed(
        self, settings: Settings, event_id: int, valkey: Client, directory: Path
    ) -> None:
        """The outbox was trimmed behind the backup: the range is named, in the plan and after."""
        assert event_id
        await valkey.xtrim(OUTBOX, minid="1-7", approximate=False)
        plan = await restored(settings, directory, apply=False)
        assert plan.plan.partitions[0].expected == (
            "stays closed: changes 5 to 6 are neither in the backup nor in the outbox"
        )
        done = await restored(settings, directory)
        assert (done.exit_code, done.audit, done.reconcile) == (1, "holds", "")
        result = done.results[0]
        assert isinstance(result, StaysClosed)
        assert "partition 0: changes 5 to 6 are not in the outbox" in result.reason
        assert await valkey.hget(META, "open") == "0"

    async def test_nothing_was_changed_since(
        self, settings: Settings, stores: Stores, engine: Engine, event_id: int, tmp_path: Path
    ) -> None:
        """A backup of a moment ago restores to the same; the sale goes on from there."""
        async with writing(settings):
            await made(stores, tmp_path / "newer")
        done = await restored(settings, tmp_path / "newer")
        assert done.plan.partitions[0].expected == "nothing was changed since"
        assert done.results[0].how == "continue"  # type: ignore[union-attr]  # it is Opened
        assert await booked(settings) == ALL
        assert (await engine.book(event_id, "1")).status == "booked"

    async def test_no_id_is_drawn_twice(
        self, settings: Settings, engine: Engine, event_id: int, valkey: Client, directory: Path
    ) -> None:
        """Those that were drawn since the backup are gone with it, and are not given again."""
        async with writing(settings):
            for _ in range(3):
                last = await engine.initialize("Later", 1)
        assert last.event_id > event_id
        await eventually(_has_witnessed(settings, Position(1, 11)))
        await valkey.flushall()
        assert (await restored(settings, directory)).audit == "holds"
        await confirm_loss(settings)
        async with writing(settings):
            assert (await engine.initialize("Newest", 1)).event_id == last.event_id + 1

    async def test_the_plan_changes_nothing(
        self, settings: Settings, event_id: int, valkey: Client, directory: Path
    ) -> None:
        """Neither store, and no epoch begins."""
        assert event_id
        before = await content(settings), await valkey.hgetall(META)
        plan = await restored(settings, directory, apply=False)
        assert (plan.exit_code, plan.results) == (0, {})
        assert plan.plan.partitions[0].expected == (
            "changes 5 to 8 are replayed from the outbox: nothing is lost"
        )
        assert (await content(settings), await valkey.hgetall(META)) == before

    async def test_somebody_who_reads_the_record_is_not_cut_off(
        self, settings: Settings, engine: Engine, event_id: int, record: Record, directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """An audit, say, would find its snapshot emptied: nothing is replaced, the sale goes on."""
        monkeypatch.setattr("service.record_tables._LOCK_MS", 300)
        before = await content(settings)
        async with record.transaction(isolation="repeatable_read", readonly=True):
            await record.fetch("SELECT * FROM cursors")
            with pytest.raises(CannotReplaceError, match=r"not replaced: .* somebody reads them"):
                await restored(settings, directory)
        assert (await content(settings))["journal"] == before["journal"]
        assert (await engine.book(event_id, "7")).status == "waiting"


class TestElsewhere:
    """A fresh disk: a restore makes a deployment out of the directory alone."""

    async def test_a_database_with_empty_tables(
        self, stores: Stores, event_id: int, directory: Path
    ) -> None:
        """Everything that was backed up is there, row by row, and sells on under both stores."""
        copy = await elsewhere(stores)
        done = await restored(copy, directory)
        assert (done.exit_code, done.results) == (0, {0: Opened(2)})
        assert done.results[0].how == "rebuild"  # type: ignore[union-attr]  # it is Opened
        async with Worker(copy) as engine, writing(copy):
            assert (await engine.book(event_id, "1")).status == "booked"
            assert (await engine.book(event_id, "3")).status == "booked"
            assert (await engine.initialize("Newest", 1)).event_id == event_id + 1

    async def test_a_database_that_is_not_there(
        self, stores: Stores, event_id: int, directory: Path
    ) -> None:
        """It is made, with its tables."""
        assert event_id
        copy = on_database(stores, f"{database_of(stores)}_made")
        plan = await restored(copy, directory, apply=False)
        assert not plan.plan.has_schema
        done = await restored(copy, directory)
        assert (done.exit_code, done.audit, done.reconcile) == (0, "holds", "clean")
        assert await booked(copy) == {"1": "booked", "2": "booked"}

    async def test_a_later_epoch_than_the_database_has(
        self, settings: Settings, stores: Stores, engine: Engine, event_id: int, valkey: Client,
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The restore's own epoch comes after every one that the backup brings along.

        Under the number of one of those a death would leave that one's verdict to be resumed.
        """
        async with writing(settings):
            for epoch in range(2, 5):
                await valkey.flushall()
                assert (await engine.user(event_id, "1")).status == "booked"
                await eventually(_has_come_to(valkey, epoch))
            await made(stores, tmp_path / "later")
        copy = await elsewhere(stores)

        async def once_more(_: Handshake) -> NoReturn:
            pytest.fail("another handshake had to put it right")

        monkeypatch.setattr(restoring, "_compared", once_more)
        done = await restored(copy, tmp_path / "later")
        assert (done.exit_code, done.results) == (0, {0: Opened(5)})
        await is_sound(copy)

    async def test_a_service_that_runs_there_already(
        self, stores: Stores, event_id: int, directory: Path
    ) -> None:
        """On a new machine it has begun by itself: it sells what the backup says from then on."""
        copy = await elsewhere(stores)
        async with Worker(copy) as engine, writing(copy):
            await ready(engine)
            assert (await restored(copy, directory)).exit_code == 0
            assert (await engine.user(event_id, "2")).status == "booked"
            assert (await engine.book(event_id, "3")).status == "booked"


class TestTwoPartitions:
    """All of them are closed before the first row is replaced."""

    @pytest.fixture
    def settings(self, stores: Stores) -> Settings:
        """A deployment of two partitions."""
        return Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=2
        )

    @pytest.fixture
    async def ids(self, settings: Settings, stores: Stores, engine: Engine,
                  redis_store: RedisStore, directory: Path) -> list[int]:  # fmt: skip
        """An event in each partition, with a booking before the backup and one after it."""
        async with writing(settings):
            ids = [(await engine.initialize(f"Event {n}", 3)).event_id for n in (1, 2)]
            for event_id in ids:
                await engine.book(event_id, f"a{event_id}")
            await made(stores, directory)
            for event_id in ids:
                await engine.book(event_id, f"b{event_id}")
            await caught_up(RecordCopies(stores), redis_store, partitions=2)
        return ids

    async def test_both_are_closed_and_both_are_replayed(
        self, settings: Settings, ids: list[int], directory: Path, redis_store: RedisStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """One handshake runs inside the other."""
        replace = RecordTables.replace
        were_open: list[bool] = []

        async def watched(self: RecordTables, *arguments: Any) -> None:
            for number in range(2):
                meta = await redis_store.meta(number)
                assert meta is not None
                were_open.append(meta.open)
            await replace(self, *arguments)

        monkeypatch.setattr(RecordTables, "replace", watched)
        done = await restored(settings, directory)
        assert (done.exit_code, done.results) == (0, {0: Opened(2), 1: Opened(2)})
        assert were_open == [False, False]
        assert (await booked(settings)).keys() == {f"{w}{i}" for w in "ab" for i in ids}

    async def test_one_that_stays_closed_keeps_no_other_from_opening(
        self, settings: Settings, ids: list[int], directory: Path, valkey: Client
    ) -> None:
        """What is lost is lost of that one alone; it is named."""
        assert ids
        await valkey.xtrim(partition_keys(1).outbox, minid="1-9", approximate=False)
        done = await restored(settings, directory)
        assert (done.exit_code, done.reconcile, done.results[0]) == (1, "", Opened(2))
        closed = done.results[1]
        assert isinstance(closed, StaysClosed)
        assert "partition 1: changes" in closed.reason

    async def test_a_handshake_that_lost_its_session_meanwhile(
        self, settings: Settings, stores: Stores, ids: list[int], directory: Path, record: Record,
        engine: Engine, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Its partition may have been opened by another: nothing is replaced."""
        before = (await content(settings))["journal"]
        monkeypatch.setattr(restoring, "_AWAKE_S", 60.0)
        replace = RecordTables.replace

        async def cut_off(self: RecordTables, *arguments: Any) -> None:
            await record.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name = 'onsale restore handshake' AND datname = $1",
                database_of(stores),
            )
            await replace(self, *arguments)

        monkeypatch.setattr(RecordTables, "replace", cut_off)
        with pytest.raises(CannotReplaceError, match="the record was not replaced"):
            await restored(settings, directory)
        assert (await content(settings))["journal"] == before
        for event_id in ids:
            assert (await engine.user(event_id, f"b{event_id}")).status == "booked"

    async def test_a_session_that_waits_is_kept_awake(
        self, settings: Settings, ids: list[int], directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handshake that waits for the others is not taken for frozen."""
        assert ids
        monkeypatch.setattr("service.handshake._SESSION_IDLE_S", 1)
        monkeypatch.setattr(restoring, "_AWAKE_S", 0.2)
        replace = RecordTables.replace

        async def slowly(self: RecordTables, columns: Any, drawn: Any,
                         before_commit: Callable[[], Awaitable[None]]) -> None:  # fmt: skip
            async def later() -> None:
                await asyncio.sleep(2)
                await before_commit()

            await replace(self, columns, drawn, later)

        monkeypatch.setattr(RecordTables, "replace", slowly)
        assert (await restored(settings, directory)).exit_code == 0

    async def test_another_number_of_partitions_is_refused(
        self, stores: Stores, ids: list[int], directory: Path
    ) -> None:
        """Every event would belong elsewhere."""
        assert ids
        one = Settings(redis_url=stores.redis_url, database_url=stores.postgresql_url)
        with pytest.raises(BackupRefusedError, match="2 partitions, ONSALE_PARTITIONS is 1"):
            await restored(one, directory)
        three = await elsewhere(stores, partitions=2)
        connection = await asyncpg.connect(three.postgresql_url)
        await connection.execute("INSERT INTO deployment VALUES (true, 3)")
        await connection.close()
        with pytest.raises(BackupRefusedError, match="2 partitions, the record 3"):
            await restored(three, directory)


@pytest.mark.usefixtures("event_id")
class TestKilled:
    """At any point it leaves one record or the other, and the next handshake compares anew."""

    async def test_in_the_middle_of_the_swap(
        self, settings: Settings, directory: Path, redis_store: RedisStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """All rows are in, nothing is committed: the record is what it was."""

        async def die(self: Restoration) -> None:
            raise Died

        before = await content(settings)
        with monkeypatch.context() as patched:
            patched.setattr(Restoration, "_all_closed", die)
            with pytest.raises(Died):
                await restored(settings, directory)
        meta = await redis_store.meta(0)
        assert meta is not None
        assert not meta.open
        assert await content(settings) == before
        await self._opens(settings, redis_store, "continue")

    async def test_between_the_swap_and_the_comparison(
        self, settings: Settings, directory: Path, redis_store: RedisStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The record is the backup's, Redis is closed: brought forward by whoever comes next."""
        replace = Restoration._replace

        async def die(self: Restoration) -> None:
            await replace(self)
            raise Died

        with monkeypatch.context() as patched:
            patched.setattr(Restoration, "_replace", die)
            with pytest.raises(Died):
                await restored(settings, directory)
        assert await booked(settings) == {"1": "booked", "2": "booked"}
        await self._opens(settings, redis_store, "replay")

    async def test_before_it_opens(
        self, settings: Settings, directory: Path, redis_store: RedisStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The verdict is on record: it is carried out."""

        async def die(*_: Any) -> bool:
            raise Died

        with monkeypatch.context() as patched:
            patched.setattr(RedisStore, "begin_epoch", die)
            with pytest.raises(Died):
                await restored(settings, directory)
        await self._opens(settings, redis_store, "replay")

    async def test_the_store_went_away_after_the_swap(
        self, settings: Settings, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not the restore's to lose: an ordinary handshake ends what it began."""
        run = Handshake.run

        async def lost(self: Handshake, *arguments: Any, **others: Any) -> Any:
            result = await run(self, *arguments, **others)
            if others.get("order"):
                raise ConnectionResetError
            return result

        monkeypatch.setattr(Handshake, "run", lost)
        assert (await restored(settings, directory)).exit_code == 0
        assert await booked(settings) == ALL

    @staticmethod
    async def _opens(settings: Settings, redis_store: RedisStore, verdict: str) -> None:
        """Another handshake does what is left to do; everything answered is on record."""
        result = await make_handshakes(settings, redis_store, "next")[0].run()
        assert isinstance(result, Opened)
        assert result.how == verdict
        assert await booked(settings) == ALL
        await is_sound(settings)


@pytest.mark.usefixtures("event_id")
class TestRefused:
    """What cannot be trusted changes nothing, and closes nothing."""

    @pytest.fixture(autouse=True)
    async def changes_nothing(
        self, event_id: int, settings: Settings, valkey: Client
    ) -> AsyncIterator[None]:
        """Hold that neither store is another one afterwards."""
        before = await content(settings), await valkey.hgetall(META)
        assert event_id
        yield
        assert (await content(settings), await valkey.hgetall(META)) == before

    @pytest.mark.parametrize("file", ["journal.gz", "orphans.gz"])
    async def test_a_truncated_file(self, settings: Settings, directory: Path, file: str) -> None:
        """It is named, the smallest as well."""
        whole = (directory / file).read_bytes()
        (directory / file).write_bytes(whole[:-3])
        with pytest.raises(BackupRefusedError, match=f"{file} is not what was backed up: .* bytes"):
            await restored(settings, directory)

    async def test_an_edited_file(self, settings: Settings, directory: Path) -> None:
        """As large as it was."""
        whole = (directory / "bookings.gz").read_bytes()
        edited = whole[:4] + b"\x01" + whole[5:]  # a time in the head of the file
        (directory / "bookings.gz").write_bytes(edited)
        with pytest.raises(BackupRefusedError, match=r"bookings\.gz .* another SHA-256"):
            await restored(settings, directory)

    async def test_a_file_that_is_another(self, settings: Settings, directory: Path) -> None:
        """No gzip file at all, or none."""
        (directory / "epochs.gz").write_bytes(b"something else")
        with pytest.raises(BackupRefusedError, match=r"epochs\.gz .* cannot be unpacked"):
            await restored(settings, directory)
        (directory / "epochs.gz").unlink()
        with pytest.raises(BackupRefusedError, match=r"epochs\.gz: No such file"):
            await restored(settings, directory)

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda m: m.update(format=2), r"manifest\.json cannot be used: format"),
            (lambda m: m.pop("tables"), r"manifest\.json cannot be used: tables"),
            (lambda m: m["tables"][0].update(table="../x"), "tables.0.table"),
            (lambda m: m["tables"].append(m["tables"][0]), "each once"),
            (lambda m: m["tables"][3].update(rows=1), r"journal\.gz has 4 rows, .* says 1"),
            (lambda m: m["schema"].pop(), "the backup is of Onsale test and its schema"),
            (lambda m: m["partitions"][0].update(seq=3), "other ends of the journal"),
            (lambda m: m["partitions"][0].update(head="ab" * 32), "other ends of the journal"),
            (lambda m: m["tables"].pop(), "of other tables than this release has: orphans"),
            (lambda m: m["tables"][3]["columns"].reverse(), "other columns than the table journal"),
        ],
    )
    async def test_an_edited_manifest(
        self, settings: Settings, directory: Path, change: Callable[[Any], None], says: str
    ) -> None:
        """Whatever it says has to agree with the files, and with this release."""
        rewrite_manifest(directory, change)
        with pytest.raises(BackupRefusedError, match=says):
            await restored(settings, directory)

    async def test_no_backup_at_all(self, settings: Settings, tmp_path: Path) -> None:
        """A directory without a manifest, or with half a one."""
        with pytest.raises(BackupRefusedError, match="is no backup"):
            await restored(settings, tmp_path)
        (tmp_path / "manifest.json").write_text('{"format": 1,')
        with pytest.raises(BackupRefusedError, match=r"manifest\.json cannot be used"):
            await restored(settings, tmp_path)

    async def test_a_database_of_another_release(self, stores: Stores, directory: Path) -> None:
        """Its tables are brought there first, by whoever knows what that means."""
        copy = await elsewhere(stores)
        connection = await asyncpg.connect(copy.postgresql_url)
        newest = max(path.name for path in sql_directory().glob("*.sql")).partition("_")[0]
        await connection.execute("DELETE FROM schema_migrations WHERE version = $1", newest)
        await connection.close()
        with pytest.raises(BackupRefusedError, match="bring it there with `onsale migrate up`"):
            await restored(copy, directory)


async def test_a_backup_that_an_audit_would_not_let_pass(
    settings: Settings, stores: Stores, event_id: int, record: Record, tmp_path: Path,
    directory: Path,
) -> None:  # fmt: skip
    """A row was edited by hand before it was made: refused, unless somebody insists."""
    assert event_id
    shutil.rmtree(directory)
    await record.execute("UPDATE journal SET user_id = 'z' WHERE seq = 3")
    async with writing(settings):
        await made(stores, directory)
    await record.execute("UPDATE journal SET user_id = '1' WHERE seq = 3")
    with pytest.raises(BackupRefusedError, match="partition 0 at seq 3, hash: its hash"):
        await restored(settings, directory)
    assert await record.fetchval("SELECT user_id FROM journal WHERE seq = 3") == "1"
    done = await restored(settings, directory, even_if_violated=True)
    assert (done.exit_code, done.audit, done.reconcile) == (1, "violated", "clean")
    assert await record.fetchval("SELECT user_id FROM journal WHERE seq = 3") == "z"


def _has_witnessed(settings: Settings, at: Position) -> Callable[[], Awaitable[bool]]:
    """Whether the worker has kept what it answered, up to that change."""

    async def has() -> bool:
        return max(await answered_on_host(settings.answered_directory, 0), default=None) == at

    return has


def _has_come_to(valkey: Client, epoch: int) -> Callable[[], Awaitable[bool]]:
    """Whether that epoch is open and all of it on record."""

    async def has() -> bool:
        found = await valkey.hmget(META, "epoch", "open", "seq", "recorded")
        return bool(found[:2] == [str(epoch), "1"] and found[2] == found[3])

    return has
