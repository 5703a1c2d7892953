"""Answers that wait for the record, on real stores: what is said to be on record is, at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from service import ledger
from service.app import Worker
from service.assurance import sound
from service.engine import Engine
from service.errors import Problem
from service.handshake import HandshakeImpossible, Opened
from service.handshakes import make_handshakes
from service.keyed import digest_of
from service.keys import partition_keys, watermark_channel
from service.lineage import Position
from service.redis_store import RedisStore
from service.results import Booking
from service.settings import Settings
from service.wakeups import Wakeups
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import confirm_loss, eventually, ready, writing
from tests.integration.test_writer import allow_connections, is_recorded
from tests.servers import Servers

META = partition_keys(0).meta
RECORDED = "recorded"
DEADLINE_S = 3.0
STALL_S = 5.0
"""What a machine that others use may add to anything."""

AT_ONCE_S = 10.0
"""Far from the 30 s that a patient request may take."""


def with_deadline(stores: Stores, seconds: float = DEADLINE_S, **more: Any) -> Settings:
    """Return the settings of a deployment whose requests may take so long."""
    return Settings(
        redis_url=stores.redis_url,
        database_url=stores.postgresql_url,
        request_deadline_ms=int(seconds * 1_000),
        **more,
    )


@pytest.fixture
async def patient(stores: Stores) -> AsyncIterator[Engine]:
    """An engine whose requests may take longer than any test here."""
    async with Worker(with_deadline(stores, 30)) as engine:
        yield engine


@contextlib.asynccontextmanager
async def held_commits(stores: Stores) -> AsyncIterator[None]:
    """Keep the writer from committing: somebody else has the cursor's lock."""
    connection = await asyncpg.connect(stores.postgresql_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT * FROM cursors FOR UPDATE")
            yield
    finally:
        await connection.close()


async def waiters(engine: Engine) -> int:
    """Return how many wait in partition 0."""
    return engine._watermarks._of[0]._waiting


async def wait_for(engine: Engine, count: int) -> None:
    """Wait until so many wait for the record."""

    async def there() -> bool:
        return await waiters(engine) == count

    await eventually(there)


def begin(engine: Engine, event_id: int, users: Sequence[object]) -> list["asyncio.Task[Booking]"]:
    """Begin bookings that wait for the record."""
    return [
        asyncio.create_task(engine.book(event_id, str(user), prefer=RECORDED)) for user in users
    ]


async def seconds_to(what: "asyncio.Future[Booking]") -> tuple[str, float]:
    """Return the durability that an answer names, and how long it took from now."""
    began = time.monotonic()
    return (await what).durability, time.monotonic() - began


class TestRecorded:
    """What `recorded` promises holds when it is said."""

    @pytest.mark.usefixtures("writer")
    async def test_each_booking_is_on_record_when_its_answer_comes(
        self, engine: Engine, stores: Stores
    ) -> None:
        """Two hundred at once: PostgreSQL is asked at that moment, from another connection."""
        event = await engine.initialize("Event Name", 100, RECORDED)
        async with asyncpg.create_pool(stores.postgresql_url, min_size=4, max_size=4) as pool:
            assert await pool.fetchval("SELECT name FROM events") == "Event Name"

            async def book(user: int) -> bool:
                booking = await engine.book(event.event_id, f"u{user}", prefer=RECORDED)
                assert booking.durability == RECORDED
                found = await pool.fetchrow(
                    "SELECT epoch, user_id, kind FROM journal WHERE partition = 0 AND seq = $1",
                    booking.at.seq,
                )
                return tuple(found or ()) == (booking.at.epoch, f"u{user}", booking.status)

            assert all(await asyncio.gather(*(book(user) for user in range(200))))

    @pytest.mark.usefixtures("writer")
    async def test_a_cancellation_is_on_record_when_its_answer_comes(
        self, engine: Engine, record: Record
    ) -> None:
        """Together with the promotion that it names."""
        event = await engine.initialize("Event Name", 1)
        for user in "ab":
            await engine.book(event.event_id, user)
        done = await engine.cancel(event.event_id, "a", prefer=RECORDED)
        assert (done.durability, done.reassigned) == (RECORDED, True)
        rows = await record.fetch("SELECT user_id, status FROM bookings")
        assert {tuple(row) for row in rows} == {("a", "cancelled"), ("b", "booked")}

    @pytest.mark.usefixtures("writer")
    async def test_a_deployment_may_wait_always(self, stores: Stores, record: Record) -> None:
        """Without being asked; and asked for less it does not do less."""
        async with Worker(with_deadline(stores, 30, durability=RECORDED)) as engine:
            event = await engine.initialize("Event Name", 5)
            assert event.durability == RECORDED
            for prefer in ("", "fsync", "memory", "gold"):
                booking = await engine.book(event.event_id, f"u{prefer}", prefer=prefer)
                assert booking.durability == RECORDED
            assert await record.fetchval("SELECT count(*) FROM bookings") == 4
            assert (await engine.cancel(event.event_id, "u")).durability == RECORDED

    @pytest.mark.parametrize("durability", ["fsync", "memory"])
    @pytest.mark.usefixtures("writer")
    async def test_one_request_may_ask_for_more(
        self, stores: Stores, durability: str, record: Record
    ) -> None:
        """The others get the deployment's level, and do not wait."""
        async with Worker(with_deadline(stores, 30, durability=durability)) as engine:
            event = await engine.initialize("Event Name", 5)
            asked = await engine.book(event.event_id, "a", prefer=RECORDED)
            assert asked.durability == RECORDED
            assert await record.fetchval("SELECT count(*) FROM bookings") == 1
            async with held_commits(stores):
                assert (await engine.book(event.event_id, "b")).durability == durability
                assert (
                    await engine.book(event.event_id, "c", prefer="gold")
                ).durability == durability

    async def test_no_answer_comes_before_the_commit(
        self, stores: Stores, record: Record, valkey: Client
    ) -> None:
        """The writer is held: nothing, then pending at the deadline; later the repeat finds out."""
        settings = with_deadline(stores)
        async with writing(settings), Worker(settings) as engine:
            event = await engine.initialize("Event Name", 5)
            await eventually(lambda: is_recorded(record, valkey))
            async with held_commits(stores):
                first = asyncio.create_task(engine.book(event.event_id, "a", prefer=RECORDED))
                done, _ = await asyncio.wait({first}, timeout=0.8 * DEADLINE_S)
                assert not done
                assert (await first).durability == "none"
                assert await record.fetchval("SELECT count(*) FROM bookings") == 0
                assert (await engine.user(event.event_id, "a")).recorded is False
            await eventually(lambda: is_recorded(record, valkey))
            again = await engine.book(event.event_id, "a", prefer=RECORDED)
            assert (again.durability, again.new, again.at) == (RECORDED, False, first.result().at)
            assert await record.fetchval("SELECT count(*) FROM bookings") == 1
            assert (await engine.user(event.event_id, "a")).recorded is True

    @pytest.mark.usefixtures("writer")
    async def test_a_booking_of_an_earlier_epoch_is_on_record_as_well(
        self, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """Its seq is compared with the watermark that the new epoch began with."""
        event = await engine.initialize("Event Name", 1)
        for user in "ab":
            await engine.book(event.event_id, user)
        await eventually(lambda: is_recorded(record, valkey))
        await valkey.script_flush()
        for user, status in (("a", "booked"), ("b", "waiting")):
            found = await engine.book(event.event_id, user, prefer=RECORDED)
            assert (found.status, found.new, found.at.epoch) == (status, False, 2)
            assert found.durability == RECORDED

    async def test_what_is_not_there_promises_nothing_and_does_not_wait(
        self, stores: Stores
    ) -> None:
        """No writer runs: refusals come at once."""
        async with Worker(with_deadline(stores, 30)) as engine:
            event = await engine.initialize("Event Name", 1)
            for ask, code in (
                (engine.cancel(event.event_id, "a", prefer=RECORDED), "not_booked"),
                (engine.book(99, "a", prefer=RECORDED), "event_not_found"),
            ):
                async with asyncio.timeout(AT_ONCE_S):
                    with pytest.raises(Problem) as caught:
                        await ask
                assert caught.value.code == code


async def handed(engine: Engine, event_id: int, user: str) -> str:
    """Book as the hot path does, called back; return how far that reached."""
    loop = asyncio.get_running_loop()
    booked: asyncio.Future[Any] = loop.create_future()
    engine.submit_book(event_id, user, booked.set_result, awaited=True)
    reached: asyncio.Future[str] = loop.create_future()
    task = engine.submit_recorded(event_id, await booked, engine.deadline(), reached.set_result)
    if task is not None:
        await task
    return await reached


class TestStanding:
    """What has stood for a while is asked of the record itself."""

    async def test_a_record_that_went_back_vouches_for_what_it_holds(
        self, stores: Stores, record: Record, valkey: Client
    ) -> None:
        """No writer has looked yet, the watermark stands: a repeat is pending all the same."""
        settings = with_deadline(stores)
        keyed = f"key/{digest_of('book', quantity=1)}"
        async with Worker(settings) as engine:
            async with writing(settings):
                event = await engine.initialize("Event Name", 5)
                for user in ("kept", "lost"):
                    await engine.book(event.event_id, user, keyed=keyed, prefer=RECORDED)
                await eventually(lambda: is_recorded(record, valkey))
            await record.execute("DELETE FROM bookings WHERE user_id = 'lost'")
            await record.execute("UPDATE cursors SET seq = seq - 1")
            for user, reached in (("kept", RECORDED), ("lost", "none")):
                again = await engine.book(event.event_id, user, prefer=RECORDED)
                told = await engine.book(event.event_id, user, keyed=keyed, prefer=RECORDED)
                assert (again.durability, told.durability) == (reached, reached)
                assert await handed(engine, event.event_id, user) == reached
            states = [await engine.user(event.event_id, u, RECORDED) for u in ("kept", "lost")]
            assert [state.durability for state in states] == [RECORDED, "fsync"]
            assert (await engine.user(event.event_id, "kept")).durability == "fsync"

    async def test_a_record_without_the_epoch_vouches_for_nothing(
        self, stores: Stores, record: Record, valkey: Client
    ) -> None:
        """It is another one, or older than its seqs say."""
        settings = with_deadline(stores)
        async with Worker(settings) as engine:
            async with writing(settings):
                event = await engine.initialize("Event Name", 5)
                await engine.book(event.event_id, "a", prefer=RECORDED)
                await eventually(lambda: is_recorded(record, valkey))
            await record.execute("UPDATE epochs SET epoch = 7")
            again = await engine.book(event.event_id, "a", prefer=RECORDED)
            assert again.durability == "none"

    async def test_who_asks_at_once_shares_a_question(
        self, stores: Stores, record: Record, valkey: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A hundred repeats cost the record a few questions."""
        asked = 0
        cursor = ledger.Ledger.cursor

        async def counted(self: ledger.Ledger, partition: int) -> Position:
            nonlocal asked
            asked += 1
            return await cursor(self, partition)

        settings = with_deadline(stores, 30)
        async with Worker(settings) as engine:
            async with writing(settings):
                event = await engine.initialize("Event Name", 5)
                await engine.book(event.event_id, "a", prefer=RECORDED)
                await eventually(lambda: is_recorded(record, valkey))
            monkeypatch.setattr(ledger.Ledger, "cursor", counted)
            crowd = [engine.user(event.event_id, "a", RECORDED) for _ in range(100)]
            found = await asyncio.gather(*crowd)
        assert {state.durability for state in found} == {RECORDED}
        assert asked <= 5


class TestPending:
    """What cannot be waited for is said, in time, and is no failure."""

    async def test_postgresql_away_is_pending_within_the_deadline(
        self, servers: Servers, stores: Stores, record: Record, valkey: Client
    ) -> None:
        """At `fsync` bookings go on meanwhile; when it is back, the repeat is recorded."""
        settings = with_deadline(stores)
        async with writing(settings), Worker(settings) as engine:
            event = await engine.initialize("Event Name", 5)
            await eventually(lambda: is_recorded(record, valkey))
            await allow_connections(servers, record, allow=False)
            durability, seconds = await seconds_to(
                asyncio.ensure_future(engine.book(event.event_id, "a", prefer=RECORDED))
            )
            assert durability == "none"
            assert seconds < DEADLINE_S + STALL_S
            durability, seconds = await seconds_to(
                asyncio.ensure_future(engine.book(event.event_id, "b"))
            )
            assert (durability, seconds < DEADLINE_S) == ("fsync", True)
            await allow_connections(servers, record, allow=True)

            async def recorded() -> bool:
                return (
                    await engine.book(event.event_id, "a", prefer=RECORDED)
                ).durability == RECORDED

            await eventually(recorded)
            assert await record.fetchval("SELECT count(*) FROM bookings") == 2

    async def test_a_writer_that_is_away_is_pending_within_the_deadline(
        self, stores: Stores
    ) -> None:
        """All three changes, each with its position; nothing is undone."""
        settings = with_deadline(stores)
        async with Worker(settings) as engine:
            began = time.monotonic()
            event = await engine.initialize("Event Name", 1, RECORDED)
            assert time.monotonic() - began < DEADLINE_S + STALL_S
            assert (event.durability, event.at) == ("none", (1, 2))
            began = time.monotonic()
            booking = await engine.book(event.event_id, "a", prefer=RECORDED)
            assert time.monotonic() - began < DEADLINE_S + STALL_S
            assert (booking.durability, booking.at) == ("none", (1, 3))
            done = await engine.cancel(event.event_id, "a", prefer=RECORDED)
            assert (done.durability, done.at) == ("none", (1, 4))
            assert await handed(engine, event.event_id, "b") == "none"
            assert engine._watermarks._of[0]._heap == []  # they would pile up in a long outage
            async with writing(settings):

                async def recorded() -> bool:
                    return (await engine.user(event.event_id, "a")).recorded

                await eventually(recorded)

    async def test_an_epoch_that_ends_answers_its_waiters_at_once(
        self,
        settings: Settings,
        patient: Engine,
        redis_store: RedisStore,
        valkey: Client,
    ) -> None:
        """A handshake in between: all are pending long before the deadline, and none is lost."""
        event = await patient.initialize("Event Name", 50)
        waiting = begin(patient, event.event_id, range(20))
        await wait_for(patient, 20)
        await valkey.script_flush()
        assert await make_handshakes(settings, redis_store, "test")[0].run() == Opened(2)
        found = [await seconds_to(one) for one in waiting]
        assert {durability for durability, _ in found} == {"none"}
        assert sum(seconds for _, seconds in found) < AT_ONCE_S
        async with writing(settings):
            again = await asyncio.gather(*begin(patient, event.event_id, range(20)))
        assert {(b.durability, b.new, b.at.epoch) for b in again} == {(RECORDED, False, 2)}

    async def test_an_epoch_that_came_between_two_looks_ends_the_wait(
        self, patient: Engine, valkey: Client
    ) -> None:
        """Open again, and with a watermark above: it is another epoch's, and says nothing here."""
        event = await patient.initialize("Event Name", 5)
        (waiting,) = begin(patient, event.event_id, ["a"])
        await wait_for(patient, 1)
        later = {"epoch": "2", "seq": "9", "recorded_epoch": "2", "recorded": "9"}
        await valkey.hset(META, mapping=later)
        durability, seconds = await seconds_to(waiting)
        assert (durability, seconds < AT_ONCE_S) == ("none", True)

    async def test_a_partition_that_was_closed_answers_its_waiters_at_once(
        self, patient: Engine, valkey: Client
    ) -> None:
        """Whatever its watermark says: it was closed because something is wrong."""
        event = await patient.initialize("Event Name", 5)
        (waiting,) = begin(patient, event.event_id, ["a"])
        await wait_for(patient, 1)
        await valkey.hset(META, mapping={"open": "0", "recorded_epoch": "1", "recorded": "99"})
        durability, seconds = await seconds_to(waiting)
        assert (durability, seconds < AT_ONCE_S) == ("none", True)

    async def test_a_redis_that_was_wiped_answers_its_waiters_at_once(
        self, patient: Engine, valkey: Client
    ) -> None:
        """What they wait for is gone, and nobody says that it is on record."""
        event = await patient.initialize("Event Name", 5)
        waiting = begin(patient, event.event_id, "abc")
        await wait_for(patient, 3)
        await valkey.flushall()
        for one in waiting:
            durability, seconds = await seconds_to(one)
            assert (durability, seconds < AT_ONCE_S) == ("none", True)

    async def test_a_redis_that_went_back_answers_its_waiters_at_once(
        self, patient: Engine, valkey: Client
    ) -> None:
        """An older copy of the same epoch, open: R lies below what they wait for."""
        event = await patient.initialize("Event Name", 5)
        older = {key: await valkey.hgetall(key) for key in (META,)}
        (waiting,) = begin(patient, event.event_id, ["a"])
        await wait_for(patient, 1)
        await valkey.hset(META, mapping=older[META])
        durability, seconds = await seconds_to(waiting)
        assert (durability, seconds < AT_ONCE_S) == ("none", True)

    async def test_another_epochs_watermark_does_not_count(
        self, stores: Stores, settings: Settings, record: Record, valkey: Client
    ) -> None:
        """A change that was lost in epoch 1 has a seq that epoch 3 gives to another.

        Epoch 2 stays closed until the loss of what was answered at `fsync` is confirmed.
        """
        async with Worker(with_deadline(stores, 30)) as engine:
            async with writing(settings):
                event = await engine.initialize("Event Name", 50)
                await eventually(lambda: is_recorded(record, valkey))
            lost = (await engine.book(event.event_id, "lost")).at
            waiting = asyncio.create_task(engine._watermarks.reached(0, lost, 1e9))
            await wait_for(engine, 1)
            await valkey.flushall()
            with pytest.raises(Problem, match="answers were lost"):
                await ready(engine)
            await confirm_loss(settings)
            await eventually(lambda: _serves(engine))
            async with writing(settings):
                for user in range(5):
                    booking = await engine.book(event.event_id, str(user), prefer=RECORDED)
                    assert (booking.durability, booking.at.epoch) == (RECORDED, 3)
                assert booking.at.seq > lost.seq
                assert await waiting is False
                assert await engine._watermarks.reached(0, lost, 1e9) is False
                assert (await engine.book(event.event_id, "lost", prefer=RECORDED)).new

    async def test_too_many_that_wait_are_pending_at_once(self, stores: Stores) -> None:
        """The room is bounded; who is in it stays in it."""
        settings = with_deadline(stores, 30, waiting_room_max=10)
        async with Worker(settings) as engine:
            event = await engine.initialize("Event Name", 50)
            waiting = begin(engine, event.event_id, range(10))
            await wait_for(engine, 10)
            (late,) = begin(engine, event.event_id, ["late"])
            durability, seconds = await seconds_to(late)
            assert (durability, seconds < AT_ONCE_S) == ("none", True)
            async with writing(settings):
                assert {b.durability for b in await asyncio.gather(*waiting)} == {RECORDED}


class TestWaking:
    """Many wait at the price of one, and a message that is lost costs milliseconds."""

    async def test_one_commit_wakes_a_thousand(
        self, stores: Stores, patient: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All have waited for the same commit; `meta` is looked at for all of them together."""
        looks = 0
        meta = RedisStore.meta

        async def counted(self: RedisStore, partition: int) -> Any:
            nonlocal looks
            looks += 1
            return await meta(self, partition)

        async with writing(settings):
            event = await patient.initialize("Event Name", 1_000, RECORDED)
            async with held_commits(stores):
                monkeypatch.setattr(RedisStore, "meta", counted)
                began = time.monotonic()
                waiting = begin(patient, event.event_id, range(1_000))
                await wait_for(patient, 1_000)
            found = await asyncio.gather(*waiting)
            waited = time.monotonic() - began
        assert {booking.durability for booking in found} == {RECORDED}
        assert looks < 50 * waited + 50
        assert await waiters(patient) == 0

    async def test_they_are_woken_in_the_order_of_their_changes(
        self, patient: Engine, valkey: Client
    ) -> None:
        """A watermark wakes those at or below it, and nobody above."""
        event = await patient.initialize("Event Name", 50)
        (first,) = begin(patient, event.event_id, ["a"])
        await wait_for(patient, 1)
        (second,) = begin(patient, event.event_id, ["b"])
        await wait_for(patient, 2)
        await valkey.hset(META, mapping={"recorded_epoch": "1", "recorded": "3"})
        assert (await first).durability == RECORDED
        await asyncio.sleep(0)
        assert not second.done()
        await valkey.hset(META, mapping={"recorded_epoch": "1", "recorded": "4"})
        assert (await second).durability == RECORDED

    async def test_a_message_wakes_before_the_next_look(
        self, stores: Stores, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With looks far apart an answer still comes with the commit."""
        monkeypatch.setattr("service.watermark._LOOK_EVERY_S", 60.0)
        async with writing(settings), Worker(with_deadline(stores, 30)) as engine:
            event = await engine.initialize("Event Name", 50)
            (first,) = begin(engine, event.event_id, ["first"])
            await _subscribed(stores)
            async with asyncio.timeout(AT_ONCE_S):
                await engine.book(event.event_id, "second", prefer=RECORDED)
                assert (await first).durability == RECORDED

    async def test_one_that_waits_makes_its_call_awaited(
        self, patient: Engine, valkey: Client
    ) -> None:
        """Whoever shares the call and waits for nothing comes first in it."""
        event = await patient.initialize("Event Name", 50)
        first = asyncio.create_task(patient.book(event.event_id, "first"))
        await asyncio.sleep(0)
        others = [asyncio.create_task(patient.book(event.event_id, str(n))) for n in range(3)]
        (waiting,) = begin(patient, event.event_id, ["waits"])
        await asyncio.gather(first, *others)
        await wait_for(patient, 1)
        ((_, fields),) = await valkey.xrevrange(partition_keys(0).outbox, count=1)
        assert fields["changes"].count("\n") == 3
        assert fields["awaited"] == "1"
        waiting.cancel()

    @pytest.mark.usefixtures("writer")
    async def test_a_connection_that_is_killed_costs_nothing_but_time(
        self, stores: Stores, patient: Engine, valkey: Client
    ) -> None:
        """The looks go on answering, and somebody listens again."""
        event = await patient.initialize("Event Name", 50, RECORDED)
        for number in range(3):
            await _subscribed(stores)
            assert await valkey.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
            booking = await patient.book(event.event_id, f"u{number}", prefer=RECORDED)
            assert booking.durability == RECORDED

    async def test_a_user_who_loses_the_channels_gets_its_answers_all_the_same(
        self, stores: Stores, valkey: Client
    ) -> None:
        """It may neither tell nor hear of a watermark any more: nothing fails, and looks answer."""
        rights = ["on", ">secret", "~*", "allchannels", "+@all"]
        await valkey.execute_command("ACL", "SETUSER", "mute", *rights)
        try:
            mute = Stores(
                stores.redis_url.replace("unix://", "unix://mute:secret@"), stores.postgresql_url
            )
            async with writing(with_deadline(mute)), Worker(with_deadline(mute, 30)) as engine:
                event = await engine.initialize("Event Name", 50, RECORDED)
                assert event.durability == RECORDED
                await valkey.execute_command("ACL", "SETUSER", "mute", "resetchannels")
                booking = await engine.book(event.event_id, "a", prefer=RECORDED)
                assert booking.durability == RECORDED
            assert int(await valkey.hget(META, "recorded")) >= booking.at.seq
            store = RedisStore(mute.redis_url)
            assert await store.raise_watermark(0, Position(1, booking.at.seq + 1))
            await store.aclose()
        finally:
            await valkey.execute_command("ACL", "DELUSER", "mute")

    async def test_who_hangs_up_leaves_nothing_behind(
        self, patient: Engine, settings: Settings
    ) -> None:
        """Thousands gave up while nothing is recorded: only who waits still takes room."""
        event = await patient.initialize("Event Name", 50)
        (patient_one,) = begin(patient, event.event_id, ["patient"])
        await wait_for(patient, 1)
        room = patient._watermarks._of[0]
        for _ in range(5):
            waiting = begin(patient, event.event_id, range(300))
            await wait_for(patient, 301)
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert await waiters(patient) == 1
            assert len(room._heap) < 100
        async with writing(settings):
            assert (await patient_one).durability == RECORDED

        async def still() -> bool:
            return room._looker is None and not room._heap

        await eventually(still)

    async def test_a_worker_that_ends_answers_its_waiters(self, stores: Stores) -> None:
        """And listens no more."""
        async with Worker(with_deadline(stores, 30)) as engine:
            event = await engine.initialize("Event Name", 50)
            (waiting,) = begin(engine, event.event_id, ["a"])
            await wait_for(engine, 1)
        durability, seconds = await seconds_to(waiting)
        assert (durability, seconds < AT_ONCE_S) == ("none", True)
        client = Redis.from_url(stores.redis_url, decode_responses=True)
        counted = await client.pubsub_shardnumsub(watermark_channel(0))
        assert [int(n) for _, n in counted] == [0]
        await client.aclose()

    async def test_listening_while_redis_is_away_does_not_spin(
        self, stores: Stores, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It pauses between two attempts, longer each time."""
        attempts = 0

        async def refused(_: Wakeups) -> AsyncIterator[int]:
            nonlocal attempts
            attempts += 1
            raise ConnectionRefusedError
            yield 0

        monkeypatch.setattr(Wakeups, "listen", refused)
        async with writing(settings), Worker(with_deadline(stores, 30)) as engine:
            event = await engine.initialize("Event Name", 50, RECORDED)
            assert event.durability == RECORDED
            began = time.monotonic()
            await asyncio.sleep(0.5)
            lasted = time.monotonic() - began
        assert 1 <= attempts <= 2 + lasted / 0.1


class TestConfiguration:
    """What each level needs of the stores."""

    async def test_a_redis_without_a_file_serves_at_recorded_and_not_at_fsync(
        self, stores: Stores, redis_store: RedisStore, valkey: Client
    ) -> None:
        """It can promise what PostgreSQL keeps, and nothing of its own."""
        await valkey.config_set("appendonly", "no")
        try:
            with pytest.raises(HandshakeImpossible, match="appendonly 'no'; fsync needs"):
                await make_handshakes(with_deadline(stores), redis_store, "test")[0].run()
            settings = with_deadline(stores, 30, durability=RECORDED)
            async with writing(settings), Worker(settings) as engine:
                event = await engine.initialize("Event Name", 5)
                assert (await engine.book(event.event_id, "a")).durability == RECORDED
        finally:
            await valkey.config_set("appendonly", "yes")
            await eventually(lambda: _has_its_file(valkey))

    async def test_a_postgresql_that_may_lose_commits_is_not_written_to(
        self, stores: Stores, record: Record
    ) -> None:
        """Nobody asks for a handshake when it alone was restarted: each new connection looks."""
        name = await record.fetchval("SELECT current_database()")
        settings = with_deadline(stores)
        async with Worker(settings) as engine:
            event = await engine.initialize("Event Name", 5)
            await record.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
            async with writing(settings):
                booking = await engine.book(event.event_id, "a", prefer=RECORDED)
                assert booking.durability == "none"
                assert await record.fetchval("SELECT count(*) FROM bookings") == 0
                await record.execute(f'ALTER DATABASE "{name}" RESET synchronous_commit')

                async def recorded() -> bool:
                    return (
                        await engine.book(event.event_id, "a", prefer=RECORDED)
                    ).durability == RECORDED

                await eventually(recorded)

    async def test_what_is_refused_is_named(self, stores: Stores, record: Record) -> None:
        """As PostgreSQL being away is, so that whoever connects tries again."""
        name = await record.fetchval("SELECT current_database()")
        await record.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        with pytest.raises(ConnectionRefusedError, match="synchronous_commit 'off'"):
            await sound(ledger.connect(stores.postgresql_url, purpose="test"))


async def test_a_position_beyond_what_redis_has_is_not_on_record(engine: Engine) -> None:
    """Whoever asks for it saw a Redis that is gone."""
    await engine.initialize("Event Name", 5)
    async with asyncio.timeout(5):
        assert await engine._watermarks.reached(0, Position(1, 99), 1e9) is False


async def _subscribed(stores: Stores) -> None:
    """Wait until somebody listens."""
    client = Redis.from_url(stores.redis_url, decode_responses=True)

    async def listens() -> bool:
        counted = await client.pubsub_shardnumsub(watermark_channel(0))
        return [int(n) for _, n in counted] == [1]

    await eventually(listens)
    await client.aclose()


async def _serves(engine: Engine) -> bool:
    try:
        await ready(engine)
    except Problem:
        return False
    return True


async def _has_its_file(valkey: Client) -> bool:
    """Whether the file that was asked for is written: Redis 7.0 does not stop before."""
    found = await valkey.info("persistence")
    return not (found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])
