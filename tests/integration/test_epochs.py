"""Epochs, when there are very many, or when two processes start them against each other."""

import asyncio
from functools import partial

import pytest

from service.handshake import Handshake, Opened
from service.handshakes import make_handshakes
from service.ledger import connect
from service.lineage import NOWHERE, Position
from service.orders import Order
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Record, Stores

MANY = 5_000


@pytest.fixture
async def many_epochs(record: Record) -> None:
    """Five thousand epochs of one change each; the cursor is in the newest."""
    await record.execute(
        "INSERT INTO epochs (partition, epoch, verdict, beginning, predecessor, reason, decided_at)"
        " SELECT 0, n, 'continue', n - 1, n - 1, 'a test', now() - interval '1 day'"
        f" FROM generate_series(1, {MANY}) AS n"
    )
    await record.execute(
        "INSERT INTO cursors (partition, epoch, seq, head) VALUES (0, $1, $1, '')", MANY
    )


_READ = (
    "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::integer"
    " FROM pg_stat_xact_user_tables WHERE relname = 'epochs'"
)
"""Rows of the table that the transaction has read."""


@pytest.mark.usefixtures("many_epochs")
@pytest.mark.parametrize("analysed", [False, True])
async def test_a_commit_reads_the_epochs_from_its_cursor_on(
    stores: Stores, record: Record, *, analysed: bool
) -> None:
    """With five thousand on record: its own, whatever the planner knows of the table."""
    if analysed:
        await record.execute("ANALYZE epochs")
    planned_once = partial(connect, plan_cache_mode="force_generic_plan")  # as the writer has it
    async with await planned_once(stores.postgresql_url, purpose="test") as ledger:
        for _ in range(8):
            async with ledger.applying([0]) as application:
                assert [e.epoch for e in application.lineages[0].epochs] == [MANY]
                read = await application.connection.fetchval(_READ)
    assert read < 30  # of all eight, as far as the session has not told them yet


@pytest.mark.usefixtures("many_epochs")
async def test_a_trim_and_a_vouching_read_what_they_need(stores: Stores, record: Record) -> None:
    """Not the whole lineage, every second or for each look."""
    async with await connect(stores.postgresql_url, purpose="test") as ledger, ledger.snapshot():
        assert await ledger.position_of(0, MANY - 10) == Position(MANY - 10, MANY - 10)
        assert await ledger.newest_epoch(0) == MANY
        connection = ledger._connection  # its own transaction counts for it alone
        assert await connection.fetchval(_READ) <= 15


async def test_handshakes_that_disagree_start_three_epochs_a_second(
    settings: Settings, redis_store: RedisStore, record: Record
) -> None:
    """Two processes of which neither adopts what the other has opened."""
    one, other = (make_handshakes(settings, redis_store, name)[0] for name in ("one", "other"))

    async def insist(handshake: Handshake) -> None:
        for _ in range(4):
            assert isinstance(await handshake.run(NOWHERE, adopt=False), Opened)

    await asyncio.gather(insist(one), insist(other))
    began = [row["at"] for row in await record.fetch(
        "SELECT extract(epoch FROM decided_at)::float AS at FROM epochs ORDER BY epoch"
    )]  # fmt: skip
    assert len(began) == 8
    assert all(b - a > 0.99 for a, b in zip(began, began[3:], strict=False))


async def test_a_lone_recovery_does_not_wait(
    stores: Stores, handshake: Handshake, record: Record
) -> None:
    """The third epoch within a second is not late, nor is an operator's order ever."""
    async with await connect(stores.postgresql_url, purpose="test") as ledger:
        for _ in range(2):
            await handshake.run(NOWHERE, adopt=False)
        assert await ledger.pause_before_epoch(0) == 0
        for _ in range(2):
            await handshake.run(NOWHERE, order=Order("a test", "rebuild"))
        await record.execute("UPDATE epochs SET decided_at = now()")
        assert 0 < await ledger.pause_before_epoch(0) <= 1
        await record.execute("UPDATE epochs SET decided_at = now() + interval '1 hour'")
        assert await ledger.pause_before_epoch(0) == 0
