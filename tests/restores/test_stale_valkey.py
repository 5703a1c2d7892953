"""A Valkey that is wiped, or comes back older, at random points of a sale under load.

Two API processes, a writer, and people whose every answer is kept. It is found before the first
answer of the new life; it ends consistent, or closed with a range until an operator has confirmed
it; nothing on record is ever oversold, nothing that was answered `recorded` is ever lost, and what
else is lost is what had not reached the record.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random

import pytest

from tests.deployment import Deployment
from tests.restores.attendance import Attendance, attending
from tests.restores.ending import TICKETS, ends_well, lost_what_was_not_recorded
from tests.restores.settling import sells_again

at_each_level = pytest.mark.parametrize("level", ["fsync", "recorded"])


@pytest.mark.torture("valkey_wiped")
@at_each_level
async def test_a_valkey_that_is_wiped(deployment: Deployment, seed: int, level: str) -> None:
    """FLUSHALL: what was not on record is lost, exactly that, and everything else is sold on."""
    point = Random(f"wiped {level} {seed}")
    async with attending(deployment, TICKETS, seed, level) as people:
        await people.grow(point.randint(60, 300))
        async with _behind(deployment, people, point):
            fault = await deployment.wipe_valkey()
        confirmed = await sells_again(deployment, people)
    record, lost = await ends_well(deployment, people, fault)
    lost_what_was_not_recorded(fault, record, lost, confirmed)


@pytest.mark.torture("valkey_older")
@at_each_level
async def test_an_older_valkey(deployment: Deployment, seed: int, level: str) -> None:
    """Restored from a copy of the same epoch: rebuilt from the record before it answers."""
    await _valkey_goes_back(deployment, seed, level, epochs=0)


@pytest.mark.torture("valkey_of_an_older_epoch")
@at_each_level
async def test_a_valkey_of_an_older_epoch(deployment: Deployment, seed: int, level: str) -> None:
    """Its scripts, its seqs and its state are of a life that has ended."""
    await _valkey_goes_back(deployment, seed, level, epochs=1 + seed // 2 % 2)


async def _valkey_goes_back(deployment: Deployment, seed: int, level: str, *, epochs: int) -> None:
    point = Random(f"valkey {epochs} {level} {seed}")
    async with (
        attending(deployment, TICKETS, seed, level) as people,
        contextlib.AsyncExitStack() as stack,
    ):
        await people.grow(point.randint(60, 200))
        await asyncio.to_thread(deployment.copy, "valkey")
        # The record's end may be of the copy's own epoch still, and later epochs are on record.
        early = epochs > 0 and seed % 2 == 0
        if early:
            stack.enter_context(deployment.writer_frozen())
        for _ in range(epochs):
            await people.grow_or_wait(point.randint(1, 60))
            await deployment.begin_another_epoch()
        await people.grow_or_wait(point.randint(1, 150))
        if not early:
            await stack.enter_async_context(_behind(deployment, people, point))
        fault = await asyncio.to_thread(deployment.restore_valkey)
        await stack.aclose()
        confirmed = await sells_again(deployment, people)
    record, lost = await ends_well(deployment, people, fault)
    lost_what_was_not_recorded(fault, record, lost, confirmed)


@contextlib.asynccontextmanager
async def _behind(deployment: Deployment, people: Attendance, point: Random) -> AsyncIterator[None]:
    """At every other point the writer stands still for some answers before the fault."""
    if point.random() < 0.5:
        yield
        return
    count = point.randint(1, 60)
    with deployment.writer_frozen():
        await people.grow_or_wait(count)
        yield
