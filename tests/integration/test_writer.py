"""The writer on real stores: killed anywhere it repeats nothing and skips nothing."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from redis.exceptions import NoScriptError

from service import ledger, outbox
from service.after_commit import AfterCommit
from service.app import Worker, make_writer
from service.applying import apply
from service.engine import Engine
from service.errors import CorruptEntryError, LineageError, Problem
from service.handshake import Handshake, HandshakeImpossible, Opened
from service.handshakes import make_handshakes
from service.keys import partition_keys
from service.ledger import Ledger, LedgerPool
from service.lineage import Position
from service.outbox import Change
from service.projection import Projection
from service.record import Application
from service.redis_store import RedisStore
from service.rows import chain
from service.scripts import serving_scripts
from service.settings import Settings
from service.times import to_microseconds
from service.vitals import look
from service.writer import Writer
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import WAIT_S, confirm_loss, eventually, ready, writing
from tests.integration.records import forge
from tests.servers import Servers

META, _, OUTBOX = partition_keys(0)


class Died(BaseException):
    """What a test throws in place of a kill: nothing may catch it."""


async def changed(engine: Engine, *, users: int = 12) -> int:
    """Open an event of 4 tickets; users book, some cancel, some leave; return its id."""
    event = await engine.initialize("Event Name", 4)
    await asyncio.gather(*(engine.book(event.event_id, str(user)) for user in range(users)))
    for user in ("1", "7", "3"):
        await engine.cancel(event.event_id, user)
    return event.event_id


async def is_recorded(record: Record, valkey: Client) -> bool:
    """Whether P is R."""
    row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
    epoch, seq = await valkey.hmget(META, "epoch", "seq")
    return row is not None and tuple(row) == (int(epoch), int(seq))


async def allow_connections(servers: Servers, record: Record, *, allow: bool) -> None:
    """Let nobody else into this test's database, or everybody again."""
    name = await record.fetchval("SELECT current_database()")
    admin = await asyncpg.connect(servers.postgresql_url)
    await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {allow}')
    if not allow:
        mine = await record.fetchval("SELECT pg_backend_pid()")
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = $1 AND pid <> $2",
            name,
            mine,
        )
    await admin.close()


async def check_record(record: Record, valkey: Client, event_id: int) -> None:
    """The journal has no gap and its chain holds; bookings and counters are what Redis says."""
    rows = await record.fetch("SELECT * FROM journal ORDER BY seq")
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    head = b""
    for row in rows:
        change = Change(
            seq=row["seq"],
            epoch=row["epoch"],
            at=to_microseconds(row["at"]),
            kind=row["kind"],
            event_id=row["event_id"],
            user_id=row["user_id"],
            details=row["details"],
        )
        head = chain(head, 0, change)
        assert row["hash"] == head
    assert await record.fetchval("SELECT head FROM cursors") == head
    held = await valkey.hgetall(f"{{p00}}:users:{event_id}")
    found = await record.fetch("SELECT * FROM bookings WHERE event_id = $1", event_id)
    assert {row["user_id"]: f"{row['status']} {row['seq']}" for row in found} == {
        user: " ".join(state.split(" ")[:2]) for user, state in held.items()
    }
    event = await record.fetchrow("SELECT * FROM events WHERE id = $1", event_id)
    assert event is not None
    kept = await valkey.hgetall(f"{{p00}}:event:{event_id}")
    assert event["capacity"] - event["sold"] == int(kept["available"])
    assert event["waiting"] == int(kept["waiting"])
    assert to_microseconds(event["updated_at"]) == int(kept["updated_at"])
    assert to_microseconds(event["created_at"]) == int(kept["created_at"])


class TestRecording:
    """What the writer leaves on record."""

    @pytest.mark.usefixtures("writer")
    async def test_every_change_is_on_record_once(
        self, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """Journal, chain, bookings and counters agree with Redis, and the watermark says so."""
        event_id = await changed(engine)
        await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event_id)

        async def told() -> bool:
            return bool(await valkey.hget(META, "recorded") == await valkey.hget(META, "seq"))

        await eventually(told)

    @pytest.mark.usefixtures("writer")
    async def test_each_row_has_the_seq_of_the_change_that_led_to_it(
        self, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """Whether seqs count up in a commit, as those of strangers do, or users change twice."""
        event = await engine.initialize("Night", 200)
        await asyncio.gather(*(engine.book(event.event_id, str(user)) for user in range(100)))
        await eventually(lambda: is_recorded(record, valkey))
        await asyncio.gather(
            *(engine.cancel(event.event_id, str(user)) for user in range(0, 100, 3)),
            *(engine.book(event.event_id, str(user)) for user in range(100, 150)),
            *(engine.book(event.event_id, str(user)) for user in range(0, 100, 3)),
        )
        await eventually(lambda: is_recorded(record, valkey))
        rows = await record.fetch("SELECT user_id, seq FROM bookings ORDER BY user_id")
        last = await record.fetch(
            "SELECT user_id, max(seq) AS seq FROM journal WHERE user_id IS NOT NULL"
            " GROUP BY user_id ORDER BY user_id"
        )
        assert len(rows) == 150
        assert rows == last
        await check_record(record, valkey, event.event_id)

    @pytest.mark.usefixtures("writer")
    async def test_every_user_id_that_may_ask_is_recorded(
        self, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """What stands for nobody in an entry, or for none in a shell, is a user all the same."""
        users = ["-", "--", "0", "00", ".", "..", "~", "|", "=", ":", "@", "+", "_", "null", "NaN"]
        event = await engine.initialize('"-" \' \\ \U0001f3ab %s {p00}', 3)
        for user in [*users, "x" * 64]:
            await engine.book(event.event_id, user)
        for user in users:
            await engine.cancel(event.event_id, user)
        await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event.event_id)
        found = await record.fetch("SELECT user_id FROM bookings")
        assert {row["user_id"] for row in found} == {*users, "x" * 64}
        assert await record.fetchval("SELECT name FROM events") == event.name

    async def test_two_writers_at_once_apply_nothing_twice(
        self, settings: Settings, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """The cursor row decides who applies; the other reads on behind."""
        async with writing(settings), writing(settings), writing(settings):
            event_id = await changed(engine, users=60)
            await asyncio.gather(*(engine.book(event_id, str(user)) for user in range(100, 400)))
            await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event_id)

    async def test_a_partition_that_begins_late_is_recorded_beside_a_busy_one(
        self, stores: Stores, record: Record, valkey: Client
    ) -> None:
        """The writer looks around by the clock, not only when nothing comes."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=2
        )
        handshakes = make_handshakes(settings, store := RedisStore(stores.redis_url), "test")
        assert await handshakes[0].run() == Opened(1)
        async with writing(settings):
            await eventually(lambda: _cursor_is(record, 0, 1))
            enough = asyncio.Event()  # a cancellation is swallowed by the client now and then
            busy = asyncio.create_task(_keep_busy(valkey, enough))
            assert await handshakes[1].run() == Opened(1)
            await eventually(lambda: _cursor_is(record, 1, 1))
            assert not busy.done()
            enough.set()
            await busy
        await store.aclose()

    async def test_it_catches_up_by_itself_when_postgresql_was_away(
        self,
        servers: Servers,
        settings: Settings,
        engine: Engine,
        record: Record,
        valkey: Client,
    ) -> None:
        """Bookings of events that Redis knows go on meanwhile."""
        async with writing(settings):
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
            await allow_connections(servers, record, allow=False)
            late = await engine.book(event_id, "late")
            assert late.status == "waiting"
            with pytest.raises(Problem) as caught:
                await engine.initialize("Another", 1)
            assert caught.value.code == "unavailable"
            assert not await is_recorded(record, valkey)
            await allow_connections(servers, record, allow=True)
            await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event_id)


class TestCursor:
    """The cursor row decides who may apply."""

    async def test_of_two_who_apply_the_same_one_finds_that_it_does_not_follow(
        self, engine: Engine, redis_store: RedisStore, stores: Stores, record: Record
    ) -> None:
        """The second waits for the first, and then sees where the cursor stands."""
        await changed(engine)
        read = await redis_store.read_outboxes({0: Position(0, 0)}, block_ms=0, count=100)
        entries = [outbox.decode(*entry) for entry in read[0]]
        one = await ledger.connect(stores.postgresql_url, purpose="test")
        other = await ledger.connect(stores.postgresql_url, purpose="test")

        async def apply_too() -> None:
            async with other, other.applying([0]) as application:
                await apply(application, 0, entries)

        async with one, one.applying([0]) as application:
            await apply(application, 0, entries)
            second = asyncio.create_task(apply_too())
            await eventually(lambda: _waits_for_a_lock(record))
        with pytest.raises(LineageError, match="do not follow"):
            await second
        count = sum(len(entry.changes) for entry in entries)
        assert await record.fetchval("SELECT count(*) FROM journal") == count

    async def test_cursors_are_locked_in_ascending_order(
        self, stores: Stores, redis_store: RedisStore, record: Record
    ) -> None:
        """However the rows lie and whoever asks: two writers of two partitions cannot deadlock."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=2
        )
        for one in make_handshakes(settings, redis_store, "test").values():
            assert await one.run() == Opened(1)
        await record.execute("UPDATE cursors SET updated_at = now() WHERE partition = 0")
        database = await record.fetchval("SELECT current_database()")
        for way in ("enable_indexscan", "enable_bitmapscan"):  # those would be in order by chance
            await record.execute(f'ALTER DATABASE "{database}" SET {way} = off')
        connection = await ledger.connect(stores.postgresql_url, purpose="test")

        async def lock_both() -> None:
            async with connection, connection.applying([1, 0]):
                pass

        lock = "SELECT FROM cursors WHERE partition = $1 FOR UPDATE NOWAIT"
        async with record.transaction():
            await record.execute(lock, 0)
            task = asyncio.create_task(lock_both())
            await eventually(lambda: _waits_for_a_lock(record))
            await record.execute(lock, 1)
        await task


class TestLookingAround:
    """A writer notices by itself, without a worker, that the stores do not agree any more."""

    @pytest.mark.parametrize("fault", ["wiped", "behind"])
    async def test_a_redis_that_lost_changes_is_rebuilt(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        valkey: Client,
        fault: str,
    ) -> None:
        """Nothing in it, or R below P."""
        async with writing(settings):
            await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
            seq = int(await valkey.hget(META, "seq"))
            if fault == "wiped":
                await valkey.flushall()
            else:
                await valkey.hset(META, mapping={"seq": seq - 3, "recorded": seq - 3})
            await eventually(lambda: _is_rebuilt(record, seq))

    async def test_a_record_with_less_than_it_committed_is_compared(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Also where Redis was never told of what is gone; then it goes on from what is there."""

        async def fail(*_: Any) -> bool:
            raise ConnectionError

        monkeypatch.setattr(RedisStore, "raise_watermark", fail)
        async with writing(settings):
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
            held = await record.fetch("SELECT * FROM cursors")
            for user in ("gone", "too"):
                await engine.book(event_id, user)
            await eventually(lambda: is_recorded(record, valkey))
            await _take_back(record, held[0]["seq"], held[0]["head"], event_id)
            await eventually(lambda: _is_continued(record))
            await engine.book(event_id, "later")
            await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event_id)

    async def test_a_handshake_that_nobody_finished_is_finished(
        self, settings: Settings, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """A partition that somebody closed and left."""
        await changed(engine)
        await valkey.hset(META, mapping={"open": "0", "next": "2 gone"})
        async with writing(settings):
            await eventually(lambda: is_recorded(record, valkey))

            async def is_open() -> bool:
                return bool(await valkey.hget(META, "open") == "1")

            await eventually(is_open)


class TestDeath:
    """Killed at each named point, the next writer goes on where the record ends."""

    @pytest.mark.parametrize(
        "point",
        ["before BEGIN", "mid rows", "before COMMIT", "after COMMIT", "before the watermark"],
    )
    async def test_nothing_is_repeated_or_skipped(
        self,
        settings: Settings,
        engine: Engine,
        redis_store: RedisStore,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
        point: str,
    ) -> None:
        """Dies once at the point, with half of the changes behind it."""
        async with writing(settings):
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
        await asyncio.gather(*(engine.book(event_id, str(user)) for user in range(100, 120)))
        with monkeypatch.context() as patched:
            _arm(patched, point)
            with pytest.raises(Died):
                await make_writer(settings, redis_store).run()
        assert await is_recorded(record, valkey) == (
            point in {"after COMMIT", "before the watermark"}
        )
        await engine.cancel(event_id, "100")
        async with writing(settings):
            await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event_id)

    async def test_the_watermark_of_a_redis_that_was_restarted_loads_no_script(
        self, redis_store: RedisStore, handshake: Handshake, valkey: Client
    ) -> None:
        """What is missing is what tells of the restart: the handshake alone brings it back."""
        assert await handshake.run() == Opened(1)
        await valkey.script_flush()
        with pytest.raises(NoScriptError):
            await redis_store.raise_watermark(0, Position(1, 1))
        shas = [script.sha for script in serving_scripts(0, 1).values()]
        assert not any(await valkey.script_exists(*shas))

    async def test_a_watermark_that_fails_is_no_failure_of_the_transaction(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What follows the commit is at best effort."""

        async def fail(*_: Any) -> bool:
            raise ConnectionError

        monkeypatch.setattr(RedisStore, "raise_watermark", fail)
        monkeypatch.setattr(RedisStore, "outbox_size", fail)
        async with writing(settings):
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
            await engine.book(event_id, "later")
            await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event_id)

    async def test_a_watermark_that_was_missed_is_made_good_without_a_change(
        self, settings: Settings, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """At the bound of what is not on record no other commit would come."""
        async with writing(settings):
            await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
        seq = await valkey.hget(META, "seq")
        await valkey.hset(META, "recorded", "1")

        async def is_made_good() -> bool:
            return bool(await valkey.hget(META, "recorded") == seq)

        async with writing(settings):
            await eventually(is_made_good)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_who_waited_for_the_cursor_sees_what_was_committed_then(
    stores: Stores, handshake: Handshake, record: Record, level: str
) -> None:
    """Whatever the database's default isolation: the epochs are those of after the wait."""
    assert await handshake.run() == Opened(1)
    database = await record.fetchval("SELECT current_database()")
    await record.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = '{level}'")
    connection = await ledger.connect(stores.postgresql_url, purpose="test")

    async def newest() -> int:
        async with connection, connection.applying([0]) as application:
            epoch = application.lineages[0].newest
            assert epoch is not None
            return epoch.epoch

    async def waits() -> bool:
        return bool(
            await record.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> 0")
        )

    async with record.transaction():
        await record.execute("SELECT * FROM cursors FOR UPDATE")
        asked = asyncio.create_task(newest())
        await eventually(waits)
        await record.execute(
            "INSERT INTO epochs (partition, epoch, verdict, beginning, predecessor, reason)"
            " VALUES (0, 2, 'continue', 1, 1, 'a test')"
        )
    assert await asked == 2


class TestRefusal:
    """What the writer does not apply."""

    async def test_entries_held_over_a_rebuild_do_not_slip_in(
        self,
        settings: Settings,
        engine: Engine,
        redis_store: RedisStore,
        stores: Stores,
        record: Record,
        valkey: Client,
    ) -> None:
        """Read before a handshake began a new epoch at P, applied after it: refused."""
        async with writing(settings):
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
        at = Position(1, int(await valkey.hget(META, "seq")))
        await engine.book(event_id, "lost")
        read = await redis_store.read_outboxes({0: at}, block_ms=0, count=10)
        held = [outbox.decode(*entry) for entry in read[0]]
        await valkey.flushall()
        with pytest.raises(Problem, match="answers were lost"):
            await ready(engine)
        await confirm_loss(settings)
        writer = make_writer(settings, redis_store)
        async with await ledger.connect(stores.postgresql_url, purpose="test") as connection:
            with pytest.raises(LineageError, match="do not follow"):
                await writer._commit(connection, {0: held})
        assert await record.fetchval("SELECT count(*) FROM journal WHERE user_id = 'lost'") == 0

    async def test_entries_held_over_two_handshakes_do_not_slip_in(
        self,
        settings: Settings,
        engine: Engine,
        redis_store: RedisStore,
        stores: Stores,
        record: Record,
        valkey: Client,
    ) -> None:
        """The newest epoch begins behind them, the one between before them: the least counts."""
        async with writing(settings):
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
        seq = int(await valkey.hget(META, "seq"))
        await forge(valkey, 0, f"booked {event_id} held")
        read = await redis_store.read_outboxes({0: Position(1, seq)}, block_ms=0, count=10)
        held = [outbox.decode(*entry) for entry in read[0]]
        await valkey.flushall()
        await ready(engine)
        await engine.initialize("In epoch 2", 1)
        await valkey.script_flush()
        await ready(engine)
        begins = await record.fetch("SELECT beginning FROM epochs ORDER BY epoch")
        assert [row["beginning"] for row in begins] == [0, seq, seq + 2]
        assert (held[0].first, held[0].last) == (seq + 1, Position(1, seq + 1))
        writer = make_writer(settings, redis_store)
        async with await ledger.connect(stores.postgresql_url, purpose="test") as connection:
            with pytest.raises(LineageError, match="do not follow"):
                await writer._commit(connection, {0: held})
        async with writing(settings):
            await eventually(lambda: is_recorded(record, valkey))
        assert await record.fetchval("SELECT count(*) FROM journal WHERE user_id = 'held'") == 0

    async def test_a_change_that_postgresql_refuses_stops_its_partition_and_no_other(
        self, stores: Stores, valkey: Client, record: Record, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Sold beyond capacity is refused by the record itself; the other partition goes on."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=2
        )
        async with Worker(settings) as engine, writing(settings):
            one = (await engine.initialize("One", 1)).event_id
            two = (await engine.initialize("Two", 1)).event_id
            await engine.book(one, "a")
            await engine.book(two, "a")
            await forge(valkey, one % 2, f"booked {one} forged")
            await engine.book(two, "b")
            for _ in range(3):
                await engine.book(one, "late")

            async def stopped() -> bool:
                return "THE WRITER HAS STOPPED" in caplog.text

            await eventually(stopped)
            await engine.cancel(two, "a")

            async def recorded() -> bool:
                held = await record.fetchrow(
                    "SELECT user_id FROM bookings WHERE event_id = $1 AND status = 'booked'", two
                )
                return held is not None and held["user_id"] == "b"

            await eventually(recorded)
        assert "events_never_oversold" in caplog.text
        users = await record.fetch("SELECT user_id FROM bookings WHERE event_id = $1", one)
        assert [row["user_id"] for row in users] == ["a"]

    async def test_an_entry_that_cannot_be_read_stops_the_partition(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        valkey: Client,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is named, and nothing behind it is recorded."""
        async with writing(settings):
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
            await forge(valkey, 0, "booked")

            async def stopped() -> bool:
                return "THE WRITER HAS STOPPED" in caplog.text

            await eventually(stopped)
            await engine.book(event_id, "behind")
        assert "outbox entry 1-" in caplog.text
        assert await record.fetchval("SELECT count(*) FROM journal WHERE user_id = 'behind'") == 0

    async def test_what_comes_before_an_entry_that_cannot_be_read_is_recorded(
        self, settings: Settings, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """Read in one go with it, the good ones are committed before the partition stops."""
        await changed(engine)
        await engine.book(1, "before")
        await forge(valkey, 0, "booked")
        async with writing(settings):

            async def recorded() -> bool:
                found = "SELECT count(*) FROM journal WHERE user_id = 'before'"
                return bool(await record.fetchval(found) == 1)

            await eventually(recorded)

    async def test_a_hole_in_the_outbox_closes_the_partition(
        self, settings: Settings, engine: Engine, valkey: Client
    ) -> None:
        """The writer that meets it asks for a handshake, which finds that changes are missing."""
        event_id = await changed(engine)
        await valkey.xdel(OUTBOX, "1-5")
        if await valkey.exists(OUTBOX) and not await valkey.xrange(OUTBOX, "1-5", "1-5"):
            first = (await valkey.xrange(OUTBOX, count=2))[1][0]
            await valkey.xdel(OUTBOX, first)
        async with writing(settings):

            async def closed() -> bool:
                return "the outbox has a hole" in (await valkey.hget(META, "reason") or "")

            await eventually(closed)
        with pytest.raises(Problem) as caught:
            await engine.book(event_id, "1")
        assert caught.value.code == "closed"

    async def test_a_record_that_went_back_is_not_written_forward_unseen(
        self, settings: Settings, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """W > P: the partition is closed before anything is written."""
        async with writing(settings):
            await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
        await record.execute("UPDATE cursors SET seq = seq - 3")
        at = await record.fetchval("SELECT seq FROM cursors")
        async with writing(settings):

            async def closed() -> bool:
                return "PostgreSQL went back" in (await valkey.hget(META, "reason") or "")

            await eventually(closed)
        assert await record.fetchval("SELECT seq FROM cursors") == at

    async def test_nothing_is_written_while_the_stores_cannot_be_compared(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """W > P, and the handshake cannot be had: the writer waits, and does not go on from P."""
        async with writing(settings):
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
        # Where an entry ends: what comes next would follow.
        at = int((await valkey.xrange(OUTBOX))[-3][0].partition("-")[2])
        await record.execute("DELETE FROM journal WHERE seq > $1", at)
        await record.execute(
            "UPDATE cursors SET seq = $1, head = (SELECT hash FROM journal WHERE seq = $1)", at
        )
        asked = 0

        async def impossible(*_: Any, **__: Any) -> Any:
            nonlocal asked
            asked += 1
            raise HandshakeImpossible

        monkeypatch.setattr(Handshake, "run", impossible)
        first = (await valkey.xrange(OUTBOX, count=1))[0][0]
        async with writing(settings):
            await engine.book(event_id, "later")

            async def asked_again() -> bool:
                return asked > 2

            await eventually(asked_again)
        assert await record.fetchval("SELECT max(seq) FROM journal") == at
        assert (await valkey.xrange(OUTBOX, count=1))[0][0] == first

    async def test_a_start_compares_anew_what_stays_closed(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Once the cause is gone a writer's start is enough, and one that runs makes no epochs."""
        async with writing(settings):
            await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
        await record.execute("UPDATE cursors SET seq = seq - 3")

        async def epochs() -> int:
            return int(await record.fetchval("SELECT count(*) FROM epochs"))

        looked = 0
        disagreement = Writer._disagreement

        def counting(*arguments: Any) -> str:
            nonlocal looked
            looked += 1
            return disagreement(*arguments)

        monkeypatch.setattr(Writer, "_disagreement", counting)
        async with writing(settings):

            async def looked_again() -> bool:
                return looked > 3

            await eventually(looked_again)
            assert await epochs() == 2
        await record.execute("UPDATE cursors SET seq = seq + 3")
        async with writing(settings):

            async def is_open() -> bool:
                return bool(await valkey.hget(META, "open") == "1")

            await eventually(is_open)
        assert await epochs() == 3


class TestTrimming:
    """The outbox keeps a tail, and never loses what is not on record."""

    async def test_only_what_is_on_record_is_trimmed(
        self, stores: Stores, redis_store: RedisStore, record: Record, valkey: Client
    ) -> None:
        """Above its bytes the outbox is cut to what fits; below P nothing else is touched."""
        settings = Settings(redis_url=stores.redis_url, database_url=stores.postgresql_url)
        async with Worker(settings) as engine:
            async with writing(settings):
                event_id = await changed(engine)
                await asyncio.gather(*(engine.book(event_id, str(u)) for u in range(2_000)))
                await eventually(lambda: is_recorded(record, valkey))
            recorded = int(await valkey.hget(META, "seq"))
            for user in range(5_000, 5_050):
                await engine.book(event_id, str(user))
            before = await valkey.xlen(OUTBOX)
            used, _ = await redis_store.outbox_size(0)
            after = AfterCommit(redis_store, retained_bytes=used // 3, clock=lambda: 0.0)
            async with await ledger.connect(stores.postgresql_url, purpose="test") as connection:
                await after.run(connection, {0: Position(1, recorded)}, [0])
            assert 0 < await valkey.xlen(OUTBOX) < before
            first = int((await valkey.xrange(OUTBOX, count=1))[0][1]["first"])
            assert recorded // 3 < first <= recorded
            async with writing(settings):
                await eventually(lambda: is_recorded(record, valkey))
        await check_record(record, valkey, event_id)

    async def test_a_retained_tail_reaches_back_into_older_epochs(
        self,
        settings: Settings,
        engine: Engine,
        redis_store: RedisStore,
        stores: Stores,
        record: Record,
        valkey: Client,
    ) -> None:
        """Ids compare the epoch first: what is kept begins at the id it has in its own epoch."""
        async with writing(settings):
            event_id = await changed(engine)
            for user in range(100, 160):
                await engine.book(event_id, str(user))
            await valkey.script_flush()
            await ready(engine)
            await engine.book(event_id, "later")
            await eventually(lambda: is_recorded(record, valkey))
        last = Position(2, int(await valkey.hget(META, "seq")))
        before = await valkey.xlen(OUTBOX)
        used, _ = await redis_store.outbox_size(0)
        after = AfterCommit(redis_store, retained_bytes=used // 2, clock=lambda: 0.0)
        async with await ledger.connect(stores.postgresql_url, purpose="test") as connection:
            await after.run(connection, {0: last}, [0])
        assert before // 3 < await valkey.xlen(OUTBOX) < before
        first = (await valkey.xrange(OUTBOX, count=1))[0]
        assert first[0].startswith("1-")
        assert last.seq // 3 < int(first[1]["first"]) < last.seq

    async def test_a_watermark_that_fails_keeps_no_outbox_from_its_trim(
        self,
        settings: Settings,
        engine: Engine,
        redis_store: RedisStore,
        stores: Stores,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Each step after a commit is by itself, and raises nothing."""
        async with writing(settings):
            event_id = await changed(engine)
            for user in range(100, 160):
                await engine.book(event_id, str(user))
            await eventually(lambda: is_recorded(record, valkey))
        last = Position(1, int(await valkey.hget(META, "seq")))
        before = await valkey.xlen(OUTBOX)
        used, _ = await redis_store.outbox_size(0)

        async def fail(*_: Any) -> bool:
            raise ConnectionError

        monkeypatch.setattr(redis_store, "raise_watermark", fail)
        after = AfterCommit(redis_store, retained_bytes=used // 2, clock=lambda: 0.0)
        async with await ledger.connect(stores.postgresql_url, purpose="test") as connection:
            await after.run(connection, {0: last}, [0])
        assert 0 < await valkey.xlen(OUTBOX) < before

    async def test_an_entry_that_cannot_be_read_trims_nothing_and_fails_nothing(
        self, stores: Stores, redis_store: RedisStore, valkey: Client, handshake: Handshake
    ) -> None:
        """At the head of the outbox, where its size is asked for; the metrics do without."""
        assert await handshake.run() == Opened(1)
        await valkey.delete(OUTBOX)
        await valkey.xadd(OUTBOX, {"a": "b"}, "1-1")
        with pytest.raises(CorruptEntryError):
            await redis_store.outbox_size(0)
        after = AfterCommit(redis_store, retained_bytes=1, clock=lambda: 0.0)
        async with await ledger.connect(stores.postgresql_url, purpose="test") as connection:
            await after.run(connection, {0: Position(1, 1)}, [0])
        assert await valkey.xlen(OUTBOX) == 1
        pool = LedgerPool(stores.postgresql_url)
        vitals = await look(redis_store, pool, 1)
        await pool.aclose()
        assert vitals.partitions[0].outbox_bytes == 0
        assert vitals.partitions[0].lag_changes == 1


class TestDraining:
    """A writer that is to end brings on record what Redis holds by then, and no more."""

    async def test_a_drained_writer_ends_at_r(
        self, settings: Settings, redis_store: RedisStore, record: Record, valkey: Client
    ) -> None:
        """It ends by itself; every change of before is on record, none is done twice."""
        async with Worker(settings) as engine:
            writer = make_writer(settings, redis_store)
            running = asyncio.create_task(writer.run())
            event_id = await changed(engine)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await asyncio.gather(*(engine.book(event_id, str(u)) for u in range(100, 1_500)))
            assert not await is_recorded(record, valkey)
            writer = make_writer(settings, redis_store)
            writer.drain()
            assert await asyncio.wait_for(writer.run(), WAIT_S)
            assert await is_recorded(record, valkey)
        await check_record(record, valkey, event_id)

    async def test_it_ends_although_others_go_on(
        self, settings: Settings, redis_store: RedisStore, record: Record
    ) -> None:
        """Its goal is R at the moment of the signal: workers elsewhere cannot hold it for ever."""
        async with Worker(settings) as engine:
            writer = make_writer(settings, redis_store)
            running = asyncio.create_task(writer.run())
            event_id = await changed(engine)
            crowd = asyncio.create_task(_crowd(engine, event_id))
            await eventually(lambda: _cursor_is_beyond(record, 50))
            writer.drain()
            await asyncio.wait_for(running, WAIT_S)
            assert not crowd.done()
            crowd.cancel()
            await asyncio.gather(crowd, return_exceptions=True)

    async def test_a_partition_that_has_stopped_is_left_behind_and_named(
        self, settings: Settings, engine: Engine, redis_store: RedisStore, valkey: Client
    ) -> None:
        """A writer that cannot bring everything on record does not say that it has."""
        await changed(engine)
        await forge(valkey, 0, "booked")
        writer = make_writer(settings, redis_store)
        writer.drain()
        assert not await asyncio.wait_for(writer.run(), WAIT_S)

    async def test_it_waits_for_a_record_that_is_away(
        self, settings: Settings, redis_store: RedisStore, servers: Servers, record: Record,
        valkey: Client,
    ) -> None:  # fmt: skip
        """It does not end before R is on record, and ends once it is."""
        async with Worker(settings) as engine:
            writer = make_writer(settings, redis_store)
            running = asyncio.create_task(writer.run())
            event_id = await changed(engine)
            await eventually(lambda: is_recorded(record, valkey))
            await allow_connections(servers, record, allow=False)
            await engine.book(event_id, "900")
            writer.drain()
            assert not (await asyncio.wait({running}, timeout=1.0))[0]
            await allow_connections(servers, record, allow=True)
            await asyncio.wait_for(running, WAIT_S)
            assert await is_recorded(record, valkey)


async def _crowd(engine: Engine, event_id: int) -> None:
    """Book, one after the other, for ever."""
    for user in itertools.count(1_000):
        await engine.book(event_id, str(user))


async def _cursor_is_beyond(record: Record, seq: int) -> bool:
    found = await record.fetchval("SELECT seq FROM cursors WHERE partition = 0")
    return bool(found and found > seq)


def _arm(patched: pytest.MonkeyPatch, point: str) -> None:
    """Make the writer die at a named point."""
    applying: Callable[..., Any] = Ledger.applying

    async def die(*_: Any) -> Any:
        raise Died

    @asynccontextmanager
    async def before(self: Ledger, partitions: Any) -> AsyncIterator[Application]:
        if point == "before BEGIN":
            raise Died
        async with applying(self, partitions) as application:
            yield application
            if point == "before COMMIT":
                raise Died
        if point == "after COMMIT":
            raise Died

    patched.setattr(Ledger, "applying", before)
    if point == "mid rows":
        patched.setattr(Projection, "_users", die)
    if point == "before the watermark":
        patched.setattr(RedisStore, "raise_watermark", die)


async def _waits_for_a_lock(record: Record) -> bool:
    return bool(
        await record.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


async def _is_rebuilt(record: Record, seq: int) -> bool:
    newest = await record.fetchrow("SELECT * FROM epochs ORDER BY epoch DESC LIMIT 1")
    return newest is not None and (newest["verdict"], newest["beginning"]) == ("rebuild", seq)


async def _is_continued(record: Record) -> bool:
    return bool(await record.fetchval("SELECT verdict FROM epochs WHERE epoch = 2") == "continue")


async def _take_back(record: Record, seq: int, head: bytes, event_id: int) -> None:
    """Take the last waiters of an event from the record, as if they had never been committed."""
    async with record.transaction():
        await record.execute("UPDATE cursors SET seq = $1, head = $2", seq, head)
        gone = await record.fetch("DELETE FROM journal WHERE seq > $1 RETURNING kind", seq)
        assert [row["kind"] for row in gone] == ["waiting"] * len(gone)
        await record.execute("DELETE FROM bookings WHERE seq > $1", seq)
        await record.execute(
            "UPDATE events SET waiting = waiting - $1 WHERE id = $2", len(gone), event_id
        )


async def _cursor_is(record: Record, partition: int, seq: int) -> bool:
    found = "SELECT seq FROM cursors WHERE partition = $1"
    return bool(await record.fetchval(found, partition) == seq)


async def _keep_busy(valkey: Client, enough: asyncio.Event) -> None:
    """Append an opening to partition 0 every few milliseconds."""
    for seq in itertools.count(2):
        if enough.is_set():
            return
        details = '{"name":"busy","totalTickets":1}'
        change = f"opened {2 * seq} - {details}"
        fields = {"v": "1", "at": "1", "first": str(seq), "changes": change}
        await valkey.xadd(OUTBOX, fields, f"1-{seq}")
        await valkey.hset(META, "seq", str(seq))
        await asyncio.sleep(0.01)
