"""An event that comes back from the record: read once, in order, a page at a time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.app import Worker
from service.engine import Engine
from service.errors import Problem
from service.event_record import EventRecord, UserOnRecord
from service.handshake import Handshake
from service.keys import event_keys
from service.ledger import connect
from service.orders import Order
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import WAIT_S

_READ = (
    "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::integer"
    " FROM pg_stat_xact_user_tables WHERE relname = 'bookings'"
)


@pytest.mark.parametrize("analysed", [False, True])
async def test_a_page_reads_its_own_rows(stores: Stores, record: Record, *, analysed: bool) -> None:
    """Of 9,000 users: in the order of seq, whatever the planner knows of the table; not sorted."""
    await record.execute(
        "INSERT INTO bookings (event_id, user_id, status, seq, updated_at)"
        " SELECT 1 + n % 3, md5(n::text), 'waiting', 30000 - n, now()"
        " FROM generate_series(1, 9000) AS n"
    )
    if analysed:
        await record.execute("ANALYZE bookings")
    async with await connect(stores.postgresql_url, purpose="test") as ledger, ledger.snapshot():
        connection, seqs, read = ledger._connection, list[int](), list[int]()
        async for page in ledger.event_record.users(2, count=500):
            seqs += [user.seq for user in page]
            read.append(await connection.fetchval(_READ))
        assert seqs == sorted(seqs)
        assert len(seqs) == len(set(seqs)) == 3_000
        assert read[0] <= 510
        assert read[-1] <= 3_060


async def test_users_of_one_seq_are_all_read(stores: Stores, record: Record) -> None:
    """No script makes two, but a hand may have: none is lost between two pages."""
    await record.execute(
        "INSERT INTO bookings (event_id, user_id, status, seq, updated_at)"
        " SELECT 1, n::text, 'booked', 7, now() FROM generate_series(1, 25) AS n"
    )
    async with await connect(stores.postgresql_url, purpose="test") as ledger, ledger.snapshot():
        pages = [page async for page in ledger.event_record.users(1, count=10)]
    assert [len(page) for page in pages] == [10, 10, 5]
    assert len({user.user_id for page in pages for user in page}) == 25


@pytest.mark.usefixtures("writer")
async def test_one_worker_reads_and_keeps_its_claim_while_postgresql_is_slow(
    settings: Settings,
    engine: Engine,
    handshake: Handshake,
    valkey: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Longer than the two seconds after which a silent loader counts as gone."""
    event = await engine.initialize("Event Name", 2)
    for user in ("a", "b", "c"):
        await engine.book(event.event_id, user)
    await handshake.run(order=Order("a test", "rebuild"))
    slow, reads, sound = asyncio.Event(), list[int](), EventRecord.users

    async def users(
        self: EventRecord, event_id: int, *, count: int
    ) -> AsyncIterator[list[UserOnRecord]]:
        reads.append(event_id)
        await slow.wait()
        async for page in sound(self, event_id, count=count):
            yield page

    monkeypatch.setattr(EventRecord, "users", users)

    async def ask(worker: Engine) -> None:
        while True:
            try:
                assert (await worker.user(event.event_id, "c")).position == 1
            except Problem as problem:
                assert problem.code == "unavailable"  # noqa: PT017  # all others fail the test
                await asyncio.sleep(0.01)
            else:
                return

    async with Worker(settings) as other:
        asking = [asyncio.create_task(ask(worker)) for worker in (engine, other)]
        try:
            async with asyncio.timeout(WAIT_S):
                claimed = set[str | None]()
                while len(claimed) < 7:  # three seconds of Redis's clock
                    claimed.add(await valkey.hget(event_keys(0, event.event_id)[0], "loading_at"))
                    await asyncio.sleep(0.05)
                assert reads == [event.event_id]
                slow.set()
                await asyncio.gather(*asking)
        finally:
            slow.set()
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
    assert reads == [event.event_id]
