"""Entries of no script, and changes left half done: recovery makes the partition whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from service.app import Worker
from service.auditor import audit
from service.engine import Engine
from service.errors import Problem
from service.handshake import HandshakeImpossible
from service.handshakes import make_handshakes
from service.keys import event_keys, partition_keys
from service.reconciler import reconcile
from service.redis_store import RedisStore
from service.rights import CHANNEL_PATTERN, KEY_PATTERN, acl_line, tried
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, writing

META, CALLS, OUTBOX = partition_keys(0)
KEYED = "order-1/0123456789abcdef"
RUNBOOK = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"


class Sold(NamedTuple):
    """An event of one ticket: a has it; b, c and d wait."""

    event_id: int
    engine: Engine


@pytest.fixture
async def sold(settings: Settings) -> AsyncIterator[Sold]:
    """A sale whose writer does not run yet."""
    async with Worker(settings) as engine:
        yield await begun(engine)


async def begun(engine: Engine) -> Sold:
    """Sell the ticket, and have three wait."""
    event = await engine.initialize("Event Name", 1)
    for user in "abcd":
        await engine.book(event.event_id, user)
    return Sold(event.event_id, engine)


async def position(sold: Sold, user: str) -> tuple[str, int]:
    """Return a user's status and position."""
    found = await sold.engine.user(sold.event_id, user)
    return found.status, found.position


async def booked(sold: Sold, user: str) -> str:
    """Book as a client does, who repeats what was not done in time; return the status."""
    while True:
        try:
            return (await sold.engine.book(sold.event_id, user)).status
        except Problem as problem:
            if problem.code != "unavailable":
                raise


async def all_is_recorded(sold: Sold, settings: Settings, record: Record) -> None:
    """Hold Redis against the record once that has caught up, and the record against itself."""
    assert settings.own_redis_url is not None
    assert settings.postgresql_url is not None
    redis, postgresql = settings.own_redis_url, settings.postgresql_url

    async def caught_up() -> bool:
        at = (await sold.engine.book(sold.event_id, "a")).at
        if await record.fetchval("SELECT seq FROM cursors") < at.seq:
            return False
        # While a handshake has the partition closed, no comparison can tell.
        return (await reconcile(redis, postgresql)).verdict == "clean"

    await eventually(caught_up)
    assert (await audit(postgresql)).verdict == "holds"


def entry(first: int, **more: str) -> dict[str, str]:
    """Return the fields of an entry that can be read."""
    return {"v": "2", "at": "1795340000000000", "first": str(first), "changes": "booked 1 x"} | more


Meddle = Callable[[Client], Awaitable[object]]

STRAYS: dict[str, Meddle] = {
    "of a clock": lambda redis: redis.xadd(OUTBOX, {"a": "b"}),
    "of the next id": lambda redis: redis.xadd(OUTBOX, {"a": "b"}, "1-7"),
    "of this epoch": lambda redis: redis.xadd(OUTBOX, {"v": "2"}, "1-500"),
    "readable, with a gap": lambda redis: redis.xadd(OUTBOX, entry(500), "1-500"),
    "readable, of a later epoch": lambda redis: redis.xadd(OUTBOX, entry(7), "9-7"),
    "readable, of an epoch far away": lambda redis: redis.xadd(OUTBOX, entry(7), "99999999-7"),
    "only an id": lambda redis: redis.execute_command("XSETID", OUTBOX, "1795340000000-0"),
    "no UTF-8": lambda redis: redis.xadd(OUTBOX, {b"\xff": b"\xfe\x00"}, "1-9"),
}


class TestStrays:
    """An outbox in which somebody wrote by hand."""

    @pytest.mark.parametrize("stray", STRAYS)
    async def test_a_stray_is_set_aside_and_the_sale_goes_on(
        self, sold: Sold, settings: Settings, valkey: Client, record: Record, stray: str
    ) -> None:
        """The next booking is made, nobody moves, and the next epoch has the next number."""
        await STRAYS[stray](valkey)
        async with writing(settings):
            assert await booked(sold, "e") == "waiting"
            assert [await position(sold, user) for user in "abcde"] == [
                ("booked", 0),
                *(("waiting", place) for place in (1, 2, 3, 4)),
            ]
            await all_is_recorded(sold, settings, record)
        epochs = await record.fetch("SELECT epoch, verdict FROM epochs ORDER BY epoch")
        # A writer that read the stray before the worker's recovery may ask for another comparison.
        assert [tuple(row) for row in epochs][:2] == [(1, "begin"), (2, "rebuild")]
        assert len(epochs) <= 3
        kept = await record.fetch("SELECT epoch, seq, details FROM orphans WHERE kind = 'stray'")
        assert len(kept) == (stray != "only an id")
        for row in kept:
            assert (row["epoch"], row["seq"]) == (2, 1)  # numbered under the epoch that found it
            assert json.loads(row["details"])["id"]

    async def test_a_writer_alone_has_a_stray_set_aside(
        self, sold: Sold, settings: Settings, valkey: Client, record: Record
    ) -> None:
        """It meets the stray first, without a booking."""
        async with writing(settings):
            await valkey.xadd(OUTBOX, {"a": "b"})

            async def healed() -> bool:
                return bool(await valkey.hget(META, "epoch") == "2")

            await eventually(healed)
            await all_is_recorded(sold, settings, record)

    async def test_a_stray_between_entries_is_passed_over(
        self, sold: Sold, settings: Settings, valkey: Client, record: Record
    ) -> None:
        """Calls of several changes went on behind it before anybody read it."""
        await valkey.xadd(OUTBOX, {"a": "b"}, "1-7")
        await asyncio.gather(
            *(sold.engine.book(sold.event_id, user) for user in ("e", "f", "g", "h"))
        )
        async with writing(settings):
            await all_is_recorded(sold, settings, record)
        assert await record.fetchval("SELECT count(*) FROM journal WHERE kind = 'waiting'") == 7

    async def test_an_outbox_of_another_type_is_begun_anew(
        self, sold: Sold, settings: Settings, valkey: Client, record: Record
    ) -> None:
        """With all that it held on record, nothing is lost."""
        async with writing(settings):
            await all_is_recorded(sold, settings, record)
        await valkey.delete(OUTBOX)
        await valkey.set(OUTBOX, "meddled")
        with pytest.raises(Problem, match="outcome_unknown"):
            await sold.engine.book(sold.event_id, "e")
        async with writing(settings):
            assert await booked(sold, "e") == "waiting"
            await all_is_recorded(sold, settings, record)

    async def test_an_outbox_of_another_type_loses_nothing_silently(
        self, sold: Sold, valkey: Client
    ) -> None:
        """What was not on record is gone with it: the sale stays closed, and says so."""
        await valkey.delete(OUTBOX)
        await valkey.set(OUTBOX, "meddled")
        with pytest.raises(Problem) as caught:
            await sold.engine.book(sold.event_id, "e")
        assert caught.value.code in ("closed", "outcome_unknown")
        with pytest.raises(Problem, match="the outbox is no stream"):
            await sold.engine.book(sold.event_id, "e")

    async def test_calls_of_another_type_are_begun_anew(
        self, sold: Sold, settings: Settings, valkey: Client, record: Record
    ) -> None:
        """Each call fails before it writes; the partition is rebuilt, and sells."""
        await valkey.delete(CALLS)
        await valkey.set(CALLS, "meddled")
        async with writing(settings):
            with pytest.raises(Problem) as caught:
                await sold.engine.book(sold.event_id, "e")
            assert caught.value.code == "outcome_unknown"
            assert await booked(sold, "e") == "waiting"
            await all_is_recorded(sold, settings, record)


class TestHalfDone:
    """A script that failed after its entry."""

    @pytest.mark.parametrize("key", ["gaps", "waiting_list"])
    async def test_the_entry_decides_and_redis_is_rebuilt_from_it(
        self, sold: Sold, settings: Settings, valkey: Client, record: Record, key: str
    ) -> None:
        """`outcome_unknown`, sent once; the change is on record, once, and Redis holds it."""
        name = getattr(event_keys(0, sold.event_id), key)
        await valkey.delete(name)
        await valkey.set(name, "meddled")
        call, user = (sold.engine.cancel, "c") if key == "gaps" else (sold.engine.book, "e")
        with pytest.raises(Problem) as caught:
            await call(sold.event_id, user)
        assert caught.value.code == "outcome_unknown"

        async def rebuilt() -> bool:
            return bool(await valkey.hget(META, "epoch") == "2")

        await eventually(rebuilt)  # by the handshake alone, which has no writer to record for it
        async with writing(settings):
            if key == "gaps":
                assert (await sold.engine.user(sold.event_id, "c")).status == "left_waiting_list"
                assert await position(sold, "d") == ("waiting", 2)
            else:
                assert not (await sold.engine.book(sold.event_id, "e")).new
                assert await position(sold, "e") == ("waiting", 4)
            await all_is_recorded(sold, settings, record)
        assert await record.fetchval("SELECT count(*) FROM journal WHERE seq = 7") == 1
        assert await record.fetchval("SELECT verdict FROM epochs WHERE epoch = 2") == "rebuild"


class TestRights:
    """A Redis user whose rights are taken away and given back while it sells."""

    @pytest.fixture
    async def administrator(self, valkey: Client) -> AsyncIterator[Client]:
        """A client that may do everything, while the user `onsale` has what the runbook says."""
        await valkey.execute_command(*acl_line().split())
        yield valkey
        await valkey.execute_command("ACL", "DELUSER", "onsale")

    @pytest.fixture
    def settings(self, stores: Stores) -> Settings:
        """The settings of a deployment with that user."""
        url = stores.redis_url.replace("unix://", "unix://onsale:PASSWORD@")
        return Settings(redis_url=url, database_url=stores.postgresql_url)

    async def test_every_right_that_is_missing_is_named(
        self, administrator: Client, settings: Settings
    ) -> None:
        """One after the other; keys and channels as well."""
        assert settings.own_redis_url is not None
        rights = [f"+{name}" for name in sorted({*tried(0), "ssubscribe"})]
        without = {right: [f"-{right[1:]}"] for right in rights}
        without[KEY_PATTERN] = ["resetkeys", "~{p00}:event:*", "~{p00}:rights"]
        without[CHANNEL_PATTERN] = ["resetchannels"]
        store = RedisStore(settings.own_redis_url)
        try:
            assert await store.missing_rights(0) == []
            for right, words in without.items():
                await administrator.execute_command("ACL", "SETUSER", "onsale", *words)
                assert await store.missing_rights(0) == [right]
                await administrator.execute_command(*acl_line().split())
            assert await administrator.keys() == []
        finally:
            await store.aclose()

    async def test_the_line_of_the_runbook_is_enough(
        self, administrator: Client, settings: Settings, record: Record
    ) -> None:
        """Nothing is denied to a sale, its writer and a comparison, whatever they do."""
        assert acl_line() in RUNBOOK.read_text().splitlines()
        await administrator.execute_command("ACL", "LOG", "RESET")
        async with Worker(settings) as engine, writing(settings):
            sold = await begun(engine)
            await engine.cancel(sold.event_id, "c")
            await engine.cancel(sold.event_id, "a")
            await engine.cancel(sold.event_id, "b")
            await engine.cancel(sold.event_id, "d")
            await all_is_recorded(sold, settings, record)
            await administrator.script_flush()
            await all_is_recorded(sold, settings, record)
            await administrator.delete(META)
            await all_is_recorded(sold, settings, record)
        denied = await administrator.execute_command("ACL", "LOG")
        # redis-py tells its name and version, and does without.
        assert [entry["object"] for entry in denied if "client" not in entry["object"]] == []

    async def test_what_lacks_a_right_does_not_open(
        self, administrator: Client, settings: Settings
    ) -> None:
        """The reason names it; given, the sale opens by itself."""
        await administrator.execute_command("ACL", "SETUSER", "onsale", "-zadd", "-spublish")
        assert settings.own_redis_url is not None
        store = RedisStore(settings.own_redis_url)
        try:
            with pytest.raises(HandshakeImpossible, match=r"lacks rights: \+spublish \+zadd;"):
                await make_handshakes(settings, store, "test")[0].run()
            async with Worker(settings) as engine:
                await administrator.execute_command(*acl_line().split())
                assert (await begun(engine)).event_id == 1
        finally:
            await store.aclose()

    async def test_a_cancellation_without_zadd_is_no_404(
        self, administrator: Client, settings: Settings, record: Record
    ) -> None:
        """The waiter who left is told that it is not known; given back, the repeat finds it."""
        async with Worker(settings) as engine, writing(settings):
            sold = await begun(engine)
            await administrator.execute_command("ACL", "SETUSER", "onsale", "-zadd")
            for _ in range(2):
                with pytest.raises(Problem) as caught:
                    await engine.cancel(sold.event_id, "c", keyed=KEYED)
                assert caught.value.code in ("outcome_unknown", "unavailable")
            await administrator.execute_command(*acl_line().split())
            again = await engine.cancel(sold.event_id, "c", keyed=KEYED)
            assert (again.status, again.is_fresh) == ("left_waiting_list", False)
            assert await position(sold, "d") == ("waiting", 2)
            await all_is_recorded(sold, settings, record)
        assert await record.fetchval("SELECT count(*) FROM journal WHERE kind = 'left'") == 1


async def test_a_writer_without_its_scripts_asks_for_a_handshake(
    settings: Settings, valkey: Client, record: Record
) -> None:
    """Its watermark cannot be raised: another release serves, or Redis has forgotten them."""
    async with Worker(settings) as engine:
        await begun(engine)
    await valkey.script_flush()
    async with writing(settings):

        async def raised() -> bool:
            epoch, seq, recorded = await valkey.hmget(META, "epoch", "seq", "recorded")
            return bool(epoch == "2" and seq == recorded)

        await eventually(raised)
    assert await record.fetchval("SELECT verdict FROM epochs WHERE epoch = 2") == "continue"
