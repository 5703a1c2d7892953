"""kill -9 of the writer at each point of its work, and a look at both stores while it is dead."""

import asyncio
import os
import signal
from pathlib import Path
from random import Random

import asyncpg
import pytest

from service.lineage import NOWHERE, Position
from service.redis_store import RedisStore
from tests.conftest import Record
from tests.deployment import USUAL, Build
from tests.http.conftest import LoggedRole
from tests.torture.broken import without
from tests.torture.failing_writer import ENDED, POINTS, VARIABLE
from tests.torture.faults import in_one_sale
from tests.torture.people import IMPATIENT_S, PATIENCE_S
from tests.torture.sale import Sale, deployed, holds, judge, selling

NAME = "writer_killed"
EACH = in_one_sale(NAME)
PASSINGS_MAX = 12
TRIMS_MAX = 3
"""There are fewer of these than of commits."""


class FailingWriter(LoggedRole):
    """A writer that ends at points of its own."""

    module = "tests.torture.failing_writer"


def drawn(seed: int) -> str:
    """Return where each life of the writer ends; every point is met as often as any other."""
    chance = Random(f"{NAME} {seed}")
    names = [POINTS[number % len(POINTS)] for number in range(EACH)]
    chance.shuffle(names)
    most = {name: TRIMS_MAX if name == "before_trim" else PASSINGS_MAX for name in POINTS}
    return " ".join(f"{name}:{chance.randint(1, most[name])}" for name in names)


@pytest.mark.torture(NAME)
async def test_the_writer_is_killed(template: Path, tmp_path: Path, seed: int) -> None:
    """Nothing is told or trimmed of what is not on record; nothing is skipped or done twice."""
    holds(await _writer_killed(template, tmp_path, seed, USUAL, drawn(seed)))


async def _writer_killed(
    template: Path, directory: Path, seed: int, build: Build, points: str, *, control: bool = False
) -> list[str]:
    settings = {**build.settings, VARIABLE: points}
    build = Build(settings=settings)
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with deployed(directory, template, build, writer=FailingWriter) as deployment:
        async with selling(NAME, seed, deployment, patience_s=patience_s) as sale:
            await _end_each_life(sale, len(points.split()))
        return await judge(sale, control=control)


async def _end_each_life(sale: Sale, lives: int) -> None:
    writer = sale.deployment.writer
    record = await asyncpg.connect(sale.deployment.servers.postgresql_url)
    store = RedisStore(sale.deployment.servers.redis_url)
    try:
        for life in range(1, lives + 1):
            async with asyncio.timeout(sale.people.patience_s):
                while writer.said(ENDED) < life:
                    await asyncio.sleep(0.005)
            sale.found += await _wrong_while_dead(sale, record, store)
            os.kill(writer.pid, signal.SIGUSR1)
            sale.runs += 1
            # Once the next life has ended too, everybody may be waiting for the record.
            await sale.some(1, 40, unless=lambda: writer.said(ENDED) > life)  # noqa: B023  # called here
    finally:
        await store.aclose()
        await record.close()


async def _wrong_while_dead(sale: Sale, record: Record, store: RedisStore) -> list[str]:
    """Compare what was told with what is on record, which nobody adds to now."""
    told = [
        one
        for one in sale.people.history
        if one.seq is not None and one.body.get("durability") == "recorded"
    ]
    meta = await store.meta(0)
    row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
    recorded = Position(*row) if row else NOWHERE
    wrong = [
        f"{one} {one.body}: only {recorded} is on record"
        for one in told
        if (one.seq or 0) > recorded.seq
    ]
    if meta is None:
        return wrong
    if meta.recorded > recorded:
        wrong.append(f"Redis was told of {meta.recorded}, and on record is {recorded}")
    _, first = await store.outbox_size(0)
    if recorded < meta.last and not 0 < first <= recorded.seq + 1:
        wrong.append(f"the outbox begins with {first}, and on record is {recorded}")
    return wrong


BEFORE_COMMIT = (
    "service/writer.py",
    "                committed[partition] = await apply(application, partition, found, ready)\n",
)
"""The last that is done in the transaction."""

TOO_EARLY = {
    "watermark": "self._redis.raise_watermark(partition, committed[partition])",
    "trim": "self._redis.trim_outbox(partition, committed[partition])",
}


@pytest.mark.parametrize("what", TOO_EARLY)
@pytest.mark.torture("writer_killed")
async def test_control_of_writer_killed(template: Path, tmp_path: Path, what: str) -> None:
    """What comes before COMMIT is seen where no COMMIT comes."""
    file, last = BEFORE_COMMIT
    build = without(tmp_path, (file, last, f"{last}                await {TOO_EARLY[what]}\n"))
    points = " ".join(["before_commit:5"] * 4)
    assert await _writer_killed(template, tmp_path, 0, build, points, control=True)
