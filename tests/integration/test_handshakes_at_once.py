"""Several handshakes of one partition: at once, frozen and woken, and by an operator's order."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.decision import Decision
from service.engine import Engine
from service.errors import Problem
from service.handshake import Handshake, HandshakeImpossible, Opened, StaysClosed
from service.handshakes import make_handshakes
from service.keys import partition_keys
from service.ledger import Ledger, connect
from service.lineage import NOWHERE, Position
from service.orders import Order
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, writing
from tests.integration.test_handshake import Died, all_recorded, epochs, recorded, sell

META, CALLS, OUTBOX = partition_keys(0)


async def stored(valkey: Client) -> dict[str, bytes | str]:
    """Return `meta`, and R's outbox as its last id."""
    last = await valkey.xrevrange(OUTBOX, count=1)
    return {**await valkey.hgetall(META), "the last entry": last[0][0] if last else ""}


def ask(settings: Settings, store: RedisStore, purpose: str = "next") -> Handshake:
    """Return a handshake of somebody's own."""
    return make_handshakes(settings, store, purpose)[0]


async def _make_older(record: Record, at: Position) -> None:
    """Put an epoch 2 on record that Redis, in epoch 1, knows nothing of."""
    await record.execute(
        "INSERT INTO epochs (partition, epoch, verdict, beginning, predecessor, reason)"
        " VALUES (0, 2, 'continue', $1, $2, 'a test')",
        at.seq,
        at.epoch,
    )


class Freezer:
    """Freezes whoever comes to a step of Redis first, until it is woken; others pass."""

    def __init__(self, store: RedisStore, step: str) -> None:
        self.frozen, self.woken = asyncio.Event(), asyncio.Event()
        self._run_step: Callable[..., Any] = getattr(store, step)
        setattr(store, step, self._freeze)

    async def _freeze(self, *arguments: Any, **named: Any) -> Any:
        if not self.frozen.is_set():
            self.frozen.set()
            await self.woken.wait()
        return await self._run_step(*arguments, **named)


async def end_session(record: Record, purpose: str) -> None:
    """End a holder's session, as PostgreSQL does with one that is frozen."""
    await record.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = $1 AND datname = current_database()",
        f"onsale {purpose} handshake",
    )


class TestFrozen:
    """A holder may be frozen before each step, and wakes to do nothing."""

    @pytest.mark.parametrize("step", ["close", "load_scripts", "begin_epoch"])
    async def test_a_frozen_process_loses_its_session_and_wakes_to_do_nothing(
        self,
        settings: Settings,
        stores: Stores,
        engine: Engine,
        redis_store: RedisStore,
        record: Record,
        valkey: Client,
        step: str,
    ) -> None:
        """SIGSTOP of a real process: PostgreSQL ends its session, another takes over, it wakes."""
        await sell(engine)
        await valkey.script_flush()
        holder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.frozen_holder"),
            *(stores.redis_url, stores.postgresql_url, step),
            stdout=asyncio.subprocess.PIPE,
        )
        try:

            async def is_frozen() -> bool:
                assert holder.returncode is None
                stat = Path(f"/proc/{holder.pid}/stat").read_text()  # noqa: ASYNC240  # of memory
                return stat.rpartition(")")[2].split()[0] == "T"

            await eventually(is_frozen)
            assert await ask(settings, redis_store).run() == Opened(2)
            before = await stored(valkey)
            os.kill(holder.pid, signal.SIGCONT)
            said, _ = await asyncio.wait_for(holder.communicate(), 15)
        finally:
            if holder.returncode is None:
                holder.kill()
                await holder.wait()
        assert said.splitlines()[-1].startswith(b"impossible: ")
        assert await stored(valkey) == before
        assert await epochs(record) == [(1, "begin", 0, 0), (2, "continue", 10, 1)]

    async def test_one_that_wakes_while_another_resumes_it_does_nothing(
        self,
        settings: Settings,
        stores: Stores,
        engine: Engine,
        record: Record,
        valkey: Client,
    ) -> None:
        """The token of the one that resumes is there first: the last step of the other is void."""
        await sell(engine)
        await valkey.script_flush()
        one, other = RedisStore(stores.redis_url), RedisStore(stores.redis_url)
        first, second = Freezer(one, "begin_epoch"), Freezer(other, "begin_epoch")
        holder = asyncio.create_task(ask(settings, one, "frozen").run())
        await first.frozen.wait()
        await end_session(record, "frozen")
        resuming = asyncio.create_task(ask(settings, other).run())
        await second.frozen.wait()
        first.woken.set()
        with pytest.raises(HandshakeImpossible):
            await holder
        assert await valkey.hget(META, "open") == "0"
        second.woken.set()
        assert await resuming == Opened(2)
        assert len(await epochs(record)) == 2
        await one.aclose()
        await other.aclose()

    async def test_one_that_wakes_before_an_emptying_empties_nothing(
        self,
        settings: Settings,
        stores: Stores,
        engine: Engine,
        redis_store: RedisStore,
        record: Record,
        valkey: Client,
    ) -> None:
        """Of a rebuild: what was sold since another one finished it stays."""
        async with writing(settings):
            event_id = await sell(engine)
            await all_recorded(record, redis_store)
        await valkey.flushall()
        store = RedisStore(stores.redis_url)
        freezer = Freezer(store, "empty")
        holder = asyncio.create_task(ask(settings, store, "frozen").run())
        await freezer.frozen.wait()
        await end_session(record, "frozen")
        assert await ask(settings, redis_store).run() == Opened(2)
        async with writing(settings):
            assert (await engine.book(event_id, "9")).position == 6
        before = sorted(await valkey.keys("*"))
        freezer.woken.set()
        with pytest.raises(HandshakeImpossible):
            await holder
        assert sorted(await valkey.keys("*")) == before
        await store.aclose()


class TestResuming:
    """An attempt that died between the stores, and who comes after it."""

    async def _die(self, settings: Settings, store: RedisStore, step: str) -> None:
        async def die(*_: Any) -> Any:
            raise Died

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(store, step, die)
            with pytest.raises(Died):
                await ask(settings, store, "dying").run()

    async def test_several_who_ask_at_once_settle_on_the_epoch_that_was_promised(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
    ) -> None:
        """One resumes, the others adopt; no second verdict is made, and the tail is still there."""
        await sell(engine)
        await valkey.script_flush()
        await self._die(settings, redis_store, "begin_epoch")
        crowd = [ask(settings, redis_store, f"asker{n}") for n in range(6)]
        results = await asyncio.gather(*(one.run() for one in crowd))
        assert results == [Opened(2)] * 6
        how = sorted(result.how for result in results if isinstance(result, Opened))
        assert how == ["adopted"] * 5 + ["continue"]
        assert await epochs(record) == [(1, "begin", 0, 0), (2, "continue", 10, 1)]

    async def test_one_that_stayed_closed_is_compared_anew(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
    ) -> None:
        """It died before it could say so to Redis; the cause has gone meanwhile."""
        await sell(engine)
        entries = await valkey.xrange(OUTBOX)
        await valkey.xdel(OUTBOX, "1-4")
        await valkey.script_flush()
        await self._die(settings, redis_store, "stay_closed")
        assert (await epochs(record))[-1][1] == "stay_closed"
        await valkey.delete(OUTBOX)
        for entry_id, fields in entries:
            await valkey.xadd(OUTBOX, fields, entry_id)
        assert await ask(settings, redis_store).run() == Opened(3)
        assert (await epochs(record))[-1] == (3, "continue", 10, 1)


class TestAdoption:
    """What is adopted is the newest, and in order on both sides."""

    async def test_an_epoch_older_than_the_newest_on_record_is_not(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
    ) -> None:
        """Open, its scripts loaded, and nothing recorded since: the record knows of a newer one."""
        async with writing(settings):
            await sell(engine)
            await all_recorded(record, redis_store)
        await _make_older(record, await recorded(record))
        assert await ask(settings, redis_store).run() == Opened(3)
        assert (await epochs(record))[-1][1] == "rebuild"

    async def test_a_writer_that_goes_on_meanwhile_is_no_disagreement(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """P moves before `meta` is read, and again before P is: R and W are between."""
        event_id = await sell(engine, users=1)
        read_meta = redis_store.meta

        async def meanwhile(partition: int) -> Any:
            async with writing(settings):
                await engine.book(event_id, "before")
                await all_recorded(record, store)
            found = await read_meta(partition)
            async with writing(settings):
                await engine.book(event_id, "after")
                await all_recorded(record, store)
            return found

        store = RedisStore(settings.own_redis_url or "")
        monkeypatch.setattr(redis_store, "meta", meanwhile)
        assert await ask(settings, redis_store).run() == Opened(1)
        assert len(await epochs(record)) == 1
        await store.aclose()

    async def test_only_one_is_at_work(
        self, settings: Settings, stores: Stores, redis_store: RedisStore, record: Record
    ) -> None:
        """Who waits for the lock in vain has done nothing, and may ask again."""
        async with await connect(stores.postgresql_url, purpose="test") as holder:
            assert await holder.lock_handshake(0, wait_s=1)
            with pytest.raises(HandshakeImpossible, match="another handshake"):
                await ask(settings, redis_store).run()
            assert await redis_store.meta(0) is None
        assert await ask(settings, redis_store).run() == Opened(1)
        assert len(await epochs(record)) == 1


class TestDecision:
    """The one transaction in which a verdict is made."""

    async def test_p_stands_still_while_it_is_made(
        self, engine: Engine, stores: Stores, record: Record
    ) -> None:
        """Whoever applies waits for it, and sees the epoch then."""
        await sell(engine)
        order: list[str] = []

        async def applying() -> None:
            ledger = await connect(stores.postgresql_url, purpose="writer")
            async with ledger, ledger.applying([0]) as application:
                newest = application.lineages[0].newest
                order.append(f"applying in {newest and newest.epoch}")

        async def waits() -> bool:
            found = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            return bool(order or await record.fetchval(found))

        ledger = await connect(stores.postgresql_url, purpose="test")
        async with ledger, ledger.deciding(0) as decision:
            task = asyncio.create_task(applying())
            await eventually(waits)
            await decision.put_epoch(2, "continue", 10, 1, "a test")
            order.append("decided")
        await task
        assert order == ["decided", "applying in 2"]

    async def test_what_is_dropped_is_kept_with_the_verdict_or_there_is_none(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Killed while it keeps the orphans: no epoch is on record, and the next one keeps them."""
        async with writing(settings):
            event_id = await sell(engine)
            await all_recorded(record, redis_store)
        await _make_older(record, await recorded(record))
        change = {"v": "1", "at": "9", "first": "11", "changes": f"booked {event_id} alone"}
        await valkey.xadd(OUTBOX, change, "1-11")
        await valkey.hset(META, "seq", "11")
        put_orphans = Decision.put_orphans

        async def die(*arguments: Any) -> None:
            await put_orphans(*arguments)
            raise Died

        with monkeypatch.context() as patched:
            patched.setattr(Decision, "put_orphans", die)
            with pytest.raises(Died):
                await ask(settings, redis_store, "dying").run()
        assert len(await epochs(record)) == 2
        assert not await record.fetch("SELECT * FROM orphans")
        assert isinstance(await ask(settings, redis_store).run(), Opened)
        users = await record.fetch("SELECT user_id FROM orphans")
        assert [row["user_id"] for row in users] == ["alone"]
        assert [entry_id for entry_id, _ in await valkey.xrange(OUTBOX)] == ["4-11"]

    async def test_a_new_epoch_is_greater_than_any_in_the_outbox(
        self, settings: Settings, record: Record, redis_store: RedisStore, valkey: Client
    ) -> None:
        """Where the record has forgotten it, and `meta` is gone, the stream has not."""
        assert await ask(settings, redis_store).run() == Opened(1)
        began = {"v": "1", "at": "9", "first": "2", "changes": "epoch_began - - {}"}
        await valkey.xadd(OUTBOX, began, "7-2")
        await valkey.delete(META)
        await ask(settings, redis_store).run()
        assert (await epochs(record))[-1][0] == 8

    async def test_an_outbox_that_ends_before_r_keeps_the_partition_closed(
        self,
        settings: Settings,
        engine: Engine,
        redis_store: RedisStore,
        valkey: Client,
    ) -> None:
        """No hole in what is there; but the last change is not."""
        await sell(engine)
        await valkey.xdel(OUTBOX, "1-10")
        await valkey.script_flush()
        result = await ask(settings, redis_store).run()
        assert isinstance(result, StaysClosed)
        assert "changes 10 to 10 are not in the outbox" in result.reason


class TestOrders:
    """An operator's verdict is this one procedure, with its conditions."""

    async def test_a_rebuild_that_was_ordered_is_made_of_an_open_partition(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore
    ) -> None:
        """Nothing is adopted, the epoch says why, and everybody keeps what they have."""
        async with writing(settings):
            event_id = await sell(engine)
            await all_recorded(record, redis_store)
        at = await recorded(record)
        result = await ask(settings, redis_store).run(order=Order("told to", "rebuild"))
        assert result == Opened(2)
        assert (await epochs(record))[-1] == (2, "rebuild", at.seq, at.epoch)
        reason = await record.fetchval("SELECT reason FROM epochs WHERE epoch = 2")
        assert reason == "told to"
        async with writing(settings):
            assert (await engine.book(event_id, "9")).position == 6

    async def test_what_was_ordered_closed_stays_closed(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore
    ) -> None:
        """With the reason that was given, until somebody compares anew."""
        await sell(engine)
        order = Order("an operator looks", "stay_closed")
        assert await ask(settings, redis_store).run(order=order) == StaysClosed("an operator looks")
        meta = await redis_store.meta(0)
        assert meta is not None
        assert (meta.open, meta.reason, meta.next) == (False, "an operator looks", "")
        assert await ask(settings, redis_store).run() == Opened(3)
        assert (await epochs(record))[-1] == (3, "continue", 10, 1)

    async def test_what_stays_closed_gets_no_handshake_by_its_requests(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore
    ) -> None:
        """`meta` is looked at instead, once a second; an epoch comes with the operator alone."""
        event_id = await sell(engine)
        order = Order("an operator looks", "stay_closed")
        await ask(settings, redis_store).run(order=order)
        for _ in range(3):
            with pytest.raises(Problem, match="an operator looks"):
                await engine.book(event_id, "9")
            engine._partitions[0]._opening._look_again_at = 0.0  # as if a second had passed
        assert len(await epochs(record)) == 2
        assert await ask(settings, redis_store).run() == Opened(3)

        async def serves() -> bool:
            with contextlib.suppress(Problem):
                return (await engine.book(event_id, "9")).position == 6
            return False

        await eventually(serves)

    async def test_an_order_comes_after_what_was_under_way(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """An attempt that died is carried out first: what it promised to keep is not dropped."""

        async def die(*_: Any) -> Any:
            raise Died

        await sell(engine)
        await valkey.script_flush()
        with monkeypatch.context() as patched:
            patched.setattr(redis_store, "begin_epoch", die)
            with pytest.raises(Died):
                await ask(settings, redis_store, "dying").run()
        order = Order("told to", "stay_closed")
        assert isinstance(await ask(settings, redis_store).run(order=order), StaysClosed)
        assert [row[:2] for row in await epochs(record)] == [
            (1, "begin"),
            (2, "continue"),
            (3, "stay_closed"),
        ]
        assert await valkey.hget(META, "epoch") == "2"

    async def test_stores_that_do_not_agree_are_not_rebuilt_by_an_order(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore
    ) -> None:
        """W > P and no tail that proves it: whatever was ordered, nothing is thrown away."""
        async with writing(settings):
            await sell(engine)
            await all_recorded(record, redis_store)
        await record.execute("UPDATE cursors SET seq = 5")
        result = await ask(settings, redis_store).run(order=Order("told to", "rebuild"))
        assert isinstance(result, StaysClosed)
        assert "PostgreSQL went back" in result.reason

    async def test_work_on_the_record_is_done_while_r_stands_still(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore
    ) -> None:
        """On the closed partition, before anything is compared."""
        await sell(engine)
        found: list[tuple[bool, Position, int]] = []

        async def work(ledger: Ledger, closed: Any, _: Any) -> None:
            meta = await redis_store.meta(0)
            assert meta is not None
            found.append((meta.open, closed.last, len(await epochs(record))))
            assert await ledger.cursor(0) == NOWHERE

        order = Order("told to", while_closed=work)
        assert await ask(settings, redis_store).run(order=order) == Opened(2)
        assert found == [(False, Position(1, 10), 1)]
