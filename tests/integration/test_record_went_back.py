"""A record restored from an older copy is brought forward from the outbox, or the sale closes.

Worker and writer of the test's own process; under a whole service: `tests/restores`.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from service import bringing_forward
from service.app import Worker
from service.bringing_forward import BringingForward
from service.decision import Decision
from service.engine import Engine
from service.errors import Problem
from service.handshake import HandshakeImpossible, Opened, StaysClosed
from service.handshakes import make_handshakes
from service.keys import partition_keys
from service.ledger import Ledger
from service.outbox import Change
from service.projection import Projection
from service.reconciler import reconcile
from service.record import Application
from service.redis_store import RedisStore
from service.rows import chain
from service.settings import Settings
from service.times import to_microseconds
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, ready, writing
from tests.integration.restoring import RecordCopies, caught_up, crowding, is_whole

META, _, OUTBOX = partition_keys(0)
POINTS = 3


class Died(BaseException):
    """What a test throws in place of a kill: nothing may catch it."""


@pytest.fixture
def copies(stores: Stores) -> RecordCopies:
    """Take and restore copies of this test's record."""
    return RecordCopies(stores)


@pytest.fixture
async def event_id(engine: Engine, settings: Settings, redis_store: RedisStore,
                   copies: RecordCopies) -> int:  # fmt: skip
    """Sell 2 of 4 tickets, take a copy of the record, sell on: 2 booked, 3 wait; all recorded."""
    async with writing(settings):
        event = await engine.initialize("Event Name", 4)
        for user in ("1", "2"):
            await engine.book(event.event_id, user)
        await caught_up(copies, redis_store)
        await copies.take()
        await sell_on(engine, event.event_id)
        await caught_up(copies, redis_store)
    return event.event_id


async def sell_on(engine: Engine, event_id: int, *, cancels: tuple[str, str] = ("1", "7")) -> None:
    """Six people book, one cancels and one leaves: eight changes and a promotion."""
    for user in ("3", "4", "5", "6", "7", "8"):
        await engine.book(event_id, user)
    for user in cancels:
        await engine.cancel(event_id, user)


async def verdicts(copies: RecordCopies) -> list[str]:
    """Return the verdicts on record, oldest first."""
    async with copies.connected() as record:
        rows = await record.fetch("SELECT verdict FROM epochs ORDER BY epoch")
    return [row["verdict"] for row in rows]


async def ask(settings: Settings, store: RedisStore, role: str = "test") -> Opened | StaysClosed:
    """Ask for a handshake, as a process of its own would."""
    return await make_handshakes(settings, store, role)[0].run()


class TestBroughtForward:
    """What the outbox proves is put on record again, all of it and once."""

    @pytest.mark.parametrize("seed", range(POINTS))
    @pytest.mark.parametrize("handshakes", [0, 2], ids=["same epoch", "older epoch"])
    async def test_a_copy_restored_under_load(
        self, settings: Settings, stores: Stores, engine: Engine,
        copies: RecordCopies, valkey: Client, seed: int, handshakes: int,
    ) -> None:  # fmt: skip
        """At random points of a sale: the writer finds it, the sale goes on, nothing is lost."""
        points = random.Random(seed)
        event = await engine.initialize("Event Name", 60)
        async with writing(settings), crowding(engine, event.event_id) as crowd:
            await crowd.grow(points.randint(1, 120))
            await copies.take()
            for _ in range(handshakes):
                await crowd.grow(points.randint(1, 60))
                epoch = await valkey.hget(META, "epoch")
                await valkey.script_flush()
                await eventually(partial(_has_left, valkey, epoch))
            await crowd.grow(points.randint(1, 120))
            await caught_up_once(copies, valkey)
            await copies.restore()
            await crowd.grow(points.randint(1, 60))
            await ready(engine)
        async with writing(settings):
            await is_whole(copies, stores, valkey, crowd, event.event_id)
            opened = await engine.initialize("Another", 1)
            assert opened.event_id > event.event_id
        found = await verdicts(copies)
        assert "replay" in found
        assert "rebuild" not in found
        assert found.count("replayed") == handshakes

    async def test_a_copy_that_lacks_no_change_but_the_epoch(
        self, settings: Settings, stores: Stores, engine: Engine, redis_store: RedisStore,
        copies: RecordCopies, valkey: Client,
    ) -> None:  # fmt: skip
        """W ≤ P, and still the record went back: an epoch is on record before Redis begins it."""
        async with writing(settings):
            event = await engine.initialize("Event Name", 1)
            await caught_up(copies, redis_store)
        await copies.take()
        await valkey.script_flush()
        await engine.book(event.event_id, "1")
        await copies.restore()
        assert await ask(settings, redis_store) == Opened(3, "replay")
        async with writing(settings):
            await is_whole(copies, stores, valkey, None, event.event_id)
        assert await verdicts(copies) == ["begin", "replayed", "replay"]

    async def test_the_ids_of_events_that_were_lost_are_not_drawn_again(
        self, settings: Settings, stores: Stores, engine: Engine, redis_store: RedisStore,
        copies: RecordCopies, valkey: Client,
    ) -> None:  # fmt: skip
        """Their rows come back, and the sequence is above them: the next opening succeeds."""
        async with writing(settings):
            first = await engine.initialize("First", 2)
            await caught_up(copies, redis_store)
            await copies.take()
            later = [await engine.initialize(f"Later {number}", 3) for number in range(5)]
            await engine.book(later[-1].event_id, "1")
            await caught_up(copies, redis_store)
        await copies.restore()
        assert await ask(settings, redis_store) == Opened(2, "replay")
        async with copies.connected() as record:
            drawn = await record.fetchval("SELECT last_value FROM events_id_seq")
        assert drawn == later[-1].event_id
        async with writing(settings):
            opened = await engine.initialize("Newest", 1)
            assert opened.event_id > max(event.event_id for event in later)
            await is_whole(copies, stores, valkey, None, later[-1].event_id)
        async with copies.connected() as record:
            rows = await record.fetch("SELECT name FROM events ORDER BY id")
        names = [first.name, *(event.name for event in later), "Newest"]
        assert [row["name"] for row in rows] == names

    async def test_a_copy_of_just_before_a_rebuild(
        self, settings: Settings, stores: Stores, engine: Engine, redis_store: RedisStore,
        copies: RecordCopies, valkey: Client,
    ) -> None:  # fmt: skip
        """P itself is not in the outbox; the epoch that follows it says so itself."""
        async with writing(settings):
            event = await engine.initialize("Event Name", 4)
            await engine.book(event.event_id, "1")
            await engine.book(event.event_id, "7")
            await caught_up(copies, redis_store)
            await copies.take()
            await valkey.flushall()
            await sell_on(engine, event.event_id)
            await caught_up(copies, redis_store)
        await copies.restore()
        assert await ask(settings, redis_store) == Opened(3, "replay")
        async with writing(settings):
            await is_whole(copies, stores, valkey, None, event.event_id)

    async def test_a_number_that_a_closed_epoch_of_the_copy_has(
        self, settings: Settings, stores: Stores, event_id: int, redis_store: RedisStore,
        copies: RecordCopies, valkey: Client, engine: Engine,
    ) -> None:  # fmt: skip
        """The copy had been tried before and stayed closed; its number was another's meanwhile."""
        async with copies.connected("_copy") as record:
            await record.execute(
                "INSERT INTO epochs VALUES (0, 2, 'stay_closed', null, null, 'tried before')"
            )
        await valkey.script_flush()
        async with writing(settings):
            await engine.book(event_id, "9")
            await caught_up(copies, redis_store)
        await copies.restore()
        assert await ask(settings, redis_store) == Opened(3, "replay")
        async with writing(settings):
            await is_whole(copies, stores, valkey, None, event_id)
        assert await verdicts(copies) == ["begin", "replayed", "replay"]

    async def test_each_partition_of_a_record(
        self, stores: Stores, redis_store: RedisStore, copies: RecordCopies
    ) -> None:
        """All of them went back at once; each comes forward by a handshake of its own."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=2
        )
        async with Worker(settings) as engine, writing(settings):
            ids = [(await engine.initialize(f"Event {number}", 3)).event_id for number in (1, 2)]
            for event_id in ids:
                await engine.book(event_id, "1")
            await caught_up(copies, redis_store, partitions=2)
            await copies.take()
            for event_id in ids:
                await sell_on(engine, event_id, cancels=("1", "4"))
            ids += [(await engine.initialize(f"Late {number}", 3)).event_id for number in (1, 2)]
            await caught_up(copies, redis_store, partitions=2)
        await copies.restore()
        shaken = await asyncio.gather(
            *(one.run() for one in make_handshakes(settings, redis_store, "test").values())
        )
        assert shaken == [Opened(2, "replay"), Opened(2, "replay")]
        async with Worker(settings) as engine, writing(settings):
            assert (await engine.initialize("Newest", 3)).event_id > max(ids)
            await caught_up(copies, redis_store, partitions=2)
        journal = "SELECT partition, seq, hash FROM journal WHERE epoch = 1 ORDER BY partition, seq"
        async with copies.connected() as record, copies.connected("_lost") as lost:
            assert await record.fetch(journal) == await lost.fetch(journal)
        assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"


class TestInTheMiddle:
    """Others who ask, a writer at work, a death or a frost anywhere."""

    @pytest.fixture(autouse=True)
    def small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A transaction per entry."""
        monkeypatch.setattr(bringing_forward, "_BATCH_CHANGES", 1)

    @pytest.mark.parametrize(
        "point",
        [
            "before BEGIN",
            "mid rows",
            "before COMMIT",
            "after COMMIT",
            "verdict",
            "decided",
            "begun",
        ],
    )
    @pytest.mark.parametrize("batch", [1, 3])
    async def test_a_replay_that_died_is_ended_by_the_next_handshake(
        self, settings: Settings, stores: Stores, event_id: int, redis_store: RedisStore,
        copies: RecordCopies, valkey: Client, monkeypatch: pytest.MonkeyPatch, engine: Engine,
        point: str, batch: int,
    ) -> None:  # fmt: skip
        """Killed in a batch, between batches, and around its verdict."""
        await valkey.script_flush()
        async with writing(settings):
            await engine.book(event_id, "9")
            await caught_up(copies, redis_store)
        await copies.restore()
        with monkeypatch.context() as patched:
            _arm(patched, redis_store, point, batch)
            with pytest.raises(Died):
                await ask(settings, redis_store, "dying")
        meta = await redis_store.meta(0)
        assert meta is not None
        assert not meta.open
        assert isinstance(await ask(settings, redis_store), Opened)
        async with writing(settings):
            await is_whole(copies, stores, valkey, None, event_id)
        assert "rebuild" not in await verdicts(copies)

    async def test_many_ask_at_once(
        self, settings: Settings, stores: Stores, event_id: int, redis_store: RedisStore,
        copies: RecordCopies, valkey: Client,
    ) -> None:  # fmt: skip
        """Six workers: one replays, the others adopt what it made."""
        await copies.restore()
        asked = await asyncio.gather(*(ask(settings, redis_store) for _ in range(6)))
        assert asked == [Opened(2)] * 6
        assert sorted(result.how for result in asked if isinstance(result, Opened)) == (
            ["adopted"] * 5 + ["replay"]
        )
        async with writing(settings):
            await is_whole(copies, stores, valkey, None, event_id)

    async def test_a_writer_that_applies_meanwhile(
        self, settings: Settings, stores: Stores, event_id: int, redis_store: RedisStore,
        copies: RecordCopies, valkey: Client, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The cursor row decides: what another has put on record is not put there twice."""
        await copies.restore()
        apply = BringingForward._apply
        ahead: list[BringingForward] = []

        async def overtaken(self: BringingForward, batch: Any) -> None:
            if not ahead:
                other = BringingForward(0, self._redis, self._ledger, self._closed, self._touch)
                ahead.append(other)
                await apply(other, batch)
            await apply(self, batch)

        monkeypatch.setattr(BringingForward, "_apply", overtaken)
        async with writing(settings):
            assert await ask(settings, redis_store) == Opened(2)
            await is_whole(copies, stores, valkey, None, event_id)
        assert ahead

    async def test_a_holder_that_was_frozen_applies_nothing_more(
        self, settings: Settings, stores: Stores, event_id: int, redis_store: RedisStore,
        copies: RecordCopies, valkey: Client, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """It lost its session between two batches; another ended the replay; it wakes in vain."""
        await copies.restore()
        frozen, woken = asyncio.Event(), asyncio.Event()
        apply = BringingForward._apply
        calls: list[BringingForward] = []

        async def freeze(self: BringingForward, batch: Any) -> None:
            calls.append(self)
            if len(calls) == 3:
                monkeypatch.setattr(BringingForward, "_apply", apply)
                frozen.set()
                await woken.wait()
            await apply(self, batch)

        monkeypatch.setattr(BringingForward, "_apply", freeze)
        holder = asyncio.create_task(ask(settings, redis_store, "frozen"))
        await frozen.wait()
        async with copies.connected() as record:
            await record.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'onsale frozen handshake' AND datname = $1",
                copies.name,
            )
        assert await ask(settings, redis_store) == Opened(3)
        woken.set()
        with pytest.raises(HandshakeImpossible):
            await holder
        async with writing(settings):
            await is_whole(copies, stores, valkey, None, event_id)


class TestStaysClosed:
    """What the outbox does not prove is not guessed: nothing is written, nobody is answered."""

    async def test_a_tail_that_was_trimmed(
        self, settings: Settings, event_id: int, redis_store: RedisStore, copies: RecordCopies,
        valkey: Client, engine: Engine,
    ) -> None:  # fmt: skip
        """The message names partition and range; the right record opens it again by a start."""
        await copies.restore()
        await valkey.xtrim(OUTBOX, minid="1-7", approximate=False)
        result = await self._is_refused(settings, redis_store, copies, valkey)
        assert "partition 0: changes 5 to 6 are not in the outbox" in result.reason
        await copies.restore(kept_as="older", suffix="lost")

        async def sells() -> bool:
            try:
                return (await engine.user(event_id, "3")).status == "booked"
            except Problem:
                return False

        assert not await sells()
        async with writing(settings):
            await eventually(sells)
        assert await verdicts(copies) == ["begin", "continue"]

    async def test_a_tail_that_begins_behind_the_record(
        self, settings: Settings, event_id: int, redis_store: RedisStore, copies: RecordCopies,
        valkey: Client,
    ) -> None:  # fmt: skip
        """Whole from P+1, but nothing is left to tell this record from another by."""
        assert event_id
        await copies.restore()
        await valkey.xtrim(OUTBOX, minid="1-5", approximate=False)
        result = await self._is_refused(settings, redis_store, copies, valkey)
        assert "change 1-4, to be compared, is not in the outbox any more" in result.reason

    async def test_a_hole_in_the_tail(
        self, settings: Settings, event_id: int, redis_store: RedisStore, copies: RecordCopies,
        valkey: Client,
    ) -> None:  # fmt: skip
        """Not even what comes before the hole is applied."""
        assert event_id
        await copies.restore()
        await valkey.xdel(OUTBOX, "1-8")
        result = await self._is_refused(settings, redis_store, copies, valkey)
        assert "changes 8 to 8 are not in the outbox" in result.reason

    async def test_another_database_with_the_same_numbers(
        self, settings: Settings, event_id: int, redis_store: RedisStore, copies: RecordCopies,
        valkey: Client,
    ) -> None:  # fmt: skip
        """Sound in itself, of the same epoch, and its last change is another one."""
        assert event_id
        async with copies.connected("_copy") as record:
            await _rewrite_the_end(record)
        await copies.restore()
        result = await self._is_refused(settings, redis_store, copies, valkey)
        assert "change 1-4 is another one on record than in the outbox" in result.reason

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            ("DELETE FROM cursors", "never began partition 0"),
            ("DELETE FROM epochs", "its epochs do not lead to 1-4"),
            ("DELETE FROM journal", "its journal ends otherwise"),
            ("DELETE FROM journal WHERE seq = 4", "its journal ends otherwise"),
            ("UPDATE cursors SET seq = 3", "its journal ends otherwise"),
            ("UPDATE cursors SET head = ''", "its journal ends otherwise"),
            ("DELETE FROM bookings", "do not add up: [1]"),
            ("UPDATE epochs SET beginning = 7", "its epochs do not lead to 1-4"),
            ("UPDATE events SET sold = 0", "do not add up: [1]"),
            (
                "TRUNCATE cursors, epochs, journal, bookings, events, deployment",
                "never began partition 0",
            ),
            (
                "INSERT INTO epochs VALUES (0, 2, 'rebuild', 4, 1, 'another life')",
                "is not of the lineage that leads on from 1-4",
            ),
        ],
    )
    async def test_a_record_that_is_not_of_one_piece_or_of_another_lineage(
        self, settings: Settings, event_id: int, redis_store: RedisStore, copies: RecordCopies,
        valkey: Client, damage: str, says: str,
    ) -> None:  # fmt: skip
        """Only some tables restored, an empty database, or one with a life of its own."""
        assert event_id
        async with copies.connected("_copy") as record:
            await record.execute(damage)
        await copies.restore()
        result = await self._is_refused(settings, redis_store, copies, valkey)
        assert says in result.reason

    async def test_an_epoch_that_began_elsewhere(
        self, settings: Settings, event_id: int, redis_store: RedisStore, copies: RecordCopies,
        valkey: Client, engine: Engine,
    ) -> None:  # fmt: skip
        """The copy was used on its own: its epoch 2 is not the outbox's."""
        await valkey.script_flush()
        async with writing(settings):
            await engine.book(event_id, "9")
            await caught_up(copies, redis_store)
        async with copies.connected("_copy") as record:
            await record.execute("INSERT INTO epochs VALUES (0, 2, 'continue', 40, 1, 'alone')")
        await copies.restore()
        result = await self._is_refused(settings, redis_store, copies, valkey)
        assert "epoch 2 began after seq 40 on record, and after seq 13" in result.reason

    async def test_a_verdict_of_another_life_is_not_resumed(
        self,
        settings: Settings,
        event_id: int,
        redis_store: RedisStore,
        copies: RecordCopies,
        valkey: Client,
    ) -> None:
        """An attempt died; the record that came back has a verdict under its very number."""
        assert event_id
        await valkey.hset(META, mapping={"open": "0", "next": "2 died"})
        async with copies.connected("_copy") as record:
            await record.execute("INSERT INTO epochs VALUES (0, 2, 'continue', 4, 1, 'alone')")
        await copies.restore()
        result = await self._is_refused(settings, redis_store, copies, valkey)
        assert "is not of the lineage that leads on from 1-4" in result.reason
        assert await valkey.hget(META, "seq") == "13"

    @staticmethod
    async def _is_refused(
        settings: Settings, redis_store: RedisStore, copies: RecordCopies, valkey: Client
    ) -> StaysClosed:
        """A worker and a writer start: closed, and neither record nor outbox has changed."""
        counted = "SELECT (SELECT count(*) FROM journal), (SELECT count(*) FROM bookings)"
        async with copies.connected() as record:
            before = await record.fetchrow(counted)
        outbox = await valkey.xrange(OUTBOX)
        result = await ask(settings, redis_store)
        assert isinstance(result, StaysClosed)
        assert result.reason.startswith(
            "PostgreSQL went back: Redis knows 1-13 to be on record"
        ) or ("Redis knows 2-15 to be on record" in result.reason)
        async with writing(settings):

            async def compared() -> bool:
                return (
                    len(await verdicts(copies)) > 1
                    and (await verdicts(copies)).count("stay_closed") == 2
                )

            await eventually(compared)
        async with copies.connected() as record:
            assert await record.fetchrow(counted) == before
        assert await valkey.xrange(OUTBOX) == outbox
        assert await valkey.hget(META, "open") == "0"
        return result


async def caught_up_once(copies: RecordCopies, valkey: Client) -> None:
    """Wait until Redis knows more on record than the copy has."""

    async def done() -> bool:
        async with copies.connected("_copy") as record:
            row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
        told = await valkey.hmget(META, "recorded_epoch", "recorded")
        return row is None or (int(told[0]), int(told[1])) > tuple(row)

    await eventually(done)


async def _has_left(valkey: Client, epoch: str) -> bool:
    """Whether a later epoch is open."""
    now, is_open = await valkey.hmget(META, "epoch", "open")
    return bool(now != epoch and is_open == "1")


async def _rewrite_the_end(record: Record) -> None:
    """Have the last change be of a microsecond later, with hashes that hold."""
    rows = await record.fetch("SELECT * FROM journal ORDER BY seq")
    head = rows[-2]["hash"]
    last = rows[-1]
    at = to_microseconds(last["at"]) + 1
    change = Change(
        last["seq"], last["epoch"], at, last["kind"], last["event_id"], last["user_id"],
        last["details"],
    )  # fmt: skip
    head = chain(head, 0, change)
    await record.execute(
        "UPDATE journal SET at = at + interval '1 microsecond', hash = $1 WHERE seq = $2",
        head,
        last["seq"],
    )
    await record.execute("UPDATE cursors SET head = $1", head)


def _arm(patched: pytest.MonkeyPatch, store: RedisStore, point: str, batch: int) -> None:
    """Make a handshake die at a named point: in one of its batches, or around its verdict."""

    async def die(*_: Any) -> Any:
        raise Died

    if point == "verdict":
        patched.setattr(Decision, "put_epoch", die)
    elif point == "decided":
        patched.setattr(store, "load_scripts", die)
    elif point == "begun":
        patched.setattr(store, "begin_epoch", die)
    else:
        _arm_batch(patched, point, batch)


def _arm_batch(patched: pytest.MonkeyPatch, point: str, batch: int) -> None:
    """Make it die in the so-manieth transaction that applies; the one before those only proves."""
    applying: Callable[..., Any] = Ledger.applying
    counters: Callable[..., Awaitable[None]] = Projection._users
    begun = 0

    def is_at(here: str) -> bool:
        return here == point and begun > batch

    @asynccontextmanager
    async def dying(self: Ledger, partitions: Any) -> AsyncIterator[Application]:
        nonlocal begun
        begun += 1
        if is_at("before BEGIN"):
            raise Died
        async with applying(self, partitions) as application:
            yield application
            if is_at("before COMMIT"):
                raise Died
        if is_at("after COMMIT"):
            raise Died

    async def mid_rows(self: Application, changes: Any, rows: Any) -> None:
        if is_at("mid rows"):
            raise Died
        await counters(self, changes, rows)

    patched.setattr(Ledger, "applying", dying)
    patched.setattr(Projection, "_users", mid_rows)
