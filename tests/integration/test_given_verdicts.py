"""What an operator orders: rebuild, close, open, confirm-loss and repair, as the commands do it."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from service.app import Worker
from service.auditor import audit
from service.engine import Engine
from service.errors import Problem
from service.handshake import Handshake, HandshakeImpossible, Opened
from service.handshakes import make_handshakes
from service.keys import event_keys, partition_keys
from service.orders import Order
from service.reconciler import reconcile
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import writing
from tests.integration.restoring import crowding
from tests.integration.test_handshake import Died, _dying, all_recorded, epochs, recorded, sell
from tests.integration.test_witness import say_answered

META, CALLS, OUTBOX = partition_keys(0)
REBUILD = Order("an operator ordered a rebuild", "rebuild")


@pytest.fixture
def onsale(stores: Stores, tmp_path: Path) -> Callable[..., Coroutine[Any, Any, "Ended"]]:
    """Run a command of `onsale` on this test's stores, while the test goes on."""
    environment = {**os.environ, **stores.environment, "ONSALE_DATA_DIR": str(tmp_path / "data")}

    async def run(*arguments: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "service", *arguments),
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        return Ended(process.returncode or 0, out.decode(), err.decode())

    return run


class Ended:
    """What a command came to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


Onsale = Callable[..., Coroutine[Any, Any, Ended]]


class TestRebuild:
    """Redis is made anew from the record, and nothing that was answered is dropped."""

    async def test_what_is_not_on_record_yet_is_put_there_first(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore,
        onsale: Onsale,
    ) -> None:  # fmt: skip
        """No writer runs at all: the handshake finishes its work, under the writer's own checks."""
        event_id = await sell(engine)
        ended = await onsale("rebuild", "--json")
        assert ended.code == 0, ended.err
        (told,) = json.loads(ended.out)["partitions"]
        assert (told["open"], told["epoch"], told["verdict"]) == (True, 2, "rebuild")
        assert told["at"] == {"epoch": 1, "seq": 10}
        assert (await epochs(record))[-1] == (2, "rebuild", 10, 1)
        assert await record.fetchval("SELECT count(*) FROM orphans") == 0
        async with writing(settings):
            assert (await engine.book(event_id, "8")).position == 5
            await all_recorded(record, redis_store)

    async def test_under_load_it_loses_and_doubles_nothing(
        self, stores: Stores, settings: Settings, engine: Engine, record: Record,
        redis_store: RedisStore, onsale: Onsale,
    ) -> None:  # fmt: skip
        """A crowd books and cancels all the while; both stores agree, and the record holds."""
        async with writing(settings):
            event = await engine.initialize("Event Name", 40)
            async with crowding(engine, event.event_id) as crowd:
                await crowd.grow(100)
                for _ in range(2):
                    assert (await onsale("rebuild")).code == 0
                    await crowd.grow(50)
            await all_recorded(record, redis_store)
        rows = await record.fetch("SELECT kind, user_id FROM journal WHERE user_id IS NOT NULL")
        joined = [row["user_id"] for row in rows if row["kind"] in ("booked", "waiting")]
        gone = [row["user_id"] for row in rows if row["kind"] in ("cancelled", "left")]
        assert len(joined) == len(set(joined))
        assert set(joined) >= crowd.booked
        assert len(gone) == len(set(gone))
        assert set(gone) >= crowd.cancelled
        assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"
        assert (await audit(stores.postgresql_url)).verdict == "holds"

    async def test_a_change_that_postgresql_refuses_is_not_dropped_by_it(
        self, engine: Engine, record: Record, valkey: Client, onsale: Onsale
    ) -> None:
        """It is opened as it was, and says that it was not rebuilt, and why."""
        event_id = await sell(engine, users=2)
        await record.execute(
            "ALTER TABLE bookings ADD CONSTRAINT a_test CHECK (user_id <> '2') NOT VALID"
        )
        ended = await onsale("rebuild")
        assert ended.code == 1, ended.err
        assert "verdict continue at 1-4" in ended.out
        assert "it was not rebuilt" in ended.out
        assert "a_test" in ended.out
        assert await valkey.exists(*event_keys(0, event_id)[:1])

    async def test_stores_that_do_not_agree_stay_closed_whatever_is_ordered(
        self, engine: Engine, valkey: Client, onsale: Onsale
    ) -> None:
        """A hole in the outbox is no less of one."""
        await sell(engine)
        await valkey.xdel(OUTBOX, "1-4")
        ended = await onsale("rebuild")
        assert ended.code == 1
        assert "stays closed: the outbox has a hole" in ended.out

    async def test_a_loss_is_no_less_of_one_by_an_order(
        self, settings: Settings, engine: Engine, onsale: Onsale
    ) -> None:
        """What was answered beyond both stores is shown, and nothing is emptied."""
        await sell(engine)
        say_answered(settings, (1, 12))
        ended = await onsale("rebuild")
        assert ended.code == 1
        assert "changes 1-11 to 1-12 were answered" in ended.out

    async def test_a_partition_that_is_none_is_refused(self, onsale: Onsale) -> None:
        """Exit 2, and a line that says why."""
        ended = await onsale("rebuild", "--partition", "7")
        assert ended.code == 2
        assert "there is no partition 7" in ended.err

    @pytest.mark.parametrize("step", ["close", "empty", "load_scripts", "begin_epoch"])
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    async def test_an_order_that_dies_anywhere_is_ended_by_the_next_handshake(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore,
        monkeypatch: pytest.MonkeyPatch, step: str, after: bool,
    ) -> None:  # fmt: skip
        """Resumed or compared anew; then the same order is carried out; nothing is lost."""
        event_id = await sell(engine)
        before = [await engine.user(event_id, str(user)) for user in range(1, 9)]
        with monkeypatch.context() as patched:
            patched.setattr(redis_store, step, _dying(getattr(redis_store, step), after=after))
            dying = make_handshakes(settings, redis_store, "dying")[0]
            with pytest.raises(Died):
                await dying.run(order=REBUILD)
        again = make_handshakes(settings, redis_store, "next")[0]
        result = await again.run(order=REBUILD)
        assert isinstance(result, Opened)
        assert result.how == "rebuild"
        async with writing(settings):
            await all_recorded(record, redis_store)
            after_all = [await engine.user(event_id, str(user)) for user in range(1, 9)]
        for state, was in zip(after_all, before, strict=True):
            assert (state.status, state.seq, state.position) == (was.status, was.seq, was.position)
        assert await record.fetchval("SELECT count(*) FROM orphans") == 0

    async def test_an_order_that_was_frozen_wakes_up_to_do_nothing(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore,
        valkey: Client, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """It lost its session; another ended what it began; its last step finds another token."""
        await sell(engine)
        frozen, woken = asyncio.Event(), asyncio.Event()
        begin_epoch = redis_store.begin_epoch

        async def freeze(*arguments: Any) -> bool:
            frozen.set()
            await woken.wait()
            return await begin_epoch(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(redis_store, "begin_epoch", freeze)
            handshake = make_handshakes(settings, redis_store, "frozen")[0]
            holder = asyncio.create_task(handshake.run(order=REBUILD))
            await frozen.wait()
        await record.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'onsale frozen handshake'"
        )
        assert await make_handshakes(settings, redis_store, "next")[0].run() == Opened(2)
        seq = await valkey.hget(META, "seq")
        woken.set()
        with pytest.raises(HandshakeImpossible):
            await holder
        assert await valkey.hget(META, "seq") == seq
        assert [row[1] for row in await epochs(record)] == ["begin", "rebuild"]

    async def test_a_writer_that_is_quicker_is_no_trouble(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore,
        handshake: Handshake,
    ) -> None:  # fmt: skip
        """Both put the same tail on record; each change is there once."""
        await sell(engine, users=8)
        async with writing(settings):
            assert (await handshake.run(order=REBUILD)) == Opened(2)
            await all_recorded(record, redis_store)
        seqs = [row["seq"] for row in await record.fetch("SELECT seq FROM journal ORDER BY seq")]
        assert seqs == list(range(1, 12))


class TestCloseAndOpen:
    """An order to stay closed, and its end."""

    async def test_a_closed_sale_says_why_until_it_is_opened(
        self, settings: Settings, engine: Engine, onsale: Onsale, record: Record
    ) -> None:
        """Every request gets the reason; opening compares anew, and nothing was lost."""
        event_id = await sell(engine)
        ended = await onsale("close", "--reason", "the hall burns")
        assert (ended.code, ended.out) == (0, "partition 0: stays closed: the hall burns\n")
        with pytest.raises(Problem, match="the hall burns") as caught:
            await engine.book(event_id, "9")
        assert caught.value.code == "closed"
        assert (await onsale("confirm-loss")).code == 0  # nothing is lost
        ended = await onsale("open")
        assert ended.code == 0
        assert "verdict continue at 1-10" in ended.out
        async with Worker(settings) as other:
            assert (await other.book(event_id, "9")).position == 6
        assert [row[1] for row in await epochs(record)] == ["begin", "stay_closed", "continue"]
        ended = await onsale("open")
        assert (ended.code, ended.out) == (0, "partition 0: is open, epoch 3\n")

    async def test_a_start_opens_what_was_closed_by_hand(
        self, engine: Engine, onsale: Onsale, handshake: Handshake
    ) -> None:
        """It compares anew, as the documents say."""
        await sell(engine)
        assert (await onsale("close", "--reason", "a moment")).code == 0
        assert await handshake.run() == Opened(3)


class TestConfirmLoss:
    """The command, on top of what `test_witness` holds of the handshake."""

    async def test_it_shows_everything_and_changes_nothing_before_it_is_told_to(
        self, settings: Settings, handshake: Handshake, record: Record, onsale: Onsale
    ) -> None:
        """Partition, epoch, range, number, since when, reason, and what --apply would do."""
        assert (await onsale("confirm-loss")).code == 0
        await handshake.run()
        say_answered(settings, (1, 9))
        await handshake.run()
        ended = await onsale("confirm-loss")
        assert ended.code == 1
        assert "partition 0, epoch 2: stays closed since 20" in ended.out
        assert "answers were lost: changes 1-2 to 1-9 were answered" in ended.out
        assert "lost: 1-2 to 1-9, 8 changes" in ended.out
        assert "--apply goes on without these changes." in ended.out
        told = json.loads((await onsale("confirm-loss", "--json")).out)
        assert told["closed"][0]["lost"] == {"epoch": 1, "first": 2, "last": 9, "changes": 8}
        command = "onsale confirm-loss --partition 0 --lost 1-2 1-9 --apply"
        assert told["closed"][0]["apply"] == command
        assert f"\n  {command}\n" in ended.out
        assert await record.fetchval("SELECT count(confirmed_at) FROM epochs") == 0
        ended = await onsale("confirm-loss", "--apply")
        assert ended.code == 0
        assert "partition 0: open, epoch 3, verdict continue at 1-1" in ended.out
        assert await record.fetchval("SELECT count(confirmed_at) FROM epochs") == 1
        ended = await onsale("confirm-loss", "--apply")
        assert (ended.code, ended.out.strip()) == (
            0,
            "Nothing stays closed, and there is nothing to confirm.",
        )

    async def test_what_is_closed_for_no_loss_is_told_and_not_opened(
        self, handshake: Handshake, onsale: Onsale
    ) -> None:
        """There is nothing to confirm in an order to stay closed."""
        await handshake.run(order=Order("a test", "stay_closed"))
        ended = await onsale("confirm-loss", "--apply")
        assert ended.code == 1
        assert "This is nothing that can be confirmed: see the runbook." in ended.out

    @pytest.mark.parametrize(
        "later", [(1, 12), (2, 3)], ids=["of the same epoch", "of a later one"]
    )
    async def test_no_more_is_confirmed_than_was_read(
        self, settings: Settings, handshake: Handshake, record: Record, onsale: Onsale,
        later: tuple[int, int],
    ) -> None:  # fmt: skip
        """What was lost beside it since is shown anew, with the command for all of it."""
        await handshake.run()
        say_answered(settings, (1, 9))
        await handshake.run()
        told = json.loads((await onsale("confirm-loss", "--json")).out)
        read = told["closed"][0]["apply"].split()[1:]
        say_answered(settings, later, slot="late")
        await handshake.run()
        ended = await onsale(*read)
        assert ended.code == 1
        assert "Nothing was confirmed: this is more than 1-2 to 1-9." in ended.out
        ended = await onsale(*read, "--json")
        told = json.loads(ended.out)
        assert (ended.code, told["closed"][0]["result"]) == (1, None)
        assert await record.fetchval("SELECT count(confirmed_at) FROM epochs") == 0
        ended = await onsale(*told["closed"][0]["apply"].split()[1:])
        assert ended.code == 0
        ended = await onsale(*read)
        assert ended.code == 0
        assert "there is nothing to confirm" in ended.out

    async def test_what_was_read_may_have_been_compared_anew(
        self, settings: Settings, handshake: Handshake, onsale: Onsale
    ) -> None:
        """A start of a worker has closed for the same range again: that is still what was read."""
        await handshake.run()
        say_answered(settings, (1, 9))
        await handshake.run()
        read = "confirm-loss", "--partition", "0", "--lost", "1-2", "1-9", "--apply"
        await handshake.run()
        ended = await onsale(*read)
        assert ended.code == 0
        assert "lost: 1-2 to 1-9, 8 changes" in ended.out

    @pytest.mark.parametrize(
        "words",
        [
            "--lost 1-2 1-9",
            "--lost 1-2 1-9 --apply",
            "--lost 1-2 1-9 --apply --partition 0 --partition 1",
            "--lost 1-2 2-9 --apply --partition 0",
            "--lost 2 9 --apply --partition 0",
            "--lost 1-x 1-9 --apply --partition 0",
        ],
    )
    async def test_a_range_that_is_none_confirms_nothing(self, onsale: Onsale, words: str) -> None:
        """Exit 2, before anything is asked."""
        assert (await onsale("confirm-loss", *words.split())).code == 2


class TestRepair:
    """Drift goes by a rebuild, and only onto a record that holds."""

    async def test_a_drift_by_hand_is_planned_then_repaired(
        self, stores: Stores, settings: Settings, engine: Engine, record: Record,
        redis_store: RedisStore, valkey: Client, onsale: Onsale,
    ) -> None:  # fmt: skip
        """Without --apply nothing changes; with it both stores agree, and it says so."""
        async with writing(settings):
            event_id = await sell(engine)
            await all_recorded(record, redis_store)
            await valkey.hdel(event_keys(0, event_id).users, "2")
            at = await recorded(record)
            ended = await onsale("reconcile", "--repair")
            assert ended.code == 1
            assert "partition 0, 1 drift: what Redis has and the record lacks" in ended.out
            assert "Nothing was changed; --apply does it." in ended.out
            assert await recorded(record) == at
            ended = await onsale("reconcile", "--repair", "--apply", "--json")
            assert ended.code == 0, ended.out
            told = json.loads(ended.out)
            assert told["repaired"][0]["verdict"] == "rebuild"
            assert told["after"]["verdict"] == "clean"
            assert (await engine.user(event_id, "2")).status == "booked"
            assert "There is nothing to repair." in (await onsale("reconcile", "--repair")).out
        assert (await audit(stores.postgresql_url)).verdict == "holds"

    async def test_a_damaged_record_is_not_put_in_the_place_of_redis(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore,
        onsale: Onsale,
    ) -> None:  # fmt: skip
        """The record is the wrong side: refused, and the audit's rule is named."""
        async with writing(settings):
            await sell(engine)
            await all_recorded(record, redis_store)
        await record.execute("DELETE FROM bookings WHERE user_id = '2'")
        before = await epochs(record)
        ended = await onsale("reconcile", "--repair", "--apply")
        assert ended.code == 1
        assert "refused, the record itself does not hold: bookings" in ended.out
        assert "`onsale audit`" in ended.out
        assert await epochs(record) == before

    async def test_apply_alone_is_no_command(self, onsale: Onsale) -> None:
        """It is refused before anything is looked at."""
        assert (await onsale("reconcile", "--apply")).code == 2
