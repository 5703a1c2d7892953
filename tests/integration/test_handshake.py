"""The handshake on real stores: each verdict, adoption, resumption, and death at every step."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service.app import Worker
from service.assurance import assure
from service.engine import Engine
from service.errors import Problem
from service.handshake import Handshake, HandshakeImpossible, Opened, StaysClosed
from service.handshakes import make_handshakes
from service.keys import partition_keys
from service.lineage import NOWHERE, Position
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, ready, writing

META, CALLS, OUTBOX = partition_keys(0)


class Died(Exception):
    """What a test throws in place of a kill."""


async def epochs(record: Record) -> list[tuple[int, str, int | None, int | None]]:
    """Return epoch, verdict, beginning and predecessor of each epoch on record."""
    rows = await record.fetch(
        "SELECT epoch, verdict, beginning, predecessor FROM epochs ORDER BY epoch"
    )
    return [tuple(row) for row in rows]


async def recorded(record: Record) -> Position:
    """Return P."""
    row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
    return Position(*row) if row else NOWHERE


async def all_recorded(record: Record, redis_store: RedisStore) -> None:
    """Wait until P is R and Redis knows."""

    async def done() -> bool:
        meta = await redis_store.meta(0)
        return meta is not None and await recorded(record) == meta.last == meta.recorded

    await eventually(done)


async def sell(engine: Engine, *, tickets: int = 3, users: int = 8) -> int:
    """Open an event and let users 1..n book it in order; return its id."""
    event = await engine.initialize("Event Name", tickets)
    for user in range(1, users + 1):
        await engine.book(event.event_id, str(user))
    return event.event_id


async def places(engine: Engine, event_id: int, users: int = 8) -> list[tuple[str, int]]:
    """Return status and position of users 1..n."""
    found = [await engine.user(event_id, str(user)) for user in range(1, users + 1)]
    return [(state.status, state.position) for state in found]


SOLD_3_OF_8 = [("booked", 0)] * 3 + [("waiting", place) for place in range(1, 6)]


@pytest.fixture
async def copies(stores: Stores) -> AsyncIterator["Copies"]:
    """Take and restore copies of Redis; its scripts stay loaded, as after a REPLICAOF."""
    client = Redis.from_url(stores.redis_url)
    yield Copies(client)
    await client.aclose()


@pytest.fixture
def elsewhere(settings: Settings, tmp_path: Path) -> Settings:
    """The settings of another host, which has answered nothing."""
    return settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})


class Copies:
    """Copies of all that Redis holds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._held: dict[bytes, bytes] = {}

    async def take(self) -> None:
        self._held = {key: await self._client.dump(key) for key in await self._client.keys("*")}

    async def restore(self) -> None:
        await self._client.flushall()
        for key, value in self._held.items():
            await self._client.restore(key, 0, value)


class TestVerdicts:
    """What a comparison comes to."""

    async def test_two_empty_stores_begin_epoch_1(
        self, handshake: Handshake, record: Record, redis_store: RedisStore, valkey: Client
    ) -> None:
        """The first change is `epoch_began`, and the partition is open in epoch 1."""
        assert await handshake.run() == Opened(1)
        assert await epochs(record) == [(1, "begin", 0, 0)]
        meta = await redis_store.meta(0)
        assert meta is not None
        assert (meta.open, meta.last, meta.recorded, meta.next) == (True, (1, 1), (0, 0), "")
        ((entry_id, fields),) = await valkey.xrange(OUTBOX)
        assert entry_id == "1-1"
        assert fields["changes"] == 'epoch_began - - {"beginning":0,"predecessor":0}'

    @pytest.mark.usefixtures("writer")
    async def test_a_restarted_redis_continues_at_its_last_change(
        self, engine: Engine, handshake: Handshake, record: Record, valkey: Client
    ) -> None:
        """Nothing answered is lost when only the scripts are gone."""
        event_id = await sell(engine)
        await valkey.script_flush()
        result = await handshake.run()
        assert result == Opened(2)
        assert (await epochs(record))[1] == (2, "continue", 10, 1)
        assert await places(engine, event_id) == SOLD_3_OF_8

    async def test_what_was_not_on_record_is_recorded_after_a_restart(
        self, settings: Settings, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """The tail P+1..R survives a handshake, and the writer carries it over in order."""
        await sell(engine)
        await valkey.script_flush()
        await ready(engine)
        assert await recorded(record) == NOWHERE
        async with writing(settings):
            await eventually(lambda: _is(recorded(record), Position(2, 11)))
        kinds = [row["kind"] for row in await record.fetch("SELECT kind FROM journal ORDER BY seq")]
        assert kinds == ["epoch_began", "opened", *["booked"] * 3, *["waiting"] * 5, "epoch_began"]

    @pytest.mark.usefixtures("writer")
    async def test_a_wiped_redis_is_rebuilt_before_the_next_answer(
        self, engine: Engine, record: Record, redis_store: RedisStore, valkey: Client
    ) -> None:
        """FLUSHALL with everything on record: nobody loses a ticket or a place."""
        event_id = await sell(engine)
        await engine.cancel(event_id, "2")
        await engine.cancel(event_id, "6")
        before = await places(engine, event_id)
        await all_recorded(record, redis_store)
        at = await recorded(record)
        await valkey.flushall()
        assert await places(engine, event_id) == before
        assert (await epochs(record))[-1][1:] == ("rebuild", at.seq, at.epoch)
        again = await engine.book(event_id, "9")
        assert (again.status, again.position) == ("waiting", 4)

    @pytest.mark.usefixtures("writer")
    async def test_a_redis_that_went_back_in_the_same_epoch_is_rebuilt(
        self,
        elsewhere: Settings,
        engine: Engine,
        copies: "Copies",
        record: Record,
        redis_store: RedisStore,
    ) -> None:
        """R < P: a copy of the same epoch, its scripts loaded, sells nothing twice.

        The record alone tells: the worker is on a host that has answered nothing.
        """
        event_id = await sell(engine, users=2)
        await copies.take()
        await engine.book(event_id, "3")
        await engine.book(event_id, "4")
        await all_recorded(record, redis_store)
        await copies.restore()
        async with Worker(elsewhere) as fresh:
            assert (await fresh.book(event_id, "5")).position == 2
            assert (await fresh.user(event_id, "3")).status == "booked"
        assert (await epochs(record))[-1][1] == "rebuild"

    @pytest.mark.usefixtures("writer")
    async def test_a_worker_that_saw_more_notices_that_redis_went_back(
        self, engine: Engine, copies: "Copies", record: Record, redis_store: RedisStore
    ) -> None:
        """The worker's own memory of R is enough; what ran on the old copy is outcome_unknown."""
        event_id = await sell(engine, users=2)
        await copies.take()
        for user in ("3", "4", "5", "6", "7"):
            await engine.book(event_id, user)
        await all_recorded(record, redis_store)
        await copies.restore()
        with pytest.raises(Problem) as caught:
            await engine.book(event_id, "8")
        assert caught.value.code == "outcome_unknown"
        assert (await engine.book(event_id, "8")).position == 5

    async def test_what_a_worker_has_seen_is_what_it_asks_the_handshake_for(
        self, elsewhere: Settings, engine: Engine, copies: "Copies", record: Record
    ) -> None:
        """Nothing on record that tells: without its word the old copy would be adopted.

        Nor anything that it has answered itself: another host has, and it only saw how far.
        """
        event_id = await sell(engine, users=2)
        await copies.take()
        async with Worker(elsewhere) as other:
            await other.book(event_id, "3")
        with contextlib.suppress(Problem):
            await engine.cancel(event_id, "never booked")
        await copies.restore()
        with contextlib.suppress(Problem):
            await engine.event(event_id)
        assert len(await epochs(record)) == 2

    @pytest.mark.usefixtures("writer")
    async def test_a_redis_of_an_older_epoch_is_rebuilt_and_its_own_changes_are_kept_aside(
        self,
        settings: Settings,
        engine: Engine,
        copies: "Copies",
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
    ) -> None:
        """Another lineage is never continued; what only it had becomes orphans."""
        event_id = await sell(engine, users=2)
        await copies.take()
        await valkey.script_flush()
        await ready(engine)
        await engine.book(event_id, "3")
        await all_recorded(record, redis_store)
        await copies.restore()
        await valkey.xadd(
            OUTBOX, {"v": "1", "at": "9", "first": "5", "changes": f"booked {event_id} 9"}, "1-5"
        )
        await valkey.hset(META, "seq", "5")
        async with Worker(settings) as fresh:
            assert (await fresh.user(event_id, "3")).status == "booked"
        assert (await epochs(record))[-1][1] == "rebuild"
        orphans = await record.fetch("SELECT epoch, seq, kind, user_id FROM orphans")
        assert [tuple(row) for row in orphans] == [(1, 5, "booked", "9")]

    @pytest.mark.usefixtures("writer")
    async def test_a_record_that_went_back_keeps_the_partition_closed(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore
    ) -> None:
        """W > P: Redis is never rebuilt from such a record; everybody gets 503 and the reason."""
        event_id = await sell(engine)
        await all_recorded(record, redis_store)
        await record.execute("UPDATE cursors SET seq = 5")
        await record.execute("DELETE FROM journal WHERE seq > 5")
        handshake = make_handshakes(settings, redis_store, "test")[0]
        result = await handshake.run()
        assert isinstance(result, StaysClosed)
        assert "PostgreSQL went back" in result.reason
        for ask in (engine.book(event_id, "1"), engine.event(event_id)):
            with pytest.raises(Problem) as caught:
                await ask
            assert (caught.value.code, caught.value.detail) == ("closed", result.reason)
        assert (await epochs(record))[1:] == [(2, "stay_closed", None, None)]

    async def test_a_closed_partition_gets_no_new_handshake_by_its_requests(
        self, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """While the reason stands, requests are refused and no epoch is made."""
        event_id = await sell(engine)
        await valkey.hset(META, mapping={"open": "0", "reason": "an operator looks"})
        for _ in range(3):
            with pytest.raises(Problem, match="an operator looks"):
                await engine.book(event_id, "1")
        assert len(await epochs(record)) == 1

    async def test_a_hole_in_the_outbox_keeps_the_partition_closed(
        self, engine: Engine, handshake: Handshake, valkey: Client
    ) -> None:
        """A tail that is not whole from P+1 to R is never continued."""
        await sell(engine)
        await valkey.xdel(OUTBOX, "1-4")
        await valkey.script_flush()
        result = await handshake.run()
        assert result == StaysClosed("the outbox has a hole: changes 4 to 4 are not in the outbox")

    async def test_an_unreadable_entry_keeps_the_partition_closed(
        self, engine: Engine, handshake: Handshake, valkey: Client
    ) -> None:
        """A corrupt entry is named, never skipped."""
        await sell(engine, users=1)
        eaten = {"v": "1", "at": "1", "first": "4", "changes": "eaten 1 1"}
        await valkey.xadd(OUTBOX, eaten, "1-4")
        await valkey.hset(META, "seq", "4")
        await valkey.script_flush()
        result = await handshake.run()
        assert isinstance(result, StaysClosed)
        assert "outbox entry 1-4: change 4 is of no known kind" in result.reason

    async def test_an_epoch_that_the_record_does_not_know_keeps_the_partition_closed(
        self, engine: Engine, handshake: Handshake, record: Record, valkey: Client
    ) -> None:
        """A record without the lineage of Redis cannot vouch for it."""
        await sell(engine)
        await record.execute("DELETE FROM epochs")
        await valkey.script_flush()
        result = await handshake.run()
        assert isinstance(result, StaysClosed)
        assert "does not know epoch 1" in result.reason

    async def test_a_new_epoch_is_greater_than_any_that_either_store_has_heard_of(
        self, handshake: Handshake, record: Record, valkey: Client
    ) -> None:
        """Orphans and attempts that came to nothing count as well."""
        assert await handshake.run() == Opened(1)
        await record.execute(
            "INSERT INTO orphans VALUES (0, 8, 1, now(), 'booked', 1, '1', null, 8)"
        )
        await valkey.script_flush()
        assert await handshake.run() == Opened(9)
        await valkey.hset(META, mapping={"open": "0", "next": "20 somebody"})
        assert await handshake.run() == Opened(21)

    async def test_a_handshake_of_one_partition_loads_no_script_of_another(
        self, stores: Stores, valkey: Client
    ) -> None:
        """Two partitions at the same epoch number: each notices for itself that Redis restarted."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=2
        )
        store = RedisStore(stores.redis_url)
        first, second = make_handshakes(settings, store, "test").values()
        assert await first.run() == await second.run() == Opened(1)
        await valkey.script_flush()
        assert await first.run() == Opened(2)
        await valkey.script_flush()
        assert await second.run() == Opened(2)
        assert not await store.scripts_loaded(0, 2)
        assert await first.run() == Opened(3)
        await store.aclose()

    async def test_an_outbox_id_that_no_script_wrote_is_no_epoch(
        self, handshake: Handshake, valkey: Client
    ) -> None:
        """It is named, and the next epoch has the next number, in an outbox of its own."""
        assert await handshake.run() == Opened(1)
        await valkey.xadd(OUTBOX, {"v": "1"}, "99-0")
        result = await handshake.run()
        assert isinstance(result, Opened)
        assert (result.epoch, result.how) == (2, "rebuild")
        assert "outbox entry 99-0" in result.why
        assert [entry_id for entry_id, _ in await valkey.xrange(OUTBOX)] == ["2-2"]


class TestAdoption:
    """Workers that were fenced together settle on one epoch."""

    async def test_what_is_open_and_sound_is_adopted(
        self, handshake: Handshake, record: Record
    ) -> None:
        """A second handshake makes no second epoch."""
        assert [await handshake.run() for _ in range(3)] == [Opened(1)] * 3
        assert len(await epochs(record)) == 1

    async def test_many_at_once_make_one_epoch(
        self, settings: Settings, redis_store: RedisStore, record: Record, valkey: Client
    ) -> None:
        """Eight workers that miss their scripts at the same moment."""
        first = make_handshakes(settings, redis_store, "test")[0]
        assert await first.run() == Opened(1)
        await valkey.script_flush()
        crowd = [make_handshakes(settings, redis_store, "test")[0] for _ in range(8)]
        assert await asyncio.gather(*(one.run() for one in crowd)) == [Opened(2)] * 8
        assert len(await epochs(record)) == 2

    async def test_a_redis_behind_what_was_seen_is_not_adopted(
        self, handshake: Handshake, record: Record
    ) -> None:
        """A caller that met a higher R knows that answers were lost."""
        assert await handshake.run() == Opened(1)
        assert await handshake.run(Position(1, 9)) == Opened(2)
        assert (await epochs(record))[-1][1] == "continue"

    async def test_without_postgresql_a_sound_redis_is_adopted(
        self, redis_store: RedisStore, handshake: Handshake
    ) -> None:
        """PostgreSQL away: a worker that starts goes on with the Redis that others serve from."""
        assert await handshake.run() == Opened(1)
        assert await _without_postgresql(redis_store).run() == Opened(1)

    async def test_without_postgresql_an_epoch_is_not_changed(
        self, redis_store: RedisStore, handshake: Handshake, valkey: Client
    ) -> None:
        """What a worker answered before it, the record alone can hold against the newer one."""
        assert await handshake.run() == Opened(1)
        await valkey.script_flush()
        assert await handshake.run() == Opened(2)
        assert await _without_postgresql(redis_store).run(Position(2, 2)) == Opened(2)
        with pytest.raises(HandshakeImpossible, match="PostgreSQL"):
            await _without_postgresql(redis_store).run(Position(1, 1))

    async def test_without_postgresql_a_restarted_redis_waits(
        self, redis_store: RedisStore, handshake: Handshake, valkey: Client
    ) -> None:
        """It may have lost data, and only the record can tell."""
        assert await handshake.run() == Opened(1)
        await valkey.script_flush()
        with pytest.raises(HandshakeImpossible, match="PostgreSQL"):
            await _without_postgresql(redis_store).run()


class TestDeath:
    """A handshake may die anywhere; the next one ends what it began."""

    @pytest.mark.parametrize("step", ["close", "empty", "load_scripts", "begin_epoch"])
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("fault", ["restart", "wipe"])
    async def test_nothing_answered_is_lost(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
        after: bool,
        fault: str,
    ) -> None:
        """Killed before or after each step, of a continue and of a rebuild."""
        async with writing(settings):
            event_id = await sell(engine)
            await all_recorded(record, redis_store)
        if fault == "restart":
            await engine.book(event_id, "9")
            await valkey.script_flush()
        else:
            await valkey.flushall()
        with monkeypatch.context() as patched:
            patched.setattr(redis_store, step, _dying(getattr(redis_store, step), after=after))
            dying = make_handshakes(settings, redis_store, "dying")[0]
            if step != "empty" or fault == "wipe":
                with pytest.raises(Died):
                    await dying.run()
        await make_handshakes(settings, redis_store, "next")[0].run()
        async with writing(settings):
            assert await places(engine, event_id) == SOLD_3_OF_8
            last = await engine.book(event_id, "9")
            assert last.position == 6
            assert last.new == (fault == "wipe")
        verdicts = {row[1] for row in await epochs(record)}
        assert verdicts == {"begin", "continue" if fault == "restart" else "rebuild"}

    async def test_an_attempt_that_died_between_the_stores_is_resumed(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its verdict, on record already, is carried out; no second one is made."""
        await sell(engine)
        await valkey.script_flush()
        with monkeypatch.context() as patched:
            patched.setattr(redis_store, "load_scripts", _dying(redis_store.load_scripts))
            with pytest.raises(Died):
                await make_handshakes(settings, redis_store, "dying")[0].run()
        assert len(await epochs(record)) == 2
        assert await make_handshakes(settings, redis_store, "next")[0].run() == Opened(2)
        assert await epochs(record) == [(1, "begin", 0, 0), (2, "continue", 10, 1)]

    async def test_a_handshake_that_was_finished_since_is_not_resumed(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
        copies: Copies,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A Redis put back into it begins no epoch a second time: it is compared, and rebuilt."""
        async with writing(settings):
            event_id = await sell(engine)
            await all_recorded(record, redis_store)
            with monkeypatch.context() as patched:
                patched.setattr(redis_store, "load_scripts", _dying(redis_store.load_scripts))
                await valkey.script_flush()
                with pytest.raises(Died):
                    await make_handshakes(settings, redis_store, "dying")[0].run()
            await copies.take()
            assert await make_handshakes(settings, redis_store, "next")[0].run() == Opened(2)
            ninth = await engine.book(event_id, "9")
            await all_recorded(record, redis_store)
            await copies.restore()
            await valkey.script_flush()
            opened = await make_handshakes(settings, redis_store, "after")[0].run()
            assert isinstance(opened, Opened)
            assert (opened.epoch, opened.how, opened.at) == (3, "rebuild", ninth.at)
            again = await engine.book(event_id, "9")
            assert (again.new, again.at.seq, again.position) == (False, ninth.at.seq, 6)

    async def test_a_frozen_attempt_wakes_up_to_do_nothing(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It lost its session; another finished; its last step finds another token."""
        await sell(engine)
        await valkey.script_flush()
        frozen, woken = asyncio.Event(), asyncio.Event()
        begin_epoch = redis_store.begin_epoch

        async def freeze(*arguments: Any) -> bool:
            monkeypatch.undo()
            frozen.set()
            await woken.wait()
            return await begin_epoch(*arguments)

        monkeypatch.setattr(redis_store, "begin_epoch", freeze)
        holder = asyncio.create_task(make_handshakes(settings, redis_store, "frozen")[0].run())
        await frozen.wait()
        await record.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'onsale frozen handshake'"
        )
        assert await make_handshakes(settings, redis_store, "next")[0].run() == Opened(2)
        seq = (await valkey.hget(META, "seq")) or ""
        woken.set()
        with pytest.raises(HandshakeImpossible):
            await holder
        assert await valkey.hget(META, "seq") == seq
        assert len(await epochs(record)) == 2

    async def test_a_rebuild_that_died_half_way_is_done_again(
        self, handshake: Handshake, record: Record, valkey: Client
    ) -> None:
        """A `meta` that says loading is rebuilt, whatever else it says."""
        assert await handshake.run() == Opened(1)
        await valkey.hset(META, mapping={"open": "0", "loading": "1"})
        assert await handshake.run() == Opened(2)
        assert (await epochs(record))[-1][1] == "rebuild"
        assert await valkey.hget(META, "loading") is None


class TestConfiguration:
    """Less than the durability level needs is refused."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("appendfsync", "everysec"),
            ("no-appendfsync-on-rewrite", "yes"),
            ("maxmemory-policy", "allkeys-lru"),
        ],
    )
    async def test_a_redis_that_cannot_keep_the_promise_is_refused(
        self, handshake: Handshake, valkey: Client, name: str, value: str
    ) -> None:
        """The setting is named, with what it is and what is needed."""
        before = (await valkey.config_get(name))[name]
        await valkey.config_set(name, value)
        try:
            with pytest.raises(HandshakeImpossible, match=f"{name} '{value}'; fsync needs"):
                await handshake.run()
        finally:
            await valkey.config_set(name, before)

    async def test_it_is_refused_while_postgresql_is_away_too(
        self, handshake: Handshake, redis_store: RedisStore, valkey: Client
    ) -> None:
        """Its half of the promise needs no record to be judged."""
        assert await handshake.run() == Opened(1)
        await valkey.config_set("appendfsync", "everysec")
        try:
            with pytest.raises(HandshakeImpossible, match="appendfsync 'everysec'"):
                await _without_postgresql(redis_store).run()
        finally:
            await valkey.config_set("appendfsync", "always")

    async def test_a_redis_that_became_a_replica_is_refused(
        self, handshake: Handshake, valkey: Client
    ) -> None:
        """It answers from the past of another."""
        assert await handshake.run() == Opened(1)
        await valkey.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(HandshakeImpossible, match="is a replica"):
                await handshake.run()
        finally:
            await valkey.replicaof("NO", "ONE")

    @pytest.mark.parametrize(
        ("name", "value"), [("synchronous_commit", "off"), ("default_transaction_read_only", "on")]
    )
    async def test_a_record_that_cannot_keep_its_word_is_refused(
        self, handshake: Handshake, record: Record, name: str, value: str
    ) -> None:
        """What counts is what our own sessions have, wherever it was set."""
        database = await record.fetchval("SELECT current_database()")
        await record.execute(f'ALTER DATABASE "{database}" SET {name} = {value}')
        with pytest.raises(HandshakeImpossible, match=f"{name} '{value}'|read-only transaction"):
            await handshake.run()

    async def test_a_record_that_cannot_store_every_name_is_refused(
        self, settings: Settings, redis_store: RedisStore, record: Record
    ) -> None:
        """SQL_ASCII refuses what is not ASCII in JSON: one such name would stop the writer."""
        name = f"{await record.fetchval('SELECT current_database()')}_ascii"
        await record.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII'"
            " LOCALE_PROVIDER libc LOCALE 'C'"
        )
        assert settings.postgresql_url is not None
        url, _, where = settings.postgresql_url.partition("?")
        ascii_ = Settings(
            redis_url=settings.redis_url, database_url=f"{url.rpartition('/')[0]}/{name}?{where}"
        )
        with pytest.raises(HandshakeImpossible, match="the encoding 'SQL_ASCII'"):
            await make_handshakes(ascii_, redis_store, "test")[0].run()

    async def test_another_number_of_partitions_is_refused(
        self, stores: Stores, handshake: Handshake, redis_store: RedisStore
    ) -> None:
        """Events would change partition; the number is on record from the first start."""
        assert await handshake.run() == Opened(1)
        other = Settings(
            redis_url=stores.redis_url,
            database_url=stores.postgresql_url,
            partitions=4,
        )
        with pytest.raises(HandshakeImpossible, match="ONSALE_PARTITIONS is 4, but this"):
            await make_handshakes(other, redis_store, "test")[3].run()


def _dying(
    step: Callable[..., Coroutine[Any, Any, Any]], *, after: bool = False
) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def die(*arguments: Any, **named: Any) -> Any:
        if after:
            await step(*arguments, **named)
        raise Died

    return die


async def _nobody() -> list[Position]:
    return []


def _without_postgresql(
    redis_store: RedisStore, answered: Callable[[], Awaitable[list[Position]]] = _nobody
) -> Handshake:
    async def refuse(_: int) -> Any:
        raise ConnectionRefusedError

    sound = partial(
        assure,
        redis_store,
        partition=0,
        partitions=1,
        durability="fsync",
        stated={},
        room_bytes=0,
    )
    return Handshake(0, redis_store, refuse, assure=sound, answered=answered)


async def _is(found: Coroutine[Any, Any, Position], wanted: Position) -> bool:
    return await found == wanted
