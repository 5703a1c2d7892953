"""What a worker knows of its readiness, beside what the whole service shows."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest

from service.engine import Engine
from service.errors import Problem
from service.lineage import Position
from service.partition import Partition
from service.readiness import Readiness
from service.suspension import Suspension
from tests.integration.conftest import UNBOUNDED, eventually


@contextlib.asynccontextmanager
async def asking(
    partitions: list[Partition], suspension: Suspension, *, needs_record: bool = False
) -> AsyncIterator[Readiness]:
    """Ask meanwhile."""
    readiness = Readiness(
        partitions, suspension, unrecorded_max=UNBOUNDED, needs_record=needs_record
    )
    readiness.start()
    try:
        yield readiness
    finally:
        await readiness.stop()


def is_ready(readiness: Readiness) -> Callable[[], Awaitable[bool]]:
    """Return a condition for `eventually`."""

    async def condition() -> bool:
        return not readiness.problems()

    return condition


async def test_a_suspension_shows_at_once(engine: Engine) -> None:
    """Not with the next question only; and neither does its end wait for one."""
    suspension = Suspension()
    async with asking([*engine._partitions], suspension) as readiness:
        with pytest.raises(Problem):
            readiness.check()  # nobody has answered yet
        await eventually(is_ready(readiness))
        suspension.suspend("redis", "Redis has a setting")
        with pytest.raises(Problem, match="unavailable: Redis has a setting"):
            readiness.check()
        suspension.resume("redis")
        suspension.away = "The record is away."
        with pytest.raises(Problem, match="unavailable: The record is away"):
            readiness.check()
        suspension.away = ""
        readiness.check()


class Standing:
    """A partition whose changes go on record when the test says so."""

    number = 0
    booked_at = -math.inf

    def __init__(self) -> None:
        self.seq, self.recorded, self.asked = 7, 7, 0

    async def probe(self, *_: object) -> tuple[Position, int]:
        self.asked += 1
        return Position(1, self.seq), self.recorded


async def test_a_record_that_stands_still_is_not_ready_where_all_wait_for_it() -> None:
    """Where W has not moved between two questions, and lies below what R was at the first."""
    standing: Any = Standing()
    partitions = [cast("Partition", standing)]
    async with asking(partitions, Suspension(), needs_record=True) as readiness:
        await eventually(is_ready(readiness))
        standing.seq = 9
        async with asyncio.timeout(45):
            while not readiness.problems():
                await asyncio.sleep(0.01)
        assert readiness.problems()[0].code == "record_behind"
        standing.recorded = 9
        await eventually(is_ready(readiness))
        for _ in range(3):  # a writer that keeps a few changes behind R is at work
            standing.seq, standing.recorded = standing.seq + 5, standing.recorded + 5
            asked = standing.asked
            while standing.asked == asked:
                await asyncio.sleep(0.01)
            assert not readiness.problems()


async def test_a_record_that_stands_still_is_none_of_the_others(engine: Engine) -> None:
    """At `fsync` bookings go on without it, up to the bound."""
    standing: Any = Standing()
    standing.seq = 9
    async with asking([cast("Partition", standing)], Suspension()) as readiness:
        while standing.asked < 4:
            await asyncio.sleep(0.01)
        readiness.check()


async def test_a_booking_that_was_taken_saves_the_question(engine: Engine) -> None:
    """Under load nothing is asked; where none is taken any more, it is asked again."""
    event = await engine.initialize("Event Name", 1)
    partition = engine._partitions[0]
    before = partition.booked_at
    await engine.book(event.event_id, "a")
    assert partition.booked_at > before
    before = partition.booked_at
    await engine.book(event.event_id, "a")  # it stood, which says nothing of the write path
    assert partition.booked_at == before

    standing: Any = Standing()
    loop = asyncio.get_running_loop()
    async with asking([cast("Partition", standing)], Suspension()) as readiness:
        await eventually(is_ready(readiness))
        asked, standing.booked_at = standing.asked, loop.time() + 1.5
        while loop.time() < standing.booked_at:
            assert standing.asked <= asked + 1  # one may have been on its way
            await asyncio.sleep(0.05)
        while standing.asked <= asked + 1:
            await asyncio.sleep(0.01)
