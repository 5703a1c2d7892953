"""A store that is wiped, or comes back older, at random points of a sale under load.

Two API processes, a writer, and people whose every answer is kept. It is found before the first
answer of the new life; it ends consistent, or closed with a range until an operator has confirmed
it; nothing on record is ever oversold, nothing that was answered `recorded` is ever lost, and what
else is lost is what had not reached the record.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from random import Random

import pytest

from service.outbox import Change
from tests.restores.attendance import Attendance, attending
from tests.restores.deployment import Deployment, Fault
from tests.restores.lives import (
    Lost,
    OnRecord,
    contradictions,
    find_lost,
    missing_though_recorded,
    read_record,
)
from tests.restores.settling import Confirmed, sells_again

TICKETS = 25

at_each_level = pytest.mark.parametrize("level", ["fsync", "recorded"])


@at_each_level
async def test_a_valkey_that_is_wiped(deployment: Deployment, seed: int, level: str) -> None:
    """FLUSHALL: what was not on record is lost, exactly that, and everything else is sold on."""
    point = Random(f"wiped {level} {seed}")
    async with attending(deployment, TICKETS, seed, level) as people:
        await people.grow(point.randint(60, 300))
        async with _behind(deployment, people, point):
            fault = await deployment.wipe_valkey()
        confirmed = await sells_again(deployment, people)
    record, lost = await _ends_well(deployment, people, fault)
    _lost_what_was_not_recorded(fault, record, lost, confirmed)


@at_each_level
async def test_an_older_valkey(deployment: Deployment, seed: int, level: str) -> None:
    """Restored from a copy of the same epoch: rebuilt from the record before it answers."""
    await _valkey_goes_back(deployment, seed, level, epochs=0)


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
    record, lost = await _ends_well(deployment, people, fault)
    _lost_what_was_not_recorded(fault, record, lost, confirmed)


@at_each_level
async def test_an_older_postgresql(deployment: Deployment, seed: int, level: str) -> None:
    """Restored from a copy of the same epoch: brought forward, and nothing is lost."""
    await _postgresql_goes_back(deployment, seed, level, epochs=0)


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
    _, lost = await _ends_well(deployment, people, fault)
    assert lost == Lost()


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
    record, lost = await _ends_well(deployment, people, fault, kept=False)
    _lost_what_was_not_recorded(fault, record, lost, confirmed)


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


async def _ends_well(
    deployment: Deployment, people: Attendance, fault: Fault, *, kept: bool = True
) -> tuple[OnRecord, Lost]:
    """Hold both stores to the operator's commands, and every answer to the history of its life.

    `kept`: what was recorded is still there, or an operator has said that it need not be.
    """
    await deployment.is_recorded()
    for command in ("reconcile", "audit"):
        ended = await asyncio.to_thread(deployment.onsale, command)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    record = await read_record(deployment.servers.postgresql_url, people.event_id)
    assert not kept or missing_though_recorded(people.heard, record) == []
    assert contradictions(people, TICKETS, fault, record) == []
    return record, find_lost(people.heard, record.lineage)


def _lost_what_was_not_recorded(
    fault: Fault, record: OnRecord, lost: Lost, confirmed: Confirmed | None
) -> None:
    """What was answered and is lost had not reached the record, and the report says which it is."""
    if lost.ends is None:
        assert confirmed is None
        return
    had = {change.seq: change for change in fault.had}
    for one in lost.heard:
        assert one.at is not None
        assert had[one.at.seq].user_id == one.told.user
    kept = {(change.epoch, change.seq) for change in fault.had if change.event_id}
    on_record = {(change.epoch, change.seq) for change in record.changes}
    assert {at for at in kept if at[1] <= lost.ends} <= on_record
    assert not {at for at in kept if at[1] > lost.ends} & on_record
    if confirmed is None:
        assert lost.last == 0
        return
    # A writer that was frozen had read what it put on record after the report.
    first = range(confirmed.first, lost.ends + 1)
    assert {change.seq for change in fault.had if change.seq in first} == {*first}
    assert not first or fault.writer_was_frozen
    assert lost.last <= confirmed.last <= max(had)
