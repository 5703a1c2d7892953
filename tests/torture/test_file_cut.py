"""Valkey's file cut at a random byte: each script's effects are there as a whole, or not at all."""

import asyncio
import re
import shutil
from pathlib import Path
from random import Random

import asyncpg
import pytest

from tests.crowd import connected
from tests.deployment import USUAL, Build, Deployment
from tests.servers import Servers
from tests.torture.broken import without
from tests.torture.faults import in_one_sale
from tests.torture.history import Row, read_journal
from tests.torture.redis_state import differences
from tests.torture.sale import Sale, deployed, holds, judge, selling

INCREMENTS = "appendonlydir/appendonly.aof.1.incr.aof"
_UNIT = re.compile(rb"\*1\r\n\$(5\r\nMULTI|4\r\nEXEC)\r\n")


@pytest.mark.torture("file_cut")
async def test_file_is_cut(template: Path, tmp_path: Path, seed: int) -> None:
    """What a cut file holds is the model's state at its seq; with the record it serves again."""
    async with deployed(tmp_path / "sold", template) as deployment:
        sale = await _sold(deployment, seed)
        rows = await read_journal(deployment.servers.postgresql_url)
        wrong: list[str] = []
        for number in range(in_one_sale(sale.fault)):
            cut = _cut(deployment, tmp_path / f"cut{number}", sale.chance)
            sale.runs += 1
            wrong += await asyncio.to_thread(_alone, cut, rows)
            if number % 10 == 0:
                wrong += await _served(deployment, cut, rows)
            shutil.rmtree(cut)
        holds(await judge(sale, also=wrong))


@pytest.mark.torture("file_cut")
async def test_control_of_file_cut(template: Path, tmp_path: Path) -> None:
    """A file whose units are taken apart is seen to be, and so is a Redis that nobody compares."""
    async with deployed(tmp_path / "sold", template) as deployment:
        sale = await _sold(deployment, 0)
        rows = await read_journal(deployment.servers.postgresql_url)
        wrong: list[str] = []
        for number in range(10):
            cut = _cut(deployment, tmp_path / f"cut{number}", sale.chance, whole=False)
            sale.runs += 1
            wrong += await asyncio.to_thread(_alone, cut, rows)
        assert wrong
        cut = _cut(deployment, tmp_path / "older", sale.chance)
        old = ("service/verdicts.py", "if closed.last < recorded:", "if not recorded:")
        shutil.rmtree(deployment.directory / "answered")
        served = await _served(deployment, cut, rows, without(tmp_path, old))
        assert served
        assert await judge(sale, control=True, also=[*served, *wrong])


async def _sold(deployment: Deployment, seed: int) -> Sale:
    """Hold a sale to its end, all of it on record, and copy what the stores and workers keep."""
    async with selling("file_cut", seed, deployment) as sale:
        await sale.people.grow(1_000)
    await deployment.is_recorded()
    for store in ("valkey", "postgresql"):
        await asyncio.to_thread(deployment.copy, store)
    (deployment.directory / "postgresql" / "postmaster.pid").unlink()
    answered = deployment.servers.run.data / "answered"
    shutil.copytree(answered, deployment.directory / "answered")
    return sale


def _cut(deployment: Deployment, directory: Path, chance: Random, *, whole: bool = True) -> Path:
    """Return a data directory with the sale's file, cut somewhere."""
    data = directory / "data"
    shutil.copytree(deployment.directory / "valkey", data / "valkey")
    file = data / "valkey" / INCREMENTS
    held = file.read_bytes()
    if not whole:
        held = _UNIT.sub(b"", held)
    file.write_bytes(held[: chance.randrange(len(held))])
    return data


def _alone(data: Path, rows: list[Row]) -> list[str]:
    """Start Valkey on it, and compare."""
    servers = Servers(data)
    try:
        servers.start_valkey()
        return [*differences(servers.redis_url, rows)]
    finally:
        servers.stop()


async def _served(sold: Deployment, data: Path, rows: list[Row], build: Build = USUAL) -> list[str]:
    """Start the service on it, on the record, and on what was answered; say what is wrong."""
    directory = data.parent / "served"
    deployment = Deployment(directory, sold.directory / "postgresql", build)
    shutil.copytree(data / "valkey", directory / "data" / "valkey")
    if (answered := sold.directory / "answered").exists():
        shutil.copytree(answered, directory / "data" / "answered")
    try:
        await asyncio.to_thread(deployment.start)
        return await _serves(deployment, rows)
    except AssertionError as error:
        return [f"it does not serve: {error}"]
    finally:
        await asyncio.to_thread(deployment.stop)


async def _serves(deployment: Deployment, rows: list[Row]) -> list[str]:
    wrong = []
    try:
        async with asyncio.timeout(30), connected(deployment.url, 1) as (client,):
            booked = await client.post_until_answered("/book", {"eventId": 1, "userId": "later"})
            if booked.status not in (201, 202):
                wrong.append(f"a booking is answered {booked}")
            await deployment.is_recorded()
    except TimeoutError:
        return ["a booking is not answered, or not put on record"]
    for command in ("reconcile", "audit"):
        ended = await asyncio.to_thread(deployment.onsale, command)
        if ended.returncode:
            wrong.append(f"onsale {command} exits with {ended.returncode}: {ended.stdout}")
    found = await read_journal(deployment.servers.postgresql_url)
    if found[: len(rows)] != rows:
        wrong.append("the record has lost changes")
    # Redis has all that is on record again: from the record, or where the cut took no change.
    verdict, beginning = await _newest_epoch(deployment)
    if verdict not in ("rebuild", "continue") or beginning != rows[-1].change.seq:
        wrong.append(f"the stores were compared, and it came to {verdict} at {beginning}")
    return wrong


async def _newest_epoch(deployment: Deployment) -> tuple[str, int]:
    connection = await asyncpg.connect(deployment.servers.postgresql_url)
    try:
        row = await connection.fetchrow(
            "SELECT verdict, beginning FROM epochs ORDER BY epoch DESC LIMIT 1"
        )
    finally:
        await connection.close()
    assert row is not None
    return row["verdict"], row["beginning"]
