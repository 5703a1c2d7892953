"""Dead letters on real stores: set aside, followed, told, put back; and cut off in between."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from service.app import Worker
from service.auditor import audit
from service.deadletters import DeadLetters, Retry
from service.deadletters_report import run_list
from service.decision import Decision
from service.engine import Engine
from service.errors import Problem
from service.handshake import Handshake, Opened, StaysClosed
from service.handshakes import make_handshakes
from service.history import history
from service.keys import partition_keys
from service.letters import Letters
from service.reconciler import reconcile
from service.record import Application
from service.redis_store import RedisStore
from service.setting_aside import NotPossible
from service.settings import Settings
from service.violations import AuditReport
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, operating, writing
from tests.integration.records import forge
from tests.integration.restoring import RecordCopies

META, _, OUTBOX = partition_keys(0)
_PUT = (
    "INSERT INTO journal SELECT partition, seq, epoch, at, kind, event_id, user_id, details, hash"
    " FROM"
)
_MOVED = f"WITH moved AS (DELETE FROM dead_letters WHERE user_id = 'b' RETURNING *) {_PUT} moved"


class Died(Exception):
    """What a test throws in place of a kill."""


@pytest.fixture
async def letters(settings: Settings) -> AsyncIterator[DeadLetters]:
    """The operator's commands, on this test's stores."""
    async with operating(settings) as made:
        yield made


class Sale:
    """Two events: 12 tickets of one, 3 of the other; `vip` cannot be recorded."""

    def __init__(self, engine: Engine, record: Record, valkey: Client) -> None:
        self.engine = engine
        self.record = record
        self.valkey = valkey
        self.one = self.two = 0

    async def open(self) -> None:
        """Open both, sell some, and wait until all is on record; then forbid vip."""
        self.one = (await self.engine.initialize("One", 12)).event_id
        self.two = (await self.engine.initialize("Two", 3)).event_id
        await self.book((self.one, "early"), (self.two, "early"))
        await self.recorded()
        await self.forbid()

    async def forbid(self) -> None:
        """Have PostgreSQL refuse a booking of vip, as a constraint made by hand does."""
        await self.record.execute(
            "ALTER TABLE bookings ADD CONSTRAINT no_vip CHECK (user_id <> 'vip')"
        )

    async def allow(self) -> None:
        """Put the record right again."""
        await self.record.execute("ALTER TABLE bookings DROP CONSTRAINT no_vip")

    async def book(self, *items: tuple[int, str]) -> None:
        """Book in one call where that can be: the first alone, the others in the next entry."""
        await asyncio.gather(*(self.engine.book(*item) for item in items))

    async def poison(self) -> int:
        """Make a batched entry with vip in its middle, and an entry after it; return vip's seq."""
        await self.book(
            (self.one, "alone"),
            (self.one, "a"),
            (self.two, "a"),
            (self.one, "vip"),
            (self.two, "b"),
            (self.one, "b"),
            (self.two, "c"),
            (self.one, "c"),
        )
        vip = (await self.engine.user(self.one, "vip")).seq
        await self.book((self.one, "later"), (self.two, "later"))
        await self.engine.cancel(self.one, "early")
        return vip

    async def recorded(self) -> None:
        """Wait until P is R."""

        async def is_so() -> bool:
            found = await self.record.fetchrow("SELECT epoch, seq FROM cursors")
            held = await self.valkey.hmget(META, "epoch", "seq")
            return found is not None and [str(word) for word in found] == held

        await eventually(is_so)

    async def journal(self, event_id: int) -> list[str]:
        """Return who is in the journal about an event, in order."""
        rows = await self.record.fetch(
            "SELECT user_id FROM journal WHERE event_id = $1 AND user_id IS NOT NULL ORDER BY seq",
            event_id,
        )
        return [row["user_id"] for row in rows]

    async def aside(self) -> list[str]:
        """Return who is among the dead letters, in order."""
        rows = await self.record.fetch("SELECT user_id FROM dead_letters ORDER BY seq")
        return [row["user_id"] for row in rows]


@dataclass
class RestoredSale:
    """A sale whose PostgreSQL came back from before a change was set aside; it stays closed."""

    sale: Sale
    copies: RecordCopies
    letters: DeadLetters
    handshake: Handshake
    vip: int
    reason: str

    async def is_the_same(self) -> None:
        """What the lost record had, this one has, hash by hash, in journal or letters; no more."""
        chain = (
            "SELECT seq, hash FROM journal UNION ALL SELECT seq, hash FROM dead_letters"
            " ORDER BY seq"
        )
        async with self.copies.connected("_lost") as lost:
            had = [tuple(row) for row in await lost.fetch(chain)]
        assert [tuple(row) for row in await self.sale.record.fetch(chain)][: len(had)] == had


@pytest.fixture
async def sale(engine: Engine, record: Record, valkey: Client) -> Sale:
    """The sale, not opened yet."""
    return Sale(engine, record, valkey)


async def stopped(caplog: pytest.LogCaptureFixture) -> None:
    """Wait until the writer says that it stands."""

    async def is_so() -> bool:
        return "THE WRITER HAS STOPPED" in caplog.text

    await eventually(is_so)


def rules(report: AuditReport) -> dict[str, int]:
    """Return the rules that are violated, with their numbers."""
    return dict(report.violations.by_rule)


async def frozen(engine: Engine, event_id: int) -> bool:
    """Whether nobody can book at an event, and everybody is told why."""
    try:
        await engine.book(event_id, "anybody")
    except Problem as problem:
        return problem.code == "closed" and "frozen" in problem.detail
    return False


class TestSettingAside:
    """`move`: the refused change and what follows it of its event; the others go on."""

    @pytest.mark.usefixtures("writer")
    async def test_from_the_stop_to_the_repair(
        self,
        sale: Sale,
        letters: DeadLetters,
        stores: Stores,
        valkey: Client,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """One event is frozen, whole and in order; then all of it is on record after all."""
        await sale.open()
        vip = await sale.poison()
        await stopped(caplog)
        (found,) = (await letters.kept()).standing
        assert [(c.seq, c.user_id) for c in found.changes] == [(vip, "vip")]
        assert [c.user_id for c in found.following(found.changes[0])] == ["b", "c"]
        assert "no_vip" in found.refused[sale.one].reason

        planned = await letters.move(0, [vip], apply=False)
        assert planned.done is None
        assert await sale.aside() == []
        assert (await sale.engine.book(sale.two, "x")).status == "waiting"

        moved = await letters.move(0, [vip], apply=True)
        assert moved.done == Opened(2, "continue")
        await sale.recorded()
        assert await sale.aside() == ["vip", "b", "c", "later", "early"]
        assert await sale.journal(sale.one) == ["early", "alone", "a"]
        assert await sale.journal(sale.two) == ["early", "a", "b", "c", "later", "x"]
        assert "the writer goes on" in caplog.text

        assert await frozen(sale.engine, sale.one)
        with pytest.raises(Problem, match="frozen"):
            await sale.engine.cancel(sale.one, "a")
        assert (await sale.engine.user(sale.one, "vip")).status == "booked"
        assert (await sale.engine.book(sale.two, "y")).status == "waiting"
        await sale.recorded()
        await _while_frozen(sale, stores)

        refused = await letters.retry(sale.one, apply=True)
        assert refused.done is None
        assert refused.refused is not None
        assert refused.refused.seq == vip
        await sale.allow()
        again = await letters.retry(sale.one, apply=True)
        assert again.refused is None
        assert again.done == Opened(3, "continue")
        assert await sale.aside() == []
        assert (await sale.engine.book(sale.one, "after")).new
        await sale.recorded()
        assert await sale.journal(sale.one) == [
            *("early", "alone", "a", "vip", "b", "c", "later", "early", "after")
        ]
        report = await audit(stores.postgresql_url)
        assert rules(report) == {}
        assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"
        assert await valkey.hget(META, "frozen") is None
        assert (await letters.kept()).standing == []

    async def test_it_is_set_aside_while_no_writer_runs(
        self, settings: Settings, sale: Sale, letters: DeadLetters, stores: Stores
    ) -> None:
        """What stands is found by trying, not by asking a writer; one that starts later goes on."""
        async with writing(settings):
            await sale.open()
        # The entries before the refused one have to be on record first.
        await sale.engine.book(sale.one, "vip")
        await sale.book((sale.two, "p"), (sale.one, "q"))
        vip = (await sale.engine.user(sale.one, "vip")).seq
        assert (await letters.move(0, [vip], apply=True)).done == Opened(2, "continue")
        async with writing(settings):
            await sale.recorded()
        assert await sale.aside() == ["vip", "q"]
        assert rules(await audit(stores.postgresql_url)) == {}

    @pytest.mark.usefixtures("writer")
    async def test_two_events_of_one_entry_are_named_together(
        self, sale: Sale, letters: DeadLetters, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The cursor moves to the entry's end, so both must go; half of it is not possible."""
        await sale.open()
        await sale.book(
            *((sale.one, "x"), (sale.two, "vip"), (sale.one, "vip"), (sale.one, "y")),
            (sale.two, "y"),
        )
        seqs = [(await sale.engine.user(e, "vip")).seq for e in (sale.two, sale.one)]
        await stopped(caplog)
        for wrong in (seqs[:1], seqs[1:], [seqs[1] + 1], [*seqs, 9_999]):
            with pytest.raises(NotPossible, match=f"is change {seqs[0]} and {seqs[1]}"):
                await letters.move(0, wrong, apply=True)
        assert await sale.aside() == []
        assert (await letters.move(0, seqs, apply=True)).done == Opened(2, "continue")
        assert await sale.aside() == ["vip", "vip", "y", "y"]
        assert await frozen(sale.engine, sale.one)
        assert await frozen(sale.engine, sale.two)
        third = (await sale.engine.initialize("Three", 1)).event_id
        assert (await sale.engine.book(third, "a")).status == "booked"

    @pytest.mark.usefixtures("writer")
    async def test_a_change_of_an_event_that_is_gone_is_set_aside(
        self, sale: Sale, letters: DeadLetters, record: Record, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The row of the event was deleted by hand; put back, the letter goes on record."""
        await sale.open()
        row = await record.fetchrow("DELETE FROM events WHERE id = $1 RETURNING *", sale.one)
        assert row is not None
        seq = (await sale.engine.book(sale.one, "a")).at.seq
        await stopped(caplog)
        assert (await letters.move(0, [seq], apply=True)).done == Opened(2, "continue")
        await record.execute(
            "INSERT INTO events SELECT * FROM json_populate_record(NULL::events, $1)",
            _as_json(row),
        )
        assert (await letters.retry(sale.one, apply=True)).done == Opened(3, "continue")
        assert (await sale.engine.user(sale.one, "a")).seq == seq

    @pytest.mark.usefixtures("writer")
    async def test_nothing_is_set_aside_where_nothing_stands(
        self, sale: Sale, letters: DeadLetters, record: Record
    ) -> None:
        """A change that PostgreSQL takes is no dead letter, whoever asks; and no epoch is made."""
        await sale.open()
        seq = (await sale.engine.user(sale.one, "early")).seq
        for wrong in (seq, seq + 100):
            with pytest.raises(NotPossible, match="nothing stands in partition 0"):
                await letters.move(0, [wrong], apply=True)
        with pytest.raises(NotPossible, match="no partition 7"):
            await letters.move(7, [1], apply=True)
        assert await letters.retry(sale.one, apply=True) == Retry([], None)
        with pytest.raises(NotPossible, match="the record has no event 99"):
            await letters.retry(99, apply=True)
        assert await record.fetchval("SELECT count(*) FROM epochs") == 1

    @pytest.mark.usefixtures("writer")
    async def test_an_error_about_no_change_makes_no_dead_letter(
        self, sale: Sale, letters: DeadLetters, record: Record
    ) -> None:
        """A trigger's own exception is passed on to the operator: exit code 2, nothing moves."""
        await sale.open()
        await record.execute(
            "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'made by a test'; END $$;"
            "CREATE TRIGGER trouble BEFORE INSERT ON journal"
            " FOR EACH ROW EXECUTE FUNCTION trouble()"
        )
        seq = (await sale.engine.book(sale.one, "a")).at.seq
        with pytest.raises(Exception, match="made by a test"):
            await letters.move(0, [seq], apply=True)
        assert await sale.aside() == []

    @pytest.mark.usefixtures("writer")
    async def test_what_cannot_be_read_is_no_dead_letter(
        self, sale: Sale, letters: DeadLetters, valkey: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An entry of something else has no changes that could be moved; `list` says what it is."""
        await sale.open()
        seq = await forge(valkey, 0, "booked")
        await stopped(caplog)
        (found,) = (await letters.kept()).standing
        assert "names no user" in found.why
        with pytest.raises(NotPossible, match="cannot be read"):
            await letters.move(0, [seq], apply=True)

    @pytest.mark.usefixtures("writer")
    async def test_other_partitions_are_not_touched(
        self, stores: Stores, record: Record, caplog: pytest.LogCaptureFixture
    ) -> None:
        """They keep their epoch, and go on all the while."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=2
        )
        async with Worker(settings) as engine, writing(settings):
            one = (await engine.initialize("One", 5)).event_id
            two = (await engine.initialize("Two", 5)).event_id
            await record.execute(
                "ALTER TABLE bookings ADD CONSTRAINT no_vip CHECK (user_id <> 'vip')"
            )
            at = (await engine.book(one, "vip")).at
            await stopped(caplog)
            await engine.book(two, "a")
            async with await DeadLetters.open(
                stores.redis_url,
                stores.postgresql_url,
                lambda redis, n: make_handshakes(
                    settings.model_copy(update={"partitions": n}), redis, "deadletters"
                ),
            ) as letters:
                done = await letters.move(one % 2, [at.seq], apply=True)
            assert done.done == Opened(2, "continue")
            assert (await engine.book(two, "b")).at.epoch == 1
            assert await frozen(engine, one)
        assert rules(await audit(stores.postgresql_url)) == {}


class TestCutOff:
    """It may die anywhere: what is on record is whole, and the next handshake tells Redis."""

    @pytest.mark.parametrize("step", ["load_scripts", "begin_epoch"])
    async def test_a_move_that_died_before_redis_knew(
        self,
        settings: Settings,
        sale: Sale,
        letters: DeadLetters,
        stores: Stores,
        monkeypatch: pytest.MonkeyPatch,
        step: str,
    ) -> None:
        """The partition is closed then; whoever opens it freezes the event."""
        async with writing(settings):
            await sale.open()
        seq = (await sale.engine.book(sale.one, "vip")).at.seq
        await _die_at(monkeypatch, step, letters.move(0, [seq], apply=True))
        assert await sale.aside() == ["vip"]
        assert await frozen(sale.engine, sale.one)
        assert (await sale.engine.book(sale.two, "a")).status == "booked"
        assert (await letters.move(0, [seq], apply=True)).found is None
        async with writing(settings):
            await sale.recorded()
        assert rules(await audit(stores.postgresql_url)) == {}

    async def test_a_retry_that_died_before_redis_knew(
        self,
        settings: Settings,
        sale: Sale,
        letters: DeadLetters,
        stores: Stores,
        valkey: Client,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What Redis held of the event may lack the letters: it comes back from the record."""
        async with writing(settings):
            await sale.open()
            seq = (await sale.engine.book(sale.one, "vip")).at.seq
            await letters.move(0, [seq], apply=True)
            await sale.recorded()
            # Redis is rebuilt meanwhile: from a record in which vip has no ticket.
            await valkey.flushall()
            with pytest.raises(Problem, match="not_booked"):
                await sale.engine.user(sale.one, "vip")
            assert (await sale.engine.event(sale.one)).available == 11
            assert await frozen(sale.engine, sale.one)
            await sale.allow()
            await _die_at(monkeypatch, "begin_epoch", letters.retry(sale.one, apply=True))
            assert await sale.aside() == []
            assert (await sale.engine.user(sale.one, "vip")).seq == seq
            assert (await sale.engine.event(sale.one)).available == 10
            assert not await frozen(sale.engine, sale.one)
            await sale.recorded()
        assert rules(await audit(stores.postgresql_url)) == {}
        assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"

    async def test_a_deed_that_is_not_possible_any_more_opens_again(
        self,
        settings: Settings,
        sale: Sale,
        letters: DeadLetters,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The cause went between plan and deed: nothing is set aside, and the sale goes on."""
        async with writing(settings):
            await sale.open()
        seq = (await sale.engine.book(sale.one, "vip")).at.seq
        close = RedisStore.close

        async def mended(self: RedisStore, *arguments: Any) -> Any:
            monkeypatch.undo()
            await sale.allow()
            return await close(self, *arguments)

        monkeypatch.setattr(RedisStore, "close", mended)
        with pytest.raises(NotPossible, match="nothing stands"):
            await letters.move(0, [seq], apply=True)
        assert await sale.aside() == []
        meta = await RedisStore.meta(letters._redis, 0)
        assert meta is not None
        assert meta.open
        assert (await sale.engine.book(sale.one, "b")).new


class TestAfterARestore:
    """PostgreSQL comes back from before a `move`: the replay meets the refused change again."""

    @pytest.fixture
    async def restored(
        self,
        settings: Settings,
        stores: Stores,
        sale: Sale,
        redis_store: RedisStore,
        caplog: pytest.LogCaptureFixture,
    ) -> AsyncIterator[RestoredSale]:
        """Sell, copy the record, set vip aside, sell on; put the copy back, and compare."""
        copies = RecordCopies(stores)
        async with writing(settings):
            await sale.open()
            await copies.take()
            async with copies.connected() as record:
                sale.record = record
                vip = await sale.poison()
                await stopped(caplog)
                async with operating(settings) as operator:
                    assert (await operator.move(0, [vip], apply=True)).done == Opened(2)
                await sale.engine.book(sale.two, "x")
                await sale.recorded()
        await copies.restore()
        async with copies.connected() as record, operating(settings) as operator:
            sale.record = record
            handshake = make_handshakes(settings, redis_store, "test")[0]
            result = await handshake.run()
            assert isinstance(result, StaysClosed)
            yield RestoredSale(sale, copies, operator, handshake, vip, result.reason)

    async def test_it_is_set_aside_again_as_part_of_the_replay(
        self,
        settings: Settings,
        stores: Stores,
        restored: RestoredSale,
        valkey: Client,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Closed, with the way on; then all is as it was before, hash by hash, and goes on."""
        sale, letters, vip = restored.sale, restored.letters, restored.vip
        assert f"PostgreSQL refuses outbox entry 1-{vip + 4}: new row for" in restored.reason
        assert restored.reason.endswith("; see `onsale deadletters list`")
        with pytest.raises(Problem, match="deadletters list") as caught:
            await sale.engine.book(sale.two, "nobody")
        assert caught.value.code == "closed"
        (found,) = (await letters.kept()).standing
        assert found.went_back
        assert [c.seq for c in found.changes] == [vip]
        urls = stores.redis_url, stores.postgresql_url
        assert await asyncio.to_thread(run_list, *urls, settings, as_json=False) == 1
        told = capsys.readouterr().out
        assert f"The replay of partition 0 stands before entry 1-{vip + 4}." in told
        assert "Mend the cause, then `onsale open`. Or set this aside, which freezes" in told
        assert f"  onsale deadletters move 0 {vip} --apply" in told
        assert (await letters.move(0, [vip], apply=False)).done is None
        assert await sale.aside() == []

        done = (await letters.move(0, [vip], apply=True)).done
        assert isinstance(done, Opened)
        assert done.how == "replay"
        assert (await letters.move(0, [vip], apply=True)).found is None
        await eventually(lambda: frozen(sale.engine, sale.one))  # it looks again once a second
        assert await sale.aside() == ["vip", "b", "c", "later", "early"]
        assert await sale.journal(sale.two) == ["early", "a", "b", "c", "later", "x"]
        await restored.is_the_same()
        async with writing(settings):
            assert (await sale.engine.book(sale.two, "y")).status == "waiting"
            await sale.recorded()
            assert rules(await audit(stores.postgresql_url)) == {}
            assert (await reconcile(stores.redis_url, stores.postgresql_url)).drifts == []
            await sale.allow()
            assert isinstance((await letters.retry(sale.one, apply=True)).done, Opened)
            assert (await sale.engine.user(sale.one, "vip")).seq == vip
            await sale.recorded()
        assert rules(await audit(stores.postgresql_url)) == {}
        assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"
        assert await valkey.hget(META, "frozen") is None

    async def test_the_cause_is_mended_in_the_copy(
        self, settings: Settings, stores: Stores, restored: RestoredSale
    ) -> None:
        """Then there is nothing to set aside: whoever compares next brings all of it forward."""
        sale = restored.sale
        await sale.allow()
        with pytest.raises(NotPossible, match="nothing stands in partition 0"):
            await restored.letters.move(0, [restored.vip], apply=True)
        result = await restored.handshake.run()
        assert isinstance(result, Opened)
        assert result.how == "replay"
        assert await sale.aside() == []
        async with writing(settings):
            assert (await sale.engine.book(sale.one, "after")).new
            await sale.recorded()
        assert rules(await audit(stores.postgresql_url)) == {}
        assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"

    async def test_one_after_the_other(
        self, settings: Settings, stores: Stores, restored: RestoredSale
    ) -> None:
        """A copy that refuses more than the record did: closed again, before the next of them."""
        sale, letters = restored.sale, restored.letters
        await sale.record.execute("ALTER TABLE bookings ADD CONSTRAINT n CHECK (user_id <> 'x')")
        done = (await letters.move(0, [restored.vip], apply=True)).done
        assert isinstance(done, StaysClosed)
        assert "PostgreSQL refuses outbox entry 2-" in done.reason
        (found,) = (await letters.kept()).standing
        assert [c.user_id for c in found.changes] == ["x"]
        seqs = [c.seq for c in found.changes]
        assert isinstance((await letters.move(0, seqs, apply=True)).done, Opened)
        await eventually(lambda: frozen(sale.engine, sale.one))
        await eventually(lambda: frozen(sale.engine, sale.two))
        await restored.is_the_same()
        assert rules(await audit(stores.postgresql_url)) == {}
        await sale.allow()
        await sale.record.execute("ALTER TABLE bookings DROP CONSTRAINT n")
        async with writing(settings):
            for event_id in (sale.one, sale.two):
                assert isinstance((await letters.retry(event_id, apply=True)).done, Opened)
            await sale.recorded()
        assert rules(await audit(stores.postgresql_url)) == {}
        assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"

    async def test_nothing_is_set_aside_that_is_not_proven(
        self, restored: RestoredSale, valkey: Client
    ) -> None:
        """The outbox has a hole behind the change by now: as a replay, all of it or nothing."""
        sale = restored.sale
        last = await valkey.xrevrange(OUTBOX, count=1)
        await valkey.xdel(OUTBOX, last[0][0])
        with pytest.raises(NotPossible, match="cannot be brought forward: change"):
            await restored.letters.move(0, [restored.vip], apply=True)
        assert await sale.aside() == []
        assert await valkey.hget(META, "open") == "0"
        with pytest.raises(Problem, match="PostgreSQL went back"):
            await sale.engine.book(sale.two, "nobody")

    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize(
        ("owner", "step"),
        [
            (RedisStore, "close"),
            (Application, "record"),
            (Letters, "put"),
            (Application, "make_good"),
            (Decision, "put_epoch"),
            (RedisStore, "load_scripts"),
            (RedisStore, "begin_epoch"),
        ],
    )
    async def test_it_may_die_anywhere(
        self,
        settings: Settings,
        stores: Stores,
        restored: RestoredSale,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        step: str,
        after: bool,
    ) -> None:
        """The record is whole up to its cursor, and the same order finds its way from there."""
        sale, letters, vip = restored.sale, restored.letters, restored.vip
        real = getattr(owner, step)

        async def dying(*arguments: Any, **named: Any) -> Any:
            if after:
                await real(*arguments, **named)
            raise Died

        with monkeypatch.context() as patched:
            patched.setattr(owner, step, dying)
            with pytest.raises(Died):
                await letters.move(0, [vip], apply=True)
        await restored.handshake.run()
        await letters.move(0, [vip], apply=True)
        await eventually(lambda: frozen(sale.engine, sale.one))
        assert await sale.aside() == ["vip", "b", "c", "later", "early"]
        await restored.is_the_same()
        async with writing(settings):
            assert (await sale.engine.book(sale.two, "y")).status == "waiting"
            await sale.recorded()
        assert rules(await audit(stores.postgresql_url)) == {}


class TestRetry:
    """All letters of an event or none."""

    async def test_the_letter_that_is_refused_is_named(
        self, settings: Settings, sale: Sale, letters: DeadLetters, record: Record
    ) -> None:
        """Another than the first, after a repair of half: its reason is noted, no more."""
        async with writing(settings):
            await sale.open()
            seq = (await sale.engine.book(sale.one, "vip")).at.seq
            for user in ("a", "b", "odd", "c"):
                await sale.engine.book(sale.one, user)
            odd = (await sale.engine.user(sale.one, "odd")).seq
            await letters.move(0, [seq], apply=True)
            await sale.recorded()
            await sale.allow()
            await record.execute("ALTER TABLE bookings ADD CONSTRAINT n CHECK (user_id <> 'odd')")
            planned = await letters.retry(sale.one, apply=False)
            assert await _reason(record, odd) == "its event is frozen"
            refused = await letters.retry(sale.one, apply=True)
            assert planned == Retry(planned.letters, refused.refused)
            assert refused.refused is not None
            assert refused.refused.seq == odd
            assert '"n"' in await _reason(record, odd)
            assert await sale.aside() == ["vip", "a", "b", "odd", "c"]
            assert await record.fetchval("SELECT count(*) FROM epochs") == 2


class TestAuditOfLetters:
    """What the record cannot have: a row in both tables or in none, one beyond the freeze."""

    @pytest.mark.parametrize(
        ("damage", "rule"),
        [
            ("DELETE FROM dead_letters WHERE user_id = 'b'", "gap"),
            ("UPDATE dead_letters SET user_id = 'x' WHERE user_id = 'b'", "hash"),
            (f"{_PUT} dead_letters", "dead_letter"),
            (_MOVED, "dead_letter"),
        ],
        ids=["in neither", "edited", "in both", "behind the freeze"],
    )
    async def test_damage_is_named(
        self,
        settings: Settings,
        sale: Sale,
        letters: DeadLetters,
        stores: Stores,
        record: Record,
        damage: str,
        rule: str,
    ) -> None:
        """Each by its rule; without the damage nothing is violated."""
        async with writing(settings):
            await sale.open()
            seq = (await sale.engine.book(sale.one, "vip")).at.seq
            await sale.engine.book(sale.one, "b")
            await letters.move(0, [seq], apply=True)
            await sale.recorded()
        assert rules(await audit(stores.postgresql_url)) == {}
        await record.execute(damage)
        assert rule in rules(await audit(stores.postgresql_url))


async def _while_frozen(sale: Sale, stores: Stores) -> None:
    """What audit, reconcile and history say of a frozen event."""
    report = await audit(stores.postgresql_url)
    assert rules(report) == {}
    assert report.partitions[0].dead_letters == 5
    found = await reconcile(stores.redis_url, stores.postgresql_url)
    verdicts = {event.event_id: event.verdict for event in found.events}
    assert verdicts == {sale.one: "frozen", sale.two: "clean"}
    assert (found.verdict, found.exit_code, found.drifts) == ("frozen", 1, [])
    told = await history(stores.postgresql_url, sale.one, "vip", limit=10)
    assert [h.says.partition(":")[0] for h in told.shown] == ["set aside, not on record (booked)"]
    assert "no_vip" in told.shown[0].says
    assert told.sold == 3


async def _die_at(monkeypatch: pytest.MonkeyPatch, step: str, deed: Any) -> None:
    """Do something that is killed before a step of Redis's."""

    async def die(*_: Any, **__: Any) -> Any:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(RedisStore, step, die)
        with pytest.raises(Died):
            await deed


async def _reason(record: Record, seq: int) -> str:
    return str(await record.fetchval("SELECT reason FROM dead_letters WHERE seq = $1", seq))


def _as_json(row: Any) -> str:
    return json.dumps(dict(row), default=str)
