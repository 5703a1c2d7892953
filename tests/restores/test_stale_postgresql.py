"""A PostgreSQL that comes back older, at random points of a sale under load.

The same sale as with a Valkey. What it lacks is brought forward from the outbox before anything is
answered `recorded`, trimmed or loaded from it; where nothing leads on from it, the partition stays
closed until an operator has confirmed the range.
"""

import asyncio
import time
from random import Random

import pytest

from service.outbox import Change
from tests.deployment import Deployment, Fault
from tests.restores.attendance import attending
from tests.restores.ending import TICKETS, ends_well, lost_what_was_not_recorded
from tests.restores.lives import Lost
from tests.restores.settling import sells_again

at_each_level = pytest.mark.parametrize("level", ["fsync", "recorded"])


@pytest.mark.torture("postgresql_older")
@at_each_level
async def test_an_older_postgresql(deployment: Deployment, seed: int, level: str) -> None:
    """Restored from a copy of the same epoch: brought forward, and nothing is lost."""
    await _postgresql_goes_back(deployment, seed, level, epochs=0)


@pytest.mark.torture("postgresql_of_an_older_epoch")
@at_each_level
async def test_a_postgresql_of_an_older_epoch(
    deployment: Deployment, seed: int, level: str
) -> None:
    """It lacks epochs as well as changes."""
    await _postgresql_goes_back(deployment, seed, level, epochs=1 + seed % 2)


async def _postgresql_goes_back(
    deployment: Deployment, seed: int, level: str, *, epochs: int
) -> None:
    point = Random(f"postgresql {epochs} {level} {seed}")
    async with attending(deployment, TICKETS, seed, level) as people:
        await people.grow(point.randint(60, 200))
        await asyncio.to_thread(deployment.copy, "postgresql")
        for _ in range(epochs):
            await people.grow(point.randint(1, 60))
            await deployment.begin_another_epoch()
        await people.grow(point.randint(1, 150))
        fault = await asyncio.to_thread(deployment.restore_postgresql)
        assert await sells_again(deployment, people) is None
    _, lost = await ends_well(deployment, people, fault)
    assert lost == Lost()


@pytest.mark.torture("postgresql_cut_off")
async def test_a_postgresql_that_nothing_leads_on_from(deployment: Deployment, seed: int) -> None:
    """What it lacks was trimmed: closed until that is confirmed to be lost, and sold on from it."""
    point = Random(f"trimmed {seed}")
    fault = Fault(0, 0)
    had: list[Change] = []

    async def closed() -> None:
        nonlocal fault
        now = time.monotonic()
        if not fault.until:
            fault = Fault(now, now, had + [c for c in await deployment.changes() if c not in had])

    async with attending(deployment, TICKETS, seed, "fsync") as people:
        await people.grow(point.randint(60, 200))
        await asyncio.to_thread(deployment.copy, "postgresql")
        await people.grow(point.randint(40, 150))
        with deployment.writer_frozen():
            had += await deployment.trim()
            await asyncio.to_thread(deployment.restore_postgresql)
        await people.are_told("closed")
        confirmed = await sells_again(deployment, people, closed)
    assert confirmed is not None
    record, lost = await ends_well(deployment, people, fault, kept=False)
    lost_what_was_not_recorded(fault, record, lost, confirmed)
