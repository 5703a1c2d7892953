"""What a worker remembers of events that are none, and what it makes of a record that is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from service import loader
from service.errors import Problem
from service.ledger import LedgerPool
from service.lineage import NOWHERE
from service.loader import Loader
from service.partition import Partition


class Pool:
    """A record that has no event at all, or is away; it counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator["Pool"]:
        if self.away:
            raise ConnectionRefusedError
        yield self

    async def event_status(self, _: int) -> None:
        self.asked += 1


@pytest.fixture
def pool() -> Pool:
    """The record."""
    return Pool()


@pytest.fixture
def loading(pool: Pool) -> Loader:
    """A loader that has loaded nothing."""
    return Loader(cast(Partition, None), cast(LedgerPool, pool))


async def code(loading: Loader, event_id: int) -> str:
    """Return what is said of an event."""
    with pytest.raises(Problem) as caught:
        await loading.load(event_id, NOWHERE, asyncio.get_running_loop().time() + 5)
    return caught.value.code


async def test_a_miss_saves_the_next_question(loading: Loader, pool: Pool) -> None:
    """Asked a second time at once, PostgreSQL hears of it once; of another event it does."""
    assert [await code(loading, 1) for _ in range(5)] == ["event_not_found"] * 5
    assert pool.asked == 1
    await code(loading, 2)
    assert pool.asked == 2


async def test_a_miss_is_remembered_briefly(
    loading: Loader, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds later somebody may have drawn it."""
    await code(loading, 1)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 2)
    await code(loading, 1)
    assert pool.asked == 2


async def test_misses_are_bounded(
    loading: Loader, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for ids at random fills nobody's memory: the oldest are forgotten."""
    monkeypatch.setattr(loader, "_MISSES_MAX", 10)
    for event_id in range(1, 31):
        await code(loading, event_id)
    assert len(loading._misses) == 10
    await code(loading, 30)
    assert pool.asked == 30
    await code(loading, 1)
    assert pool.asked == 31


async def test_without_a_record_nothing_is_said_of_an_event(loading: Loader, pool: Pool) -> None:
    """503, and nothing is remembered of it."""
    pool.away = True
    assert await code(loading, 1) == "unavailable"
    pool.away = False
    assert await code(loading, 1) == "event_not_found"
    assert pool.asked == 1
