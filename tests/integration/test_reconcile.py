"""Redis against the record on real stores: what was damaged by hand is named, and nothing else."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest

from service import event_reading, reconciler
from service.app import Worker
from service.engine import Engine
from service.errors import Problem
from service.findings import Report
from service.handshake import Handshake
from service.keys import event_keys, partition_keys
from service.lineage import NOWHERE
from service.reconciler import Reconciler, UnknownEventError, reconcile
from service.record_view import RecordView
from service.redis_view import Look, RedisView
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import confirm_loss, eventually, writing

META, _, OUTBOX = partition_keys(0)


async def is_recorded(record: Record, valkey: Client) -> bool:
    """Whether P is R."""
    row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
    epoch, seq = await valkey.hmget(META, "epoch", "seq")
    return row is not None and tuple(row) == (int(epoch), int(seq))


async def sale(engine: Engine) -> int:
    """Open an event of 4 tickets: u2, u3, u4, u6 have them, u7, u8 and u10 to u13 wait.

    u5 and u9 have left the waiting list, u1 has cancelled; u9 is a gap.
    """
    event = await engine.initialize("Event Name", 4)
    for number in range(1, 14):
        await engine.book(event.event_id, f"u{number}")
    for user in ("u5", "u9", "u1"):
        await engine.cancel(event.event_id, user)
    return event.event_id


@pytest.fixture
async def event_id(settings: Settings, engine: Engine, record: Record, valkey: Client) -> int:
    """A sale that is all on record, and whose writer has stopped."""
    found = await sale(engine)
    async with writing(settings):
        await eventually(lambda: is_recorded(record, valkey))
    return found


def drifts(report: Report) -> set[tuple[str | None, str]]:
    """Return who was named, and how."""
    return {(drift.user_id, drift.kind) for drift in report.drifts}


@contextlib.asynccontextmanager
async def load(engine: Engine, events: Sequence[int], people: int) -> AsyncIterator[list[int]]:
    """Book, cancel, join and leave without a pause; yields a list with the number of requests."""
    made = [0]

    async def somebody(seed: int) -> None:
        choice = random.Random(seed)
        while True:
            event, user = choice.choice(events), f"p{choice.randrange(people)}"
            ask = engine.book if choice.random() < 0.6 else engine.cancel
            with contextlib.suppress(Exception):  # 404 for who has nothing to cancel
                await ask(event, user)
            made[0] += 1

    tasks = [asyncio.create_task(somebody(seed)) for seed in range(32)]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _reached(made: list[int], number: int) -> bool:
    return made[0] >= number


class TestClean:
    """Where nothing was damaged the exit code is 0, whatever goes on meanwhile."""

    async def test_two_stores_that_were_never_begun_agree(self, stores: Stores) -> None:
        """Nothing is on record and Redis is empty: there is nothing to disagree about."""
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        assert (report.verdict, report.exit_code, report.events) == ("clean", 0, [])

    async def test_a_quiet_sale_is_clean_and_counted(
        self, stores: Stores, event_id: int, valkey: Client
    ) -> None:
        """Users, booked and waiting are those of the sale, at the seq where both stores stand."""
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        (event,) = report.events
        assert (report.exit_code, report.drifts, event.event_id) == (0, [], event_id)
        assert (event.users, event.booked, event.waiting, event.in_flight) == (13, 4, 6, 0)
        assert event.seq == int(await valkey.hget(META, "seq")) == report.partitions[0].recorded

    @pytest.mark.parametrize("page", [2_000, 100])
    async def test_under_load_nothing_is_taken_for_a_drift(
        self,
        stores: Stores,
        settings: Settings,
        engine: Engine,
        monkeypatch: pytest.MonkeyPatch,
        page: int,
    ) -> None:
        """Users who come, go and are promoted while they are compared agree in every run."""
        monkeypatch.setattr("service.redis_view.PAGE", page)
        # A batch holds two of the three.
        monkeypatch.setattr(reconciler, "_BATCH_EVENTS", 2)
        events = [(await engine.initialize("Event Name", 40)).event_id for _ in range(3)]
        async with writing(settings), load(engine, events, 3_000) as made:
            await eventually(lambda: _reached(made, 4_000))
            for _ in range(6):
                report = await reconcile(stores.redis_url, stores.postgresql_url)
                assert (report.drifts, report.exit_code) == ([], 0)
                assert sum(event.users for event in report.events) > 100
        assert report.partitions[0].last > 2_000

    async def test_what_is_in_flight_is_counted_as_in_flight(
        self, stores: Stores, engine: Engine, event_id: int
    ) -> None:
        """The writer is away: each change since is counted, and an opening is one as well."""
        await engine.book(event_id, "late")
        await engine.cancel(event_id, "u2")
        second = await sale(engine)
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        assert (report.exit_code, report.drifts) == (0, [])
        # A cancellation with its promotion is two changes; a sale is its opening, thirteen who
        # came, one such cancellation, and two who left.
        assert {event.event_id: event.in_flight for event in report.events} == {
            event_id: 3,
            second: 1 + 13 + 2 + 2,
        }
        assert report.partitions[0].in_flight == 3 + 18

    async def test_an_event_that_redis_does_not_hold_is_absent(
        self, stores: Stores, event_id: int, valkey: Client
    ) -> None:
        """It comes back when it is asked for, so that is no drift."""
        await valkey.delete(*event_keys(0, event_id))
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        assert report.exit_code == 0
        assert [event.absent for event in report.events] == [True]

    async def test_a_sale_that_came_back_from_the_record_is_clean(
        self, stores: Stores, engine: Engine, event_id: int, valkey: Client
    ) -> None:
        """After a load the turns are others, and the order is the same."""
        await valkey.delete(*event_keys(0, event_id))
        await engine.event(event_id)
        report = await reconcile(stores.redis_url, stores.postgresql_url, event_ids=[event_id])
        assert (report.exit_code, report.events[0].absent, report.events[0].users) == (0, False, 13)

    async def test_it_can_write_to_neither_store(
        self, stores: Stores, event_id: int, valkey: Client
    ) -> None:
        """A Redis user that may only read is enough; PostgreSQL refuses the session a change."""
        rights = ["on", ">secret", "~*", "+@read", "+@connection", "+multi", "+exec"]
        await valkey.execute_command("ACL", "SETUSER", "looker", *rights)
        try:
            url = stores.redis_url.replace("unix://", "unix://looker:secret@")
            report = await reconcile(url, stores.postgresql_url)
        finally:
            await valkey.execute_command("ACL", "DELUSER", "looker")
        assert [event.event_id for event in report.events] == [event_id]
        async with await RecordView.open(stores.postgresql_url) as record:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await record.draw_event("Event Name", 1)

    async def test_a_look_is_of_one_moment(
        self, stores: Stores, event_id: int, valkey: Client
    ) -> None:
        """All of it is asked in one transaction of Redis, together with the seq."""
        redis = RedisView(stores.redis_url)
        await valkey.config_resetstat()
        await redis.first_look(0, event_id, 1)
        await redis.look(0, event_id, 1, start=0, users=["u2", "nobody"])
        await redis.aclose()
        stats = await valkey.info("commandstats")
        assert stats["cmdstat_multi"]["calls"] == stats["cmdstat_exec"]["calls"] == 2
        assert stats["cmdstat_hgetall"]["calls"] == stats["cmdstat_lrange"]["calls"] == 2


Damage = Callable[[Client, Record, int], Awaitable[object]]


def in_redis(key: str, *command: str) -> Damage:
    """Run one command on one of the event's keys."""

    async def damage(valkey: Client, _: Record, event_id: int) -> None:
        await valkey.execute_command(
            command[0], getattr(event_keys(0, event_id), key), *command[1:]
        )

    return damage


def on_record(statement: str) -> Damage:
    """Run one statement about the event."""

    async def damage(_: Client, record: Record, event_id: int) -> None:
        assert not (await record.execute(statement, event_id)).endswith(" 0")

    return damage


async def to_the_end(valkey: Client, _: Record, event_id: int) -> None:
    """Move the first who waits behind all others."""
    waiting_list = event_keys(0, event_id).waiting_list
    await valkey.rpush(waiting_list, await valkey.lpop(waiting_list))


async def swap(valkey: Client, _: Record, event_id: int) -> None:
    """Let the first and the last who wait change places."""
    waiting_list = event_keys(0, event_id).waiting_list
    first, last = await valkey.lindex(waiting_list, 0), await valkey.lindex(waiting_list, -1)
    await valkey.lset(waiting_list, 0, last)
    await valkey.lset(waiting_list, -1, first)


async def another_turn(valkey: Client, _: Record, event_id: int) -> None:
    """Give somebody who waits a turn that nobody has."""
    users = event_keys(0, event_id).users
    state, _, _ = (await valkey.hget(users, "u8")).rpartition(" ")
    await valkey.hset(users, "u8", f"{state} 99")


async def element_twice(valkey: Client, _: Record, event_id: int) -> None:
    """Let somebody stand in the waiting list twice."""
    waiting_list = event_keys(0, event_id).waiting_list
    await valkey.rpush(waiting_list, await valkey.lindex(waiting_list, -1))


async def no_turn(valkey: Client, _: Record, event_id: int) -> None:
    """Take an element of somebody who has left out of the middle."""
    (gone,) = [
        element
        for element in await valkey.lrange(event_keys(0, event_id).waiting_list, 0, -1)
        if element.endswith(" u9")
    ]
    await valkey.lrem(event_keys(0, event_id).waiting_list, 1, gone)


async def another_event(valkey: Client, _: Record, event_id: int) -> None:
    """Put an event into Redis that was never opened."""
    await valkey.hset(event_keys(0, event_id + 100).event, mapping={"capacity": 1, "available": 1})


DAMAGES: dict[str, tuple[Damage, set[tuple[str | None, str]]]] = {
    "a booking deleted on record": (
        on_record("DELETE FROM bookings WHERE event_id = $1 AND user_id = 'u3'"),
        {("u3", "missing_on_record"), (None, "record_counter")},
    ),
    "a waiter deleted on record": (
        on_record("DELETE FROM bookings WHERE event_id = $1 AND user_id = 'u8'"),
        {("u8", "missing_on_record"), (None, "record_counter")},
    ),
    "a booking added on record": (
        on_record("INSERT INTO bookings VALUES ($1, 'extra', 'booked', 1, 9, now())"),
        {("extra", "missing_in_redis"), (None, "record_counter")},
    ),
    "another quantity on record": (
        on_record("UPDATE bookings SET quantity = 2 WHERE event_id = $1 AND user_id = 'u4'"),
        {("u4", "differs")},
    ),
    "another seq on record": (
        on_record("UPDATE bookings SET seq = 3 WHERE event_id = $1 AND user_id = 'u12'"),
        {("u12", "differs")},
    ),
    "a cancellation lost on record": (
        on_record("UPDATE bookings SET status = 'booked' WHERE event_id = $1 AND user_id = 'u1'"),
        {("u1", "differs"), (None, "record_counter")},
    ),
    "a counter on record": (
        on_record("UPDATE events SET sold = sold - 1 WHERE id = $1"),
        {(None, "counter"), (None, "record_counter")},
    ),
    "another name on record": (
        on_record("UPDATE events SET name = 'Other' WHERE id = $1"),
        {(None, "differs")},
    ),
    "a booking deleted in Redis": (in_redis("users", "HDEL", "u3"), {("u3", "missing_in_redis")}),
    "a waiter deleted in Redis": (in_redis("users", "HDEL", "u8"), {("u8", "missing_in_redis")}),
    "a booking added in Redis": (
        in_redis("users", "HSET", "extra", "booked 9 1 0"),
        {("extra", "missing_on_record")},
    ),
    "nonsense in Redis": (in_redis("users", "HSET", "u3", "?"), {("u3", "differs")}),
    "nonsense about nobody in Redis": (
        in_redis("users", "HSET", "extra", "?"),
        {("extra", "missing_on_record")},
    ),
    "a ticket added by hand": (
        in_redis("event", "HINCRBY", "available", "1"),
        {(None, "counter")},
    ),
    "a waiter counted who is none": (
        in_redis("event", "HINCRBY", "waiting", "1"),
        {(None, "counter")},
    ),
    "a counter lost in Redis": (in_redis("event", "HDEL", "waiting"), {(None, "counter")}),
    "the next turn lost": (in_redis("event", "HDEL", "next_turn"), {(None, "turns")}),
    "the next turn moved": (in_redis("event", "HINCRBY", "next_turn", "5"), {(None, "turns")}),
    "the first who waits moved to the end": (to_the_end, {("u7", "misplaced")}),
    "two who wait swapped": (swap, {("u7", "misplaced"), ("u13", "misplaced")}),
    "the first who waits dropped": (
        in_redis("waiting_list", "LPOP"),
        {("u7", "not_in_waiting_list")},
    ),
    "the waiting list dropped": (
        in_redis("waiting_list", "DEL"),
        {(f"u{number}", "not_in_waiting_list") for number in (7, 8, 10, 11, 12, 13)},
    ),
    "another turn": (another_turn, {("u8", "not_in_waiting_list"), ("u8", "gap")}),
    "an element twice": (element_twice, {("u13", "twice_in_waiting_list")}),
    "a turn taken out": (no_turn, {("u10", "turns")}),
    "a gap removed": (in_redis("gaps", "DEL"), {("u9", "gap")}),
    "a gap too many": (in_redis("gaps", "ZADD", "6", "6"), {("u10", "gap")}),
    "a gap to come": (in_redis("gaps", "ZADD", "90", "90"), {(None, "gap")}),
    "an element that is none": (in_redis("waiting_list", "RPUSH", "?"), {(None, "unreadable")}),
    "an event that nobody opened": (another_event, {(None, "missing_on_record")}),
}


class TestDrift:
    """Each damage is named, by user and in its direction, and is all that is named."""

    @pytest.mark.parametrize("page", [2_000, 5])
    @pytest.mark.parametrize("damage", DAMAGES)
    async def test_a_damage_is_named(
        self,
        stores: Stores,
        event_id: int,
        valkey: Client,
        record: Record,
        monkeypatch: pytest.MonkeyPatch,
        damage: str,
        page: int,
    ) -> None:
        """Exactly what was damaged comes out, exit code 1, read whole or in pages."""
        monkeypatch.setattr("service.redis_view.PAGE", page)
        do, expected = DAMAGES[damage]
        await do(valkey, record, event_id)
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        assert drifts(report) == expected
        assert (report.verdict, report.exit_code) == ("drift", 1)

    async def test_a_drift_says_what_each_store_has(
        self, stores: Stores, event_id: int, valkey: Client, record: Record
    ) -> None:
        """Who waits at the wrong place is told with both places."""
        await to_the_end(valkey, record, event_id)
        (drift,) = (await reconcile(stores.redis_url, stores.postgresql_url)).drifts
        assert (drift.redis, drift.record) == ("6th in line", "1st in line")

    @pytest.mark.parametrize("page", [2_000, 5])
    async def test_what_is_in_flight_is_compared_too(
        self,
        stores: Stores,
        engine: Engine,
        event_id: int,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
        page: int,
    ) -> None:
        """The writer is away: who joined since is named when he is gone from Redis, or moved."""
        monkeypatch.setattr("service.redis_view.PAGE", page)
        for user in ("gone", "first", "second", "third"):
            await engine.book(event_id, user)
        _, users, waiting_list, _ = event_keys(0, event_id)
        await valkey.hdel(users, "gone")
        last = await valkey.rpop(waiting_list)
        await valkey.linsert(waiting_list, "BEFORE", await valkey.lindex(waiting_list, -2), last)
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        assert drifts(report) == {("gone", "missing_in_redis"), ("third", "misplaced")}
        (gone,) = [drift for drift in report.drifts if drift.user_id == "gone"]
        assert (gone.redis, gone.record) == (None, "waiting since seq 20, in flight")


class Meddling(RedisView):
    """Somebody does something just before each look at an event."""

    before: Callable[[int], Awaitable[object]]
    looks = 0

    async def first_look(self, partition: int, event_id: int, epoch: int) -> Look:
        await self._meddle()
        return await super().first_look(partition, event_id, epoch)

    async def look(self, partition: int, event_id: int, epoch: int, **rest: Any) -> Look:
        await self._meddle()
        return await super().look(partition, event_id, epoch, **rest)

    async def _meddle(self) -> None:
        self.looks += 1
        await self.before(self.looks)


Meddled = Callable[[Callable[[int], Awaitable[object]]], Awaitable[Report]]


@pytest.fixture
async def meddled(stores: Stores) -> AsyncIterator[Meddled]:
    """Reconcile while somebody does something before each look, told how many there were."""
    redis = Meddling(stores.redis_url)

    async def at_once(_: float) -> None: ...

    async def run(before: Callable[[int], Awaitable[object]]) -> Report:
        redis.before, redis.looks = before, 0
        async with await RecordView.open(stores.postgresql_url) as record:
            return await Reconciler(redis, record, sleep=at_once).run()

    yield run
    await redis.aclose()


class TestMeanwhile:
    """What happens between the reads, driven from between the reads."""

    async def come_or_go(self, engine: Engine, event_id: int, user: str) -> None:
        """Join the waiting list, or leave it."""
        try:
            await engine.cancel(event_id, user)
        except Problem:
            await engine.book(event_id, user)

    @pytest.mark.parametrize("page", [2_000, 5])
    async def test_who_changes_before_every_look_is_settled_all_the_same(
        self,
        engine: Engine,
        event_id: int,
        meddled: Meddled,
        monkeypatch: pytest.MonkeyPatch,
        page: int,
    ) -> None:
        """A look has one seq, and the user is compared with the record as of that seq."""
        monkeypatch.setattr("service.redis_view.PAGE", page)

        async def before(_: int) -> None:
            for user in ("u2", "u8", "u13", "new"):
                await self.come_or_go(engine, event_id, user)

        report = await meddled(before)
        assert (report.exit_code, report.drifts) == (0, [])
        assert report.events[0].seq > report.partitions[0].last
        assert report.events[0].in_flight == report.partitions[0].in_flight == 0

    async def test_whole_crowds_that_never_stand_still_cannot_be_told(
        self, engine: Engine, event_id: int, meddled: Meddled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More users than one look holds, changed after they were looked at, in three passes."""
        monkeypatch.setattr("service.redis_view.PAGE", 5)
        monkeypatch.setattr(event_reading, "_USERS_MAX", 1)
        await asyncio.gather(*(engine.book(event_id, f"more{number}") for number in range(9)))

        async def before(_: int) -> None:
            for user in moving:
                await self.come_or_go(engine, event_id, user)

        moving = {"u7", "u8", "u10", "u11", "u12", "u13"}
        report = await meddled(before)
        (event,) = report.events
        assert (report.verdict, report.exit_code, event.drifts) == ("cannot_tell", 2, [])
        # Each pass settles the one who was looked at last.
        assert len(event.unsettled) >= 3
        assert set(event.unsettled) < moving

    async def test_heads_that_go_between_two_pages_leave_no_hole(
        self, engine: Engine, event_id: int, meddled: Meddled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A page that begins behind the end of the copy is read again from further ahead."""
        monkeypatch.setattr("service.redis_view.PAGE", 5)
        await asyncio.gather(*(engine.book(event_id, f"more{number}") for number in range(30)))

        async def before(look: int) -> None:
            if look in (2, 4):
                for user in {2: ("u2", "u3"), 4: ("u4", "u6", "u7")}[look]:
                    await engine.cancel(event_id, user)

        report = await meddled(before)
        assert (report.exit_code, report.drifts) == (0, [])
        assert report.events[0].waiting == 6 + 30 - 5

    async def test_what_is_trimmed_meanwhile_is_taken_from_the_journal(
        self,
        settings: Settings,
        engine: Engine,
        event_id: int,
        meddled: Meddled,
        record: Record,
        valkey: Client,
    ) -> None:
        """An outbox that no longer has all that came after the snapshot hides nothing."""

        async def before(_: int) -> None:
            for user in ("u2", "u8", "new"):
                await self.come_or_go(engine, event_id, user)
            await eventually(lambda: is_recorded(record, valkey))
            last = await valkey.xrevrange(OUTBOX, count=1)
            assert await valkey.xtrim(OUTBOX, minid=last[0][0], approximate=False) > 3

        async with writing(settings):
            report = await meddled(before)
        assert (report.exit_code, report.drifts) == (0, [])
        assert report.partitions[0].in_flight == 0

    async def test_an_epoch_that_begins_meanwhile_is_another_pass(
        self, event_id: int, meddled: Meddled, handshake: Handshake
    ) -> None:
        """The batch is compared again, in the epoch that is now."""

        async def before(look: int) -> None:
            if look == 1:
                await handshake.run(NOWHERE, adopt=False)

        report = await meddled(before)
        assert (report.exit_code, report.partitions[0].epoch) == (0, 2)
        assert [event.event_id for event in report.events] == [event_id]

    async def test_a_rebuild_between_two_batches_is_taken_up(
        self,
        settings: Settings,
        engine: Engine,
        event_id: int,
        meddled: Meddled,
        record: Record,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What was known of the changes in the old epoch says nothing about the new one."""
        monkeypatch.setattr(reconciler, "_BATCH_EVENTS", 1)
        second = await sale(engine)
        async with writing(settings):
            await eventually(lambda: is_recorded(record, valkey))
        await engine.book(second, "lost")
        first_look = RedisView.first_look

        async def serves() -> bool:
            with contextlib.suppress(Problem):
                return (await engine.event(second)).event_id == second
            return False

        async def and_a_rebuild(view: RedisView, partition: int, event: int, epoch: int) -> Look:
            found = await first_look(view, partition, event, epoch)
            if event == event_id:
                await valkey.flushall()
                with pytest.raises(Problem, match="answers were lost"):
                    await engine.event(second)
                await confirm_loss(settings)
                async with writing(settings):
                    await eventually(serves)
                await engine.book(second, "after")
            return found

        async def nothing(_: int) -> None: ...

        monkeypatch.setattr(RedisView, "first_look", and_a_rebuild)
        report = await meddled(nothing)
        assert (report.exit_code, report.partitions[0].epoch) == (0, 3)
        assert [event.users for event in report.events] == [13, 14]
        assert [event.in_flight for event in report.events] == [0, 1]

    @pytest.mark.usefixtures("event_id")
    async def test_epochs_that_never_last_cannot_be_told(
        self, meddled: Meddled, handshake: Handshake
    ) -> None:
        """After three passes it is given up, with the reason."""
        report = await meddled(lambda _: handshake.run(NOWHERE, adopt=False))
        assert report.exit_code == 2
        assert report.partitions[0].reason == "a handshake came between, in each of 3 passes"


class TestCannotTell:
    """Stores that do not agree on history are not compared: exit code 2, with the reason."""

    @pytest.mark.parametrize(
        ("command", "reason"),
        [
            (("HSET", META, "open", "0", "reason", "told so"), "it stays closed: told so"),
            (("HSET", META, "epoch", "7"), "PostgreSQL does not know epoch 7 of Redis"),
            (("HSET", META, "seq", "3"), "Redis went back: it ends at 1-3, the record at 1-19"),
            (("HSET", META, "recorded", "20"), "PostgreSQL went back: Redis knows 1-20"),
            (("DEL", META), "Redis is empty"),
        ],
    )
    @pytest.mark.usefixtures("event_id")
    async def test_a_history_that_differs_is_no_drift(
        self, stores: Stores, valkey: Client, command: tuple[str, ...], reason: str
    ) -> None:
        """That is the handshake's to settle."""
        await valkey.execute_command(*command)
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        assert (report.verdict, report.exit_code, report.drifts) == ("cannot_tell", 2, [])
        assert report.partitions[0].reason.startswith(reason)

    @pytest.mark.parametrize("lost", [20, 21, 22])
    async def test_a_hole_in_the_outbox_is_no_drift(
        self, stores: Stores, engine: Engine, event_id: int, valkey: Client, lost: int
    ) -> None:
        """What was in flight there is not known, so nothing can be said."""
        for user in ("a", "b", "c"):
            await engine.book(event_id, user)
        assert await valkey.xdel(OUTBOX, f"1-{lost}") == 1
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        assert (report.verdict, report.exit_code) == ("cannot_tell", 2)
        reason = f"neither outbox nor journal has the change after seq {lost - 1}"
        assert report.partitions[0].reason == reason

    @pytest.mark.usefixtures("event_id")
    async def test_an_event_that_neither_store_has_is_refused(self, stores: Stores) -> None:
        """A typing error is not taken for a clean event."""
        with pytest.raises(UnknownEventError, match="event 98, 99"):
            await reconcile(stores.redis_url, stores.postgresql_url, event_ids=[99, 1, 98])

    async def test_a_drift_wins_over_a_closed_partition(
        self, stores: Stores, valkey: Client, record: Record
    ) -> None:
        """One partition is closed, one has a drift, one is clean: exit code 1, and all is said."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=3
        )
        async with Worker(settings) as engine, writing(settings):
            events = [await sale(engine) for _ in range(6)]
            await eventually(lambda: _all_recorded(record, valkey, 3))
        await valkey.hset(partition_keys(1).meta, mapping={"open": "0", "reason": "told so"})
        await valkey.hdel(event_keys(2, 2).users, "u3")
        report = await reconcile(stores.redis_url, stores.postgresql_url)
        assert (report.exit_code, drifts(report)) == (1, {("u3", "missing_in_redis")})
        assert [partition.reason for partition in report.partitions] == [
            "",
            "it stays closed: told so",
            "",
        ]
        assert {event.event_id for event in report.events} == {i for i in events if i % 3 != 1}


async def _all_recorded(record: Record, valkey: Client, partitions: int) -> bool:
    seqs = await record.fetch("SELECT seq FROM cursors ORDER BY partition")
    in_redis = [await valkey.hget(partition_keys(p).meta, "seq") for p in range(partitions)]
    return [row["seq"] for row in seqs] == [int(seq) for seq in in_redis]
