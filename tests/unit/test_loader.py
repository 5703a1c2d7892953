"""What a worker remembers of events that are none, and of which record it believes that."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from service import loader
from service.errors import Problem
from service.event_record import Extent, Look
from service.ledger import LedgerPool
from service.lineage import Position
from service.loader import Loader
from service.partition import Partition

MISSED = Position(2, 50)
RECORDED = Position(2, 40)


class Pool:
    """A record that has no event at all, or is away; it counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False
        self.extent = Extent(2, RECORDED)

    @property
    def event_record(self) -> "Pool":
        return self

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator["Pool"]:
        if self.away:
            raise ConnectionRefusedError
        yield self

    async def look(self, *_: int) -> Look:
        self.asked += 1
        return Look(self.extent, drawn=False, event=None)


class Misser:
    """The partition that misses events, whose Redis knows of so much on record."""

    number = 0

    def __init__(self) -> None:
        self.doubted: list[int] = []
        self.epoch = MISSED.epoch

    async def watermark(self, epoch: int) -> Position | None:
        return RECORDED if epoch == self.epoch else None

    def doubt(self, epoch: int) -> None:
        self.doubted.append(epoch)


@pytest.fixture
def pool() -> Pool:
    """The record."""
    return Pool()


@pytest.fixture
def misser() -> Misser:
    """The partition."""
    return Misser()


@pytest.fixture
def loading(pool: Pool, misser: Misser) -> Loader:
    """A loader that has loaded nothing."""
    return Loader(cast(Partition, misser), cast(LedgerPool, pool))


async def load(loading: Loader, event_id: int, missed_at: Position = MISSED) -> None:
    """Load an event as the engine does."""
    await loading.load(event_id, missed_at, asyncio.get_running_loop().time() + 5)


async def code(loading: Loader, event_id: int, missed_at: Position = MISSED) -> str:
    """Return what is said of an event."""
    with pytest.raises(Problem) as caught:
        await load(loading, event_id, missed_at)
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


async def test_a_miss_is_of_its_epoch(loading: Loader, pool: Pool, misser: Misser) -> None:
    """Opened since, then rebuilt: Redis misses an event that there is, in an epoch of its own."""
    await code(loading, 1)
    misser.epoch = 3
    pool.extent = Extent(3, Position(2, 51))
    await code(loading, 1, Position(3, 51))
    assert pool.asked == 2


@pytest.mark.parametrize(
    "extent",
    [
        Extent(2, Position(2, 39)),
        Extent(2, Position(1, 99)),
        Extent(1, RECORDED),
        Extent(3, Position(3, 60)),
        Extent(0, Position(0, 0)),
    ],
    ids=["shorter", "of before", "without the epoch", "of another", "empty"],
)
async def test_a_record_that_may_have_lost_an_event_is_not_believed(
    loading: Loader, pool: Pool, misser: Misser, extent: Extent
) -> None:
    """It is to be compared, and Redis is asked again; nothing is remembered of it."""
    pool.extent = extent
    await load(loading, 1)
    assert misser.doubted == [2]
    pool.extent = Extent(2, RECORDED)
    assert await code(loading, 1) == "event_not_found"
    assert misser.doubted == [2]


async def test_a_record_that_lags_behind_is_believed(
    loading: Loader, pool: Pool, misser: Misser
) -> None:
    """What Redis does not hold was on record before: no miss waits for a writer that is away."""
    assert pool.extent.recorded < MISSED
    assert await code(loading, 1) == "event_not_found"
    assert misser.doubted == []


async def test_a_redis_that_moved_on_is_asked_again(
    loading: Loader, pool: Pool, misser: Misser
) -> None:
    """What is on record now says nothing about an epoch that has ended."""
    misser.epoch = 3
    await load(loading, 1)
    assert (pool.asked, misser.doubted) == (0, [])
