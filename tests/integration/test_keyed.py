"""Keys on real stores: what Redis keeps, the record keeps, and each gets it back from the other."""

import asyncio

import pytest

from service.auditor import audit
from service.engine import Engine
from service.errors import Problem
from service.keyed import KEPT_MAX, digest_of
from service.keys import event_keys, partition_keys
from service.reconciler import reconcile
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, writing
from tests.integration.records import put_on_record
from tests.journals import Sale

META = partition_keys(0).meta
BOOK, CANCEL = digest_of("book", quantity=1), digest_of("cancel")


async def is_recorded(record: Record, valkey: Client) -> bool:
    """Whether P is R."""
    row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
    epoch, seq = await valkey.hmget(META, "epoch", "seq")
    return row is not None and tuple(row) == (int(epoch), int(seq))


async def come_and_go(engine: Engine, event_id: int, user: str, first: int, count: int) -> None:
    """Let a user book and cancel in turn, each time under a key of its own: k0, k1 and so on."""
    for number in range(first, first + count):
        if number % 2:
            await engine.cancel(event_id, user, keyed=f"k{number}/{CANCEL}")
        else:
            await engine.book(event_id, user, keyed=f"k{number}/{BOOK}")


async def kept(record: Record, valkey: Client, event_id: int, user: str) -> list[str]:
    """Return what both stores keep of a user's keys; they must agree."""
    held = await valkey.hget(event_keys(0, event_id).users, user)
    on_record = await record.fetchval(
        "SELECT keyed FROM bookings WHERE event_id = $1 AND user_id = $2", event_id, user
    )
    assert held.split(" ")[4:] == on_record.split()
    return [entry.split("/")[0] for entry in on_record.split()]


async def test_the_record_keeps_the_same_eight(
    settings: Settings, engine: Engine, record: Record, valkey: Client
) -> None:
    """Several changes of one user in one transaction, and then some more in another."""
    event = await engine.initialize("Event Name", 5)
    await come_and_go(engine, event.event_id, "a", 0, 5)
    await engine.book(event.event_id, "b")
    await engine.book(event.event_id, "c", keyed=f"c/{BOOK}")
    async with writing(settings):
        await eventually(lambda: is_recorded(record, valkey))
    assert await kept(record, valkey, event.event_id, "a") == [f"k{n}" for n in range(5)]
    assert await kept(record, valkey, event.event_id, "b") == []
    await come_and_go(engine, event.event_id, "a", 5, 6)
    await engine.cancel(event.event_id, "b")
    await engine.cancel(event.event_id, "c")
    async with writing(settings):
        await eventually(lambda: is_recorded(record, valkey))
    eight = [f"k{n}" for n in range(11 - KEPT_MAX, 11)]
    assert await kept(record, valkey, event.event_id, "a") == eight
    assert await kept(record, valkey, event.event_id, "c") == ["c"]


@pytest.mark.usefixtures("writer")
async def test_a_key_survives_a_rebuild(
    settings: Settings, stores: Stores, engine: Engine, record: Record, valkey: Client
) -> None:
    """Redis wiped: what the key did is told from the record, the ninth last is forgotten."""
    event = await engine.initialize("Event Name", 1)
    await come_and_go(engine, event.event_id, "a", 0, 9)
    await engine.book(event.event_id, "w", keyed=f"w/{BOOK}")
    await engine.cancel(event.event_id, "a", keyed=f"last/{CANCEL}")
    await eventually(lambda: is_recorded(record, valkey))
    before = await valkey.hgetall(event_keys(0, event.event_id).users)
    await valkey.flushall()
    await valkey.script_flush()
    again = await engine.cancel(event.event_id, "a", keyed=f"last/{CANCEL}")
    assert again.current is not None
    assert (again.reassigned, again.current.status) == (True, "cancelled")
    waited = await engine.book(event.event_id, "w", keyed=f"w/{BOOK}")
    assert waited.current is not None
    assert (waited.status, waited.current.status) == ("waiting", "booked")
    with pytest.raises(Problem, match="idempotency_key_reused"):
        await engine.book(event.event_id, "a", keyed=f"last/{BOOK}")
    assert await valkey.hgetall(event_keys(0, event.event_id).users) == before
    forgotten = await engine.book(event.event_id, "a", keyed=f"k1/{BOOK}")
    assert forgotten.current is None
    await eventually(lambda: is_recorded(record, valkey))
    assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"
    assert (await audit(stores.postgresql_url)).verdict == "holds"


async def test_equal_requests_at_once_have_one_effect(
    settings: Settings, engine: Engine, valkey: Client
) -> None:
    """64 with one key: one books, the others are told of it."""
    event = await engine.initialize("Event Name", 5)
    crowd = (engine.book(event.event_id, "a", keyed=f"k/{BOOK}") for _ in range(64))
    answers = await asyncio.gather(*crowd)
    assert {(a.status, a.new, a.at) for a in answers} == {("booked", True, answers[0].at)}
    assert sum(a.current is None for a in answers) == 1
    assert int(await valkey.hget(META, "seq")) == answers[0].at.seq


async def test_reconcile_names_keys_that_differ(
    settings: Settings, stores: Stores, engine: Engine, record: Record, valkey: Client
) -> None:
    """Of users who have not changed since, and of one whose change is in flight."""
    event = await engine.initialize("Event Name", 5)
    for user in "abc":
        await engine.book(event.event_id, user, keyed=f"k/{BOOK}")
    async with writing(settings):
        await eventually(lambda: is_recorded(record, valkey))
    await engine.cancel(event.event_id, "a", keyed=f"in-flight/{CANCEL}")
    await engine.cancel(event.event_id, "c", keyed=f"in-flight/{CANCEL}")
    users_key = event_keys(0, event.event_id).users
    assert (await reconcile(stores.redis_url, stores.postgresql_url)).verdict == "clean"
    await valkey.hset(users_key, "b", "booked 4 1 0")
    await valkey.hset(users_key, "a", f"cancelled 6 1 0 in-flight/{CANCEL}/cancelled/6")
    report = await reconcile(stores.redis_url, stores.postgresql_url)
    found = [drift for p in report.partitions for e in p.events for drift in e.drifts]
    assert {(d.user_id, d.kind) for d in found} == {("a", "keyed"), ("b", "keyed")}
    assert any(d.record == "booked at seq 4, keys k" for d in found)
    assert any(d.redis == "booked at seq 4, no keys" for d in found)


async def test_an_audit_names_keys_that_the_journal_does_not_come_to(
    stores: Stores, record: Record
) -> None:
    """A table edited by hand; a key with two effects; a ticket said to be passed on."""
    sale = Sale()
    sale.open(1, 1)
    sale.book(1, "a", "b", keyed=f"k/{BOOK}")
    sale.cancel(1, "a", keyed=f"c/{CANCEL}")
    await put_on_record(stores, sale)
    assert (await audit(stores.postgresql_url)).verdict == "holds"
    await record.execute("UPDATE bookings SET keyed = '' WHERE user_id = 'b'")
    report = await audit(stores.postgresql_url)
    assert [(v.rule, v.user_id) for v in report.violations.kept] == [("bookings", "b")]
