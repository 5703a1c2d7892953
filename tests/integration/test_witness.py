"""The third witness on real stores: what was answered and is gone is never passed over."""

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from service.app import Worker
from service.auditor import audit
from service.engine import Engine
from service.errors import ConfigurationError, Problem
from service.handshake import Handshake, HandshakeImpossible, Opened, StaysClosed
from service.handshakes import make_handshakes
from service.keys import partition_keys
from service.ledger import Ledger
from service.lineage import Epoch, Position
from service.reconciler import reconcile
from service.redis_store import RedisStore
from service.settings import Settings
from service.witness import Witness, answered_on_host, prepare
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import confirm_loss, eventually, ready, writing
from tests.integration.restoring import RecordCopies
from tests.integration.test_handshake import (
    Copies,
    _without_postgresql,
    all_recorded,
    copies,
    epochs,
    recorded,
    sell,
)

__all__ = ["copies"]

META, CALLS, OUTBOX = partition_keys(0)


def say_answered(settings: Settings, *positions: tuple[int, int], slot: str = "gone") -> Path:
    """Leave what a worker that is gone has answered."""
    prepare(settings.answered_directory)
    path = settings.answered_directory / f"{slot}.json"
    path.write_text(json.dumps({"version": 1, "answered": {"0": positions}}))
    return path


def fresh(settings: Settings, redis_store: RedisStore) -> Handshake:
    """Return the handshake of somebody who has answered nothing."""
    return make_handshakes(settings, redis_store, "test")[0]


async def are_sound(stores: Stores) -> None:
    """Both stores agree, and the record proves itself."""
    assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"
    assert (await audit(stores.postgresql_url)).verdict == "holds"


async def losses(record: Record) -> list[tuple[int, int, int]]:
    """Return epoch, first and last of what partitions were closed for."""
    rows = await record.fetch(
        "SELECT lost_epoch, lost_first, lost_last FROM epochs WHERE lost_epoch IS NOT NULL"
        " ORDER BY epoch"
    )
    return [tuple(row) for row in rows]


class TestAnswers:
    """What counts as answered, and what is kept of it."""

    async def test_every_answer_is_noted_and_a_look_is_not(
        self, settings: Settings, engine: Engine
    ) -> None:
        """An opening, a booking, one that stood, a joining, a leaving, a cancellation."""
        event = await engine.initialize("Event Name", 1)
        directory = settings.answered_directory
        await eventually(partial(_holds, directory, Position(1, 2)))
        # A cancellation promotes in the same step: 5 was cancelled, and 6 is not its answer.
        for ask, user, seq in (
            (engine.book, "1", 3), (engine.book, "2", 4), (engine.book, "1", 4),
            (engine.cancel, "1", 5), (engine.cancel, "2", 7),
        ):  # fmt: skip
            await ask(event.event_id, user)
            await engine.event(event.event_id)
            await eventually(partial(_holds, directory, Position(1, seq)))

    async def test_who_is_told_of_a_state_was_answered(
        self, settings: Settings, engine: Engine
    ) -> None:
        """That is how a promotion is told, and what a pending request came to."""
        impatient = settings.model_copy(update={"request_deadline_ms": 500})
        async with Worker(impatient) as other:
            event = await engine.initialize("Event Name", 1)
            pending = await other.book(event.event_id, "1", prefer="recorded")
            assert pending.durability == "none"
        directory = settings.answered_directory
        await eventually(partial(_holds, directory, Position(1, 2)))
        assert (await engine.user(event.event_id, "1")).durability == "fsync"
        await eventually(partial(_holds, directory, pending.at))

    async def test_a_booking_that_stood_is_noted_with_its_own_seq(
        self, settings: Settings, engine: Engine
    ) -> None:
        """Not with R: what others did meanwhile was not answered here."""
        event_id = await sell(engine, users=3)
        other = settings.model_copy(update={"data_dir": settings.data_dir / "other"})
        async with Worker(other) as second:
            await second.book(event_id, "1")
        assert await answered_on_host(other.answered_directory, 0) == [Position(1, 3)]

    async def test_positions_that_say_different_things_are_all_kept(self, tmp_path: Path) -> None:
        """A booking of an older epoch that stood hides nothing that was answered in it."""
        witness = Witness(tmp_path, "api")
        witness.open()
        for at in ((5, 90), (5, 100), (6, 42), (5, 80)):
            witness.note(0, Position(*at))
        witness.note(1, Position(1, 1))
        await witness.close()
        assert await answered_on_host(tmp_path, 0) == [(5, 100), (6, 42)]
        assert await answered_on_host(tmp_path, 1) == [(1, 1)]
        later = Witness(tmp_path, "api")
        later.open()
        later.note(0, Position(6, 101))
        await later.close()
        assert await answered_on_host(tmp_path, 0) == [(6, 101)]
        assert not (tmp_path / "api.2.json").exists()

    async def test_a_slot_goes_on_from_what_is_kept_there(self, tmp_path: Path) -> None:
        """A worker that was killed is remembered by the one that takes its place."""
        first = Witness(tmp_path, "api")
        first.open()
        first.note(0, Position(1, 9))
        await first.close()
        second = Witness(tmp_path, "api")
        second.open()
        second.note(1, Position(1, 1))
        await second.close()
        assert await answered_on_host(tmp_path, 0) == [(1, 9)]

    async def test_two_workers_of_one_name_have_a_file_each(self, tmp_path: Path) -> None:
        """Neither writes over what the other has answered."""
        first, second = Witness(tmp_path, "api"), Witness(tmp_path, "api")
        first.open()
        second.open()
        first.note(0, Position(1, 9))
        second.note(0, Position(1, 5))
        await first.close()
        await second.close()
        assert sorted(await answered_on_host(tmp_path, 0)) == [(1, 5), (1, 9)]

    async def test_a_file_that_makes_no_sense_is_not_written_over(self, tmp_path: Path) -> None:
        """The next worker takes another slot, and the file is there for somebody to see."""
        (tmp_path / "api.json").write_text("{")
        witness = Witness(tmp_path, "api")
        witness.open()
        witness.note(0, Position(1, 1))
        await witness.close()
        assert (tmp_path / "api.json").read_text() == "{"
        assert (tmp_path / "api.2.json").exists()

    async def test_a_place_that_cannot_be_used_refuses_the_start(
        self, settings: Settings, redis_store: RedisStore, tmp_path: Path
    ) -> None:
        """A worker, and a writer or command on that host: without a witness nobody begins."""
        (tmp_path / "file").write_text("")
        nowhere = settings.model_copy(update={"data_dir": tmp_path / "file"})
        with pytest.raises(ConfigurationError, match="what is answered is kept there"):
            async with Worker(nowhere):
                pass
        with pytest.raises(ConfigurationError, match="what is answered is kept there"):
            make_handshakes(nowhere, redis_store, "test")


class TestVerdicts:
    """Each verdict, with a witness who knows of more."""

    @pytest.mark.parametrize("said", ["{", '{"version": 2}', '{"version": 1, "answered": [7]}'])
    async def test_a_file_that_cannot_be_read_makes_a_handshake_impossible(
        self, settings: Settings, handshake: Handshake, said: str
    ) -> None:
        """It is named; without it nobody knows what was answered."""
        path = say_answered(settings)
        path.write_text(said)
        with pytest.raises(
            HandshakeImpossible, match=r"what was answered cannot be told.*gone\.js"
        ):
            await handshake.run()

    async def test_two_empty_stores_do_not_begin_where_something_was_answered(
        self, settings: Settings, handshake: Handshake, record: Record
    ) -> None:
        """Both were emptied, or this is another deployment's data directory."""
        say_answered(settings, (3, 40))
        result = await handshake.run()
        assert isinstance(result, StaysClosed)
        assert "partition 0: answers were lost: changes 3-1 to 3-40" in result.reason
        assert await epochs(record) == [(4, "stay_closed", None, None)]
        assert await losses(record) == [(3, 1, 40)]
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert found.given.result == Opened(5)
        assert (await epochs(record))[-1] == (5, "begin", 0, 0)

    async def test_a_wiped_redis_whose_tail_was_not_on_record_stays_closed(
        self,
        stores: Stores,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
    ) -> None:
        """With the exact range; once confirmed it is rebuilt, and closes for that no more."""
        async with writing(settings):
            event_id = await sell(engine, users=2)
            await all_recorded(record, redis_store)
        for user in ("3", "4", "5"):
            await engine.book(event_id, user)
        await valkey.flushall()
        with pytest.raises(Problem, match="changes 1-5 to 1-7 were answered and are not on record"):
            await engine.book(event_id, "6")
        assert await losses(record) == [(1, 5, 7)]
        assert not await valkey.exists(OUTBOX)
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert found.given.result == Opened(3)
        assert await confirm_loss(settings) == []
        async with writing(settings):
            await eventually(lambda: _serves(engine))
            assert (await engine.book(event_id, "6")).status == "booked"
            assert (await engine.book(event_id, "3")).position == 1
            await all_recorded(record, redis_store)
            await valkey.flushall()
            assert (await engine.user(event_id, "3")).position == 1
            await all_recorded(record, redis_store)
            await are_sound(stores)
        assert [row[1] for row in await epochs(record)] == [
            "begin", "stay_closed", "rebuild", "rebuild",
        ]  # fmt: skip

    async def test_a_redis_that_went_back_before_anything_was_recorded_stays_closed(
        self, settings: Settings, engine: Engine, copies: Copies, record: Record
    ) -> None:
        """R' >= P, in the same epoch, its scripts loaded: W, P and R agree, and H does not."""
        event_id = await sell(engine, users=2)
        await copies.take()
        for user in ("3", "4"):
            await engine.book(event_id, user)
        await copies.restore()
        with pytest.raises(Problem) as caught:
            await engine.book(event_id, "5")
        assert caught.value.code == "outcome_unknown"
        await eventually(lambda: losses(record))
        # The call that noticed has run on the older copy: its seq is there again, another change.
        assert await losses(record) == [(1, 6, 6)]
        async with Worker(settings) as second:
            with pytest.raises(Problem, match=r"changes 1-6 to 1-6 .*; Redis ends at 1-5"):
                await second.book(event_id, "5")

    async def test_stores_that_went_back_together_stay_closed(
        self,
        stores: Stores,
        settings: Settings,
        record: Record,
        redis_store: RedisStore,
        copies: Copies,
    ) -> None:
        """Both restored to one older, consistent state: only the witness knows better."""
        backup = RecordCopies(stores)
        async with Worker(settings) as engine, writing(settings):
            event_id = await sell(engine, users=2)
            await all_recorded(record, redis_store)
        await record.close()
        await copies.take()
        await backup.take()
        async with Worker(settings) as engine, writing(settings):
            await engine.book(event_id, "3")
        await copies.restore()
        await backup.restore()
        async with Worker(settings) as engine:
            with pytest.raises(Problem, match="changes 1-5 to 1-5 were answered"):
                await engine.book(event_id, "3")
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert found.given.result == Opened(3)
        async with Worker(settings) as engine, writing(settings):
            assert (await engine.book(event_id, "3")).new
            await eventually(lambda: _clean(stores))

    async def test_an_epoch_that_the_record_never_had_stays_closed(
        self, settings: Settings, handshake: Handshake
    ) -> None:
        """Even where its seqs are on record: they are another life's."""
        assert await handshake.run() == Opened(1)
        say_answered(settings, (7, 1))
        result = await handshake.run()
        assert isinstance(result, StaysClosed)
        assert "changes 7-1 to 7-1 were answered" in result.reason
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert found.given.result == Opened(9)
        assert await handshake.run() == Opened(9)

    async def test_what_is_open_and_leaves_out_an_answer_is_closed_by_who_gave_it(
        self, settings: Settings, handshake: Handshake, record: Record, valkey: Client
    ) -> None:
        """A worker elsewhere finds itself beyond: nothing is adopted, and a new row says why."""
        assert await handshake.run() == Opened(1)
        await valkey.script_flush()
        assert await handshake.run() == Opened(2)
        elsewhere = settings.model_copy(update={"data_dir": settings.data_dir / "elsewhere"})
        say_answered(elsewhere, (1, 9))
        store = RedisStore(settings.own_redis_url or "")
        result = await fresh(elsewhere, store).run()
        await store.aclose()
        assert isinstance(result, StaysClosed)
        assert "changes 1-2 to 1-9 were answered" in result.reason
        assert [row[:2] for row in await epochs(record)] == [
            (1, "begin"), (2, "continue"), (3, "stay_closed"),
        ]  # fmt: skip
        assert await handshake.run() == Opened(4)  # who has answered nothing knows no better

    async def test_without_postgresql_a_redis_behind_an_answer_is_not_adopted(
        self, redis_store: RedisStore, handshake: Handshake
    ) -> None:
        """R below H of the same epoch: only the record could tell what is left."""
        assert await handshake.run() == Opened(1)

        async def answered() -> list[Position]:
            return [Position(1, 2)]

        with pytest.raises(HandshakeImpossible, match="has to be compared"):
            await _without_postgresql(redis_store, answered).run()

    async def test_two_askers_at_once_close_it_once(
        self, settings: Settings, redis_store: RedisStore, handshake: Handshake, record: Record
    ) -> None:
        """The one who comes second may compare anew; both come to the same reason."""
        assert await handshake.run() == Opened(1)
        say_answered(settings, (1, 9))
        crowd = [fresh(settings, redis_store) for _ in range(3)]
        results = await asyncio.gather(*(one.run() for one in crowd))
        assert all(isinstance(result, StaysClosed) for result in results)
        assert {tuple(row) for row in await losses(record)} == {(1, 2, 9)}


class TestConfirming:
    """Nothing goes on without what was lost before a person has read what it is."""

    async def test_a_loss_that_turns_out_larger_closes_again(
        self, settings: Settings, handshake: Handshake, record: Record
    ) -> None:
        """A confirmation is good for what was shown, and for what lies within."""
        assert await handshake.run() == Opened(1)
        say_answered(settings, (1, 9))
        assert isinstance(await handshake.run(), StaysClosed)
        say_answered(settings, (1, 12), slot="late")
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert isinstance(found.given.result, StaysClosed)
        assert "changes 1-2 to 1-12" in found.given.result.reason
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert isinstance(found.given.result, Opened)
        assert await losses(record) == [(1, 2, 9), (1, 2, 12)]
        assert isinstance(await handshake.run(), Opened)

    async def test_a_hole_in_the_outbox_is_gone_on_without_once_confirmed(
        self,
        stores: Stores,
        settings: Settings,
        engine: Engine,
        record: Record,
        redis_store: RedisStore,
        valkey: Client,
    ) -> None:
        """Rebuilt at P; what can be read of the tail is kept with the orphans."""
        async with writing(settings):
            event_id = await sell(engine, users=2)
            await all_recorded(record, redis_store)
        for user in ("3", "4", "5", "6"):
            await engine.book(event_id, user)
        await valkey.xdel(OUTBOX, "1-6", "1-7")
        await valkey.script_flush()
        with pytest.raises(Problem, match="the outbox has a hole"):
            await ready(engine)
        assert await losses(record) == [(1, 5, 8)]
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert found.given.result == Opened(3)
        assert (await epochs(record))[-1] == (3, "rebuild", 4, 1)
        orphans = await record.fetch("SELECT seq, kind, user_id FROM orphans ORDER BY seq")
        assert [tuple(row) for row in orphans] == [(5, "booked", "3"), (8, "waiting", "6")]
        async with writing(settings):
            await eventually(lambda: _serves(engine))
            assert (await engine.book(event_id, "7")).status == "booked"
            await all_recorded(record, redis_store)
            await are_sound(stores)

    async def test_an_entry_that_cannot_be_read_is_gone_on_without(
        self, settings: Settings, engine: Engine, record: Record, valkey: Client
    ) -> None:
        """What stands behind it is kept all the same."""
        await sell(engine, users=2)
        bad = {"v": "1", "at": "1", "first": "5", "changes": "eaten 1 1"}
        good = {"v": "1", "at": "1", "first": "6", "changes": "booked 1 9"}
        await valkey.xadd(OUTBOX, bad, "1-5")
        await valkey.xadd(OUTBOX, good, "1-6")
        await valkey.hset(META, "seq", "6")
        await valkey.script_flush()
        with pytest.raises(Problem, match="the outbox has a hole"):
            await ready(engine)
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert found.given.result == Opened(3)
        orphans = await record.fetch("SELECT seq FROM orphans ORDER BY seq")
        assert [row["seq"] for row in orphans] == [1, 2, 3, 4, 6]

    async def test_a_record_that_went_back_is_gone_on_from_once_confirmed(
        self, stores: Stores, settings: Settings, record: Record, valkey: Client
    ) -> None:
        """The tail is not whole, so all of it is shown as lost; what is left of it is kept."""
        backup = RecordCopies(stores)
        store = RedisStore(stores.redis_url)
        async with Worker(settings) as engine, writing(settings):
            event_id = await sell(engine, users=2)
            await all_recorded(record, store)
            await record.close()
            await backup.take()
            for user in ("3", "4", "5"):
                await engine.book(event_id, user)
            async with backup.connected() as connection:
                await all_recorded(connection, store)
        await valkey.xdel(OUTBOX, "1-6")
        await backup.restore()
        result = await fresh(settings, store).run()
        assert isinstance(result, StaysClosed)
        assert "PostgreSQL went back" in result.reason
        async with backup.connected() as connection:
            assert await losses(connection) == [(1, 5, 7)]
            (found,) = await confirm_loss(settings)
            assert found.given is not None
            assert isinstance(found.given.result, Opened)
            assert (await epochs(connection))[-1][1:] == ("rebuild", 4, 1)
            orphans = await connection.fetch("SELECT user_id FROM orphans ORDER BY seq")
            assert [row["user_id"] for row in orphans] == ["3", "5"]
        async with Worker(settings) as engine, writing(settings):
            assert (await engine.book(event_id, "4")).new
            await eventually(lambda: _clean(stores))
        await store.aclose()

    async def test_a_record_that_is_not_whole_cannot_be_gone_on_from(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore
    ) -> None:
        """Nobody confirms his way into a damaged record; it says so, and names the audit."""
        async with writing(settings):
            await sell(engine)
            await all_recorded(record, redis_store)
        await record.execute("UPDATE cursors SET seq = 5")
        result = await fresh(settings, redis_store).run()
        assert isinstance(result, StaysClosed)
        assert "this cannot be confirmed: the record is not whole" in result.reason
        assert "`onsale audit`" in result.reason
        (found,) = await confirm_loss(settings)
        assert found.closed.loss is None
        assert found.given is None
        assert await recorded(record) == Position(1, 5)

    async def test_a_record_that_was_damaged_since_cannot_be_gone_on_from(
        self, settings: Settings, engine: Engine, record: Record, redis_store: RedisStore,
        valkey: Client,
    ) -> None:  # fmt: skip
        """What was shown to be lost says nothing of what has become of the record meanwhile."""
        async with writing(settings):
            await sell(engine)
            await all_recorded(record, redis_store)
        say_answered(settings, (1, 99))
        await valkey.flushall()
        assert isinstance(await fresh(settings, redis_store).run(), StaysClosed)
        assert await record.execute("DELETE FROM bookings WHERE user_id = '1'") == "DELETE 1"
        (found,) = await confirm_loss(settings)
        assert found.given is not None
        assert isinstance(found.given.result, StaysClosed)
        assert "this cannot be confirmed: the record is not whole" in found.given.result.reason

    async def test_settings_that_know_of_fewer_partitions_are_refused(
        self, settings: Settings, handshake: Handshake
    ) -> None:
        """What is closed in the others would not be seen."""
        await handshake.run()
        with pytest.raises(ConfigurationError, match=r"ONSALE_PARTITIONS is 2, but .* with 1"):
            await confirm_loss(settings.model_copy(update={"partitions": 2}))

    async def test_the_number_of_a_closed_epoch_may_come_back(
        self, settings: Settings, handshake: Handshake, record: Record
    ) -> None:
        """What stayed closed here was another one on the record that a replay brings forward."""
        await handshake.run()
        say_answered(settings, (1, 9))
        assert isinstance(await handshake.run(), StaysClosed)
        async with Ledger(record).applying([0]) as application:
            await application.make_good(0, [Epoch(2, 1, 1, "replayed")], "a replay")
        assert (await epochs(record))[-1][1:] == ("replayed", 1, 1)
        assert await losses(record) == []


async def _holds(directory: Path, at: Position) -> bool:
    return await answered_on_host(directory, 0) == [at]


async def _serves(engine: Engine) -> bool:
    try:
        await ready(engine)
    except Problem:
        return False
    return True


async def _clean(stores: Stores) -> bool:
    report = await reconcile(stores.redis_url, stores.postgresql_url)
    assert report.verdict != "drift"
    held = await audit(stores.postgresql_url)
    assert held.verdict == "holds"
    return report.verdict == "clean"
