"""The engine on real stores: one effect per request whatever gets lost; events that come back."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from service.app import Worker
from service.engine import Engine
from service.errors import Problem
from service.event_record import EventRecord
from service.handshake import Handshake, Opened
from service.handshakes import make_handshakes
from service.keys import event_keys, events_key, partition_keys
from service.lineage import Position
from service.orders import Order
from service.partition import Partition
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, ready, writing
from tests.proxy import Proxy, proxied
from tests.servers import Servers

META, CALLS, OUTBOX = partition_keys(0)


@pytest.fixture
async def proxied_engine(stores: Stores) -> AsyncIterator[tuple[Proxy, Engine]]:
    """An engine whose way to Redis leads through a proxy."""
    async with proxied(stores.redis_url) as (proxy, url):
        settings = Settings(
            redis_url=url, database_url=stores.postgresql_url, request_deadline_ms=1_500
        )
        async with Worker(settings) as engine:
            yield proxy, engine


@pytest.fixture
def frozen_valkey(servers: Servers) -> Iterator[Any]:
    """Freeze and wake Valkey; it is awake at the end."""

    def freeze(number: signal.Signals) -> None:
        os.kill(servers.pid("valkey"), number)

    yield freeze
    freeze(signal.SIGCONT)


class TestOneEffect:
    """A call has one effect and one reply."""

    @pytest.mark.parametrize("times", [1, 3])
    async def test_a_lost_reply_is_asked_for_again(
        self, proxied_engine: tuple[Proxy, Engine], valkey: Client, times: int
    ) -> None:
        """The booking ran once, and its first reply is what the client gets."""
        proxy, engine = proxied_engine
        event = await engine.initialize("Event Name", 5)
        for number in range(times):
            proxy.lose_the_next_reply_to(b":book")
            booking = await engine.book(event.event_id, f"user{number}")
            assert (booking.status, booking.new) == ("booked", True)
        assert proxy.lost == times
        assert (await engine.event(event.event_id)).available == 5 - times
        assert await valkey.xlen(OUTBOX) == 2 + times

    async def test_a_lost_reply_to_a_cancellation_promotes_once(
        self, proxied_engine: tuple[Proxy, Engine]
    ) -> None:
        """Sent twice, one ticket goes to one waiter."""
        proxy, engine = proxied_engine
        event = await engine.initialize("Event Name", 1)
        for user in "abc":
            await engine.book(event.event_id, user)
        proxy.lose_the_next_reply_to(b":cancel")
        assert (await engine.cancel(event.event_id, "a")).reassigned
        assert proxy.lost == 1
        assert (await engine.user(event.event_id, "b")).status == "booked"
        assert (await engine.user(event.event_id, "c")).position == 1

    async def test_an_answer_that_never_comes_is_outcome_unknown(
        self, proxied_engine: tuple[Proxy, Engine]
    ) -> None:
        """Past its deadline; and the packet that comes late books nobody."""
        proxy, engine = proxied_engine
        event = await engine.initialize("Event Name", 5)
        await engine.book(event.event_id, "first")
        proxy.hold()
        with pytest.raises(Problem) as caught:
            await engine.book(event.event_id, "late")
        assert caught.value.code == "outcome_unknown"
        proxy.release()
        await ready(engine)
        with pytest.raises(Problem) as caught:
            await engine.user(event.event_id, "late")
        assert caught.value.code == "not_booked"

    async def test_a_call_that_may_have_run_is_not_sent_again_across_an_epoch(
        self,
        proxied_engine: tuple[Proxy, Engine],
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its number is forgotten there: 503 `outcome_unknown`, and the client's repeat finds."""
        proxy, engine = proxied_engine
        event = await engine.initialize("Event Name", 5)
        attempt = Partition._attempt

        async def restarting(*arguments: Any) -> list[str] | None:
            reply = await attempt(*arguments)
            if reply is None:
                monkeypatch.undo()
                await valkey.script_flush()
            return reply

        monkeypatch.setattr(Partition, "_attempt", restarting)
        proxy.lose_the_next_reply_to(b":book")
        with pytest.raises(Problem) as caught:
            await engine.book(event.event_id, "a")
        assert caught.value.code == "outcome_unknown"
        again = await engine.book(event.event_id, "a")
        assert (again.status, again.new, again.at.epoch) == ("booked", False, 1 + 1)

    async def test_a_redis_that_freezes_for_a_moment_loses_nothing(
        self, engine: Engine, frozen_valkey: Any
    ) -> None:
        """Whatever was sent again meanwhile has one effect."""
        event = await engine.initialize("Event Name", 50)
        await engine.book(event.event_id, "first")
        frozen_valkey(signal.SIGSTOP)
        crowd = [asyncio.ensure_future(engine.book(event.event_id, f"u{n}")) for n in range(60)]
        done, _ = await asyncio.wait(crowd, timeout=1.3)
        assert not done
        frozen_valkey(signal.SIGCONT)
        bookings = await asyncio.gather(*crowd)
        assert all(booking.new for booking in bookings)
        assert sum(booking.status == "booked" for booking in bookings) == 49
        found = await engine.event(event.event_id)
        assert (found.available, found.waiting) == (0, 11)

    async def test_a_frozen_redis_is_answered_within_the_deadline(
        self, stores: Stores, frozen_valkey: Any
    ) -> None:
        """503 in time, for those that were sent and for those that wait behind them."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, request_deadline_ms=1000
        )
        async with Worker(settings) as engine:
            event = await engine.initialize("Event Name", 5)
            await engine.book(event.event_id, "first")
            frozen_valkey(signal.SIGSTOP)
            loop = asyncio.get_running_loop()
            before = loop.time()
            first = asyncio.ensure_future(engine.book(event.event_id, "u0"))
            await asyncio.sleep(0)
            others = [engine.book(event.event_id, f"u{n}") for n in range(1, 300)]
            results = await asyncio.gather(first, *others, return_exceptions=True)
            assert loop.time() - before < 2 * 1.1
            frozen_valkey(signal.SIGCONT)
        codes = {r.code for r in results if isinstance(r, Problem)}
        assert codes <= {"outcome_unknown", "unavailable"}
        assert len([r for r in results if isinstance(r, Problem)]) == 300

    async def test_whoever_gives_up_disturbs_nobody(self, engine: Engine) -> None:
        """Half of the callers are cancelled; the others get their own answers."""
        event = await engine.initialize("Event Name", 400)
        tasks = [asyncio.ensure_future(engine.book(event.event_id, f"u{n}")) for n in range(400)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            if number % 2:
                assert not isinstance(result, BaseException)
                assert result.at.seq == (await engine.user(event.event_id, f"u{number}")).seq

    async def test_the_waiting_room_is_bounded(self, stores: Stores, frozen_valkey: Any) -> None:
        """Beyond its length a request is refused at once."""
        settings = Settings(
            redis_url=stores.redis_url,
            database_url=stores.postgresql_url,
            waiting_room_max=10,
            batch_items_max=2,
            request_deadline_ms=600,
        )
        async with Worker(settings) as engine:
            event = await engine.initialize("Event Name", 5)
            frozen_valkey(signal.SIGSTOP)
            crowd = [asyncio.ensure_future(engine.book(event.event_id, str(n))) for n in range(40)]
            results = await asyncio.gather(*crowd, return_exceptions=True)
            frozen_valkey(signal.SIGCONT)
        codes = [result.code for result in results if isinstance(result, Problem)]
        assert codes.count("overloaded") >= 28
        assert set(codes) <= {"overloaded", "unavailable", "outcome_unknown"}


class TestWorkers:
    """What a worker does at its start, and when others move on."""

    async def test_a_worker_that_is_fenced_goes_on_in_the_new_epoch(
        self, engine: Engine, handshake: Handshake
    ) -> None:
        """Its scripts are still there; the epoch is another's. One that was refused is repeated."""
        event = await engine.initialize("Event Name", 5)
        assert await handshake.run(Position(1, 99)) == Opened(2)
        booking = await engine.book(event.event_id, "a")
        assert (booking.status, booking.at.epoch) == ("booked", 2)

    async def test_a_worker_whose_scripts_are_gone_goes_on_in_a_new_epoch(
        self, engine: Engine, valkey: Client
    ) -> None:
        """NOSCRIPT, as after a restart: a change and a read each find it."""
        event = await engine.initialize("Event Name", 5)
        await valkey.script_flush()
        assert (await engine.book(event.event_id, "a")).at.epoch == 2
        await valkey.script_flush()
        assert (await engine.event(event.event_id)).available == 4
        assert await valkey.hget(META, "epoch") == "3"

    async def test_a_worker_whose_redis_is_empty_goes_on_in_a_new_epoch(
        self, engine: Engine, valkey: Client
    ) -> None:
        """UNINIT, as after a FLUSHALL: nothing had been sold."""
        await ready(engine)
        await valkey.flushall()
        assert (await engine.initialize("Event Name", 5)).available == 5
        assert await valkey.hget(META, "epoch") == "2"

    async def test_two_workers_of_one_process_have_calls_of_their_own(
        self, settings: Settings, engine: Engine
    ) -> None:
        """Each is random: nobody gets the reply to another's first call."""
        event = await engine.initialize("Event Name", 5)
        async with Worker(settings) as other:
            mine = await engine.book(event.event_id, "a")
            theirs = await other.book(event.event_id, "b")
        assert (mine.at.seq, theirs.at.seq) == (3, 4)

    async def test_a_start_forgets_callers_that_are_long_gone(
        self, settings: Settings, engine: Engine, valkey: Client
    ) -> None:
        """Those of the last hour stay."""
        event = await engine.initialize("Event Name", 5)
        await engine.book(event.event_id, "a")
        now, _ = await valkey.time()
        old = (now - 3601) * 1_000_000
        await valkey.hset(CALLS, "gone:book", f"4 {old} OK 1 5 {old} -")
        async with Worker(settings) as fresh:
            await ready(fresh)

            async def forgotten() -> bool:
                return not await valkey.hexists(CALLS, "gone:book")

            await eventually(forgotten)
        assert await valkey.hlen(CALLS) == 2


class TestEvents:
    """How an event comes into Redis, and what is said of one that is none."""

    async def test_an_event_that_was_never_drawn_is_not_found(self, engine: Engine) -> None:
        """On book, cancel and both reads."""
        for ask in (
            engine.book(99, "1"),
            engine.cancel(99, "1"),
            engine.event(99),
            engine.user(99, "1"),
        ):
            with pytest.raises(Problem) as caught:
                await ask
            assert caught.value.code == "event_not_found"

    async def test_ids_that_the_record_forgot_are_passed_over_at_once(
        self, engine: Engine, record: Record
    ) -> None:
        """A record that was put back draws ids again, of which Redis and it know events."""
        newest = [(await engine.initialize("Event Name", 5)).event_id for _ in range(30)][-1]
        for on_record in (True, False):
            await record.execute("SELECT setval('events_id_seq', 1)")
            if not on_record:
                await record.execute("DELETE FROM events")
            event = await engine.initialize("Event Name", 5)
            assert event.event_id > newest
            newest = event.event_id

    @pytest.mark.usefixtures("writer")
    async def test_an_event_that_was_drawn_and_never_opened_is_none(
        self, engine: Engine, record: Record
    ) -> None:
        """A row without its `opened`: 404, as soon as the record has caught up."""
        event_id = await record.fetchval(
            "INSERT INTO events (name, capacity) VALUES ('x', 1) RETURNING id"
        )
        with pytest.raises(Problem) as caught:
            await engine.book(event_id, "1")
        assert caught.value.code == "event_not_found"

    async def test_a_miss_does_not_hide_an_event_that_is_opened(
        self, engine: Engine, record: Record
    ) -> None:
        """Redis is asked first: what is remembered of an id saves PostgreSQL a question alone."""
        next_id = 1 + await record.fetchval(
            "SELECT last_value FROM events_id_seq WHERE is_called UNION ALL SELECT 0 LIMIT 1"
        )
        with pytest.raises(Problem):
            await engine.event(next_id)
        event = await engine.initialize("Event Name", 1)
        assert event.event_id == next_id
        assert (await engine.event(next_id)).available == 1

    async def test_an_id_that_redis_knows_already_is_drawn_again(
        self, engine: Engine, record: Record
    ) -> None:
        """A record whose sequence went back opens nothing twice."""
        first = await engine.initialize("First", 1)
        await record.execute("DELETE FROM events")
        await record.execute("ALTER SEQUENCE events_id_seq RESTART WITH 1")
        second = await engine.initialize("Second", 2)
        assert second.event_id == first.event_id + 1
        assert (await engine.event(first.event_id)).name == "First"

    async def test_an_id_that_the_record_has_already_is_passed_over(
        self, engine: Engine, record: Record
    ) -> None:
        """Ids that were set back, as by two partitions that come forward at once, stop nobody."""
        opened = [(await engine.initialize(name, 1)).event_id for name in ("a", "b", "c")]
        await record.execute("ALTER SEQUENCE events_id_seq RESTART WITH 1")
        assert (await engine.initialize("d", 1)).event_id == opened[-1] + 1
        assert await record.fetchval("SELECT count(*) FROM events") == 4

    @pytest.mark.usefixtures("writer")
    async def test_an_id_of_before_a_rebuild_is_drawn_again(
        self, settings: Settings, engine: Engine, redis_store: RedisStore, record: Record
    ) -> None:
        """Redis holds no event then, and a record whose sequence went back draws its id anew."""
        first = await engine.initialize("First", 1)
        await _all_recorded(record, redis_store)
        rebuild = Order("a test", "rebuild")
        await make_handshakes(settings, redis_store, "test")[0].run(order=rebuild)
        await record.execute("DELETE FROM events")
        await record.execute("ALTER SEQUENCE events_id_seq RESTART WITH 1")
        assert (await engine.initialize("Second", 2)).event_id == first.event_id + 1

    @pytest.mark.usefixtures("writer")
    async def test_a_crowd_that_misses_an_event_loads_it_once(
        self, engine: Engine, redis_store: RedisStore, record: Record, valkey: Client
    ) -> None:
        """After a wipe 300 requests for one event share one load."""
        event = await engine.initialize("Event Name", 20)
        for user in range(30):
            await engine.book(event.event_id, str(user))
        await _all_recorded(record, redis_store)
        await valkey.flushall()
        await valkey.config_resetstat()
        bookings = await asyncio.gather(
            *(engine.book(event.event_id, str(user)) for user in range(300))
        )
        assert [b.new for b in bookings] == [False] * 30 + [True] * 270
        assert [b.position for b in bookings[20:]] == list(range(1, 281))
        found = await engine.event(event.event_id)
        assert (found.available, found.waiting) == (0, 280)

    async def test_two_workers_do_not_take_a_slow_load_from_each_other(
        self,
        stores: Stores,
        engine: Engine,
        redis_store: RedisStore,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """PostgreSQL sorts for longer than a silent loader is waited for; both get the event."""
        settings = Settings(
            redis_url=stores.redis_url,
            database_url=stores.postgresql_url,
            request_deadline_ms=12_000,
        )
        async with writing(settings):
            event = await engine.initialize("Event Name", 2)
            await engine.book(event.event_id, "a")
            await _all_recorded(record, redis_store)
            await valkey.flushall()
            users = EventRecord.users

            async def slow(self: EventRecord, event_id: int, *, count: int) -> AsyncIterator[Any]:
                await self._connection.execute("SELECT pg_sleep(2.5)")
                async for page in users(self, event_id, count=count):
                    yield page

            monkeypatch.setattr(EventRecord, "users", slow)
            async with Worker(settings) as one, Worker(settings) as other:
                async with asyncio.timeout(10):
                    found = await asyncio.gather(
                        one.user(event.event_id, "a"), other.user(event.event_id, "a")
                    )
            assert [state.status for state in found] == ["booked", "booked"]

    @pytest.mark.usefixtures("writer")
    async def test_a_load_is_of_the_epoch_in_which_the_event_was_missed(
        self, settings: Settings, engine: Engine
    ) -> None:
        """A snapshot that outlived its epoch brings nothing into the next one."""
        async with Worker(settings) as running:
            event = await engine.initialize("Event Name", 2)
            await ready(running)
            partition = running._partitions[0]
            keys = [partition.keys.meta, *event_keys(0, event.event_id + 1), events_key(0)]
            deadline = asyncio.get_running_loop().time() + 5
            arguments = ("begin", "token", 1)
            begun = await partition.once("load_event", keys, arguments, deadline, epoch=1)
            assert begun.words == ["BEGUN"]
            with pytest.raises(Problem) as caught:
                await partition.once("load_event", keys, arguments, deadline, epoch=2)
            assert caught.value.code == "unavailable"

    @pytest.mark.usefixtures("writer")
    async def test_an_event_is_of_one_moment(
        self,
        engine: Engine,
        redis_store: RedisStore,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What is committed between its row and its users is in neither."""
        event = await engine.initialize("Event Name", 5)
        await engine.book(event.event_id, "a")
        await _all_recorded(record, redis_store)
        await valkey.flushall()
        users = EventRecord.users

        async def late(self: EventRecord, event_id: int, *, count: int) -> AsyncIterator[Any]:
            monkeypatch.undo()
            async with record.transaction():
                await record.execute("UPDATE events SET sold = 2")
                await record.execute(
                    "INSERT INTO bookings (event_id, user_id, status, seq, updated_at)"
                    " VALUES ($1, 'b', 'booked', 99, now())",
                    event_id,
                )
            async for page in users(self, event_id, count=count):
                yield page

        monkeypatch.setattr(EventRecord, "users", late)
        assert (await engine.event(event.event_id)).available == 4

    @pytest.mark.usefixtures("stores")
    async def test_loads_that_wait_for_the_writer_keep_nobody_from_the_record(
        self, engine: Engine, record: Record
    ) -> None:
        """Ten drawn events are asked for while no writer runs; another is opened meanwhile."""
        rows = await record.fetch(
            "INSERT INTO events (name, capacity) SELECT 'x', 1 FROM generate_series(1, 10)"
            " RETURNING id"
        )
        asking = [asyncio.ensure_future(engine.event(row["id"])) for row in rows]
        await asyncio.wait(asking, timeout=0.3)
        assert (await engine.initialize("Event Name", 1)).capacity == 1
        for result in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(result, Problem)
            assert result.code == "unavailable"

    async def test_an_event_is_not_loaded_from_a_record_that_lags_behind(
        self, settings: Settings, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """Until P has reached the R at which it was missed: 503, then all is there."""
        async with writing(settings):
            event = await engine.initialize("Event Name", 2)
            await engine.book(event.event_id, "recorded")
            await eventually(lambda: _is_recorded(record, valkey))
        await engine.book(event.event_id, "unrecorded")
        for key in await valkey.keys(f"*:{event.event_id}"):
            await valkey.delete(key)
        with pytest.raises(Problem) as caught:
            await engine.user(event.event_id, "unrecorded")
        assert caught.value.code == "unavailable"
        async with writing(settings):
            await eventually(lambda: _is_recorded(record, valkey))
            assert (await engine.user(event.event_id, "unrecorded")).status == "booked"

    @pytest.mark.usefixtures("writer")
    async def test_a_record_that_does_not_add_up_is_not_sold_from(
        self, engine: Engine, record: Record, redis_store: RedisStore, valkey: Client
    ) -> None:
        """A booking removed by hand would free a ticket: the event stays closed and says why."""
        event = await engine.initialize("Event Name", 2)
        await engine.book(event.event_id, "a")
        await _all_recorded(record, redis_store)
        await record.execute("DELETE FROM bookings")
        await valkey.flushall()
        with pytest.raises(Problem, match="does not add up") as caught:
            await engine.book(event.event_id, "b")
        assert caught.value.code == "closed"

    @pytest.mark.usefixtures("writer")
    async def test_several_partitions_serve_side_by_side(
        self, stores: Stores, record: Record
    ) -> None:
        """Events of four partitions, each with its own seq, epoch and outbox."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=4
        )
        async with Worker(settings) as engine, writing(settings):
            events = [await engine.initialize(f"Event {n}", 1) for n in range(8)]
            for event in events:
                assert (await engine.book(event.event_id, "a")).status == "booked"
                assert (await engine.book(event.event_id, "b")).position == 1

            async def recorded() -> bool:
                return bool(
                    await record.fetchval("SELECT count(*) = 16 FROM bookings")
                    and await record.fetchval("SELECT count(*) = 4 FROM cursors WHERE seq = 7")
                )

            await eventually(recorded)


async def _is_recorded(record: Record, valkey: Client) -> bool:
    return bool(
        await record.fetchval("SELECT seq FROM cursors") == int(await valkey.hget(META, "seq"))
    )


async def _all_recorded(record: Record, redis_store: RedisStore) -> None:
    async def done() -> bool:
        meta = await redis_store.meta(0)
        seq = await record.fetchval("SELECT seq FROM cursors WHERE partition = 0")
        return meta is not None and seq == meta.seq == meta.recorded.seq

    await eventually(done)


async def test_an_answer_on_its_way_when_a_store_turns_unfit_claims_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script has run: the change is made, and pending; the next call is refused unsent."""
    event = await engine.initialize("Event Name", 5)
    suspension, attempt = engine._suspension, Partition._attempt

    async def turning_unfit(*arguments: Any) -> list[str] | None:
        reply = await attempt(*arguments)
        suspension.suspend("redis", "Redis has appendfsync 'everysec'")
        return reply

    monkeypatch.setattr(Partition, "_attempt", turning_unfit)
    claimed = suspension.answered
    booked = await engine.book(event.event_id, "a")
    assert (booked.status, booked.durability) == ("booked", "none")
    with pytest.raises(Problem, match="unavailable: Redis has appendfsync 'everysec'"):
        await engine.book(event.event_id, "b")
    suspension.resume("redis")
    state = await engine.user(event.event_id, "a")
    assert (state.status, state.durability) == ("booked", "none")
    suspension.resume("redis")
    received: list[Any] = []
    engine.submit_book(event.event_id, "a", received.append, awaited=False)
    async with asyncio.timeout(45):
        while not received:
            await asyncio.sleep(0.01)
    assert engine.given(event.event_id, received[0].at) == "none"
    assert suspension.answered == claimed
    monkeypatch.undo()
    suspension.resume("redis")
    assert (await engine.book(event.event_id, "a")).durability == "fsync"
    assert suspension.answered == claimed + 1
