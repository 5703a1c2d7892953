"""A writer that is frozen for seconds while another goes on, and wakes up among its changes."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.deployment import META, USUAL, Build, Deployment
from tests.http.conftest import LoggedRole
from tests.torture.broken import without
from tests.torture.faults import in_one_sale
from tests.torture.people import IMPATIENT_S, PATIENCE_S
from tests.torture.sale import Sale, deployed, holds, judge, selling

NAME = "zombie_writer"
FROZEN_S = 3.0

STOPPED = "THE WRITER HAS STOPPED"


@pytest.mark.torture(NAME)
async def test_a_writer_is_frozen_and_wakes(template: Path, tmp_path: Path, seed: int) -> None:
    """The other takes over whatever it held; the first finds that it has nothing to add."""
    holds(await _zombies(template, tmp_path, seed, USUAL))


async def _zombies(
    template: Path, directory: Path, seed: int, build: Build, *, control: bool = False
) -> list[str]:
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with deployed(directory, template, build) as deployment:
        other = LoggedRole("writer", deployment.environment, directory / "other_writer.log")
        writers = [deployment.writer, other]
        try:
            other.start()
            async with selling(NAME, seed, deployment, patience_s=patience_s) as sale:
                for _ in range(in_one_sale(NAME)):
                    await sale.some(20, 200)
                    await _freeze(sale, sale.chance.choice(writers))
                    await sale.some(20, 60)
                    sale.runs += 1
            if any(writer.said(STOPPED) for writer in writers):
                sale.found.append("a writer has stopped")
            return await judge(sale, control=control)
        finally:
            other.stop()


async def _freeze(sale: Sale, writer: LoggedRole) -> None:
    """Freeze it for three seconds at least, and until the other has put on record what there is."""
    os.kill(writer.pid, signal.SIGSTOP)
    try:
        thaws_at = asyncio.get_running_loop().time() + FROZEN_S
        await _put_on_record(sale.deployment, sale.people.patience_s)
        await asyncio.sleep(thaws_at - asyncio.get_running_loop().time())
    finally:
        os.kill(writer.pid, signal.SIGCONT)


async def _put_on_record(deployment: Deployment, patience_s: float) -> None:
    async with asyncio.timeout(patience_s), deployment.valkey() as client:
        wanted = int(await client.hget(META, "seq"))
        while int(await client.hget(META, "recorded")) < wanted:
            await asyncio.sleep(0.01)


NO_LOCK = (
    "service/ledger.py",
    """_LOCK_CURSORS = _CURSORS + " FOR UPDATE\"""",
    "_LOCK_CURSORS = _CURSORS",
)
# The second lock on that door: the journal has each seq once.
TWICE_IS_NO_ERROR = (
    "service/record.py",
    "AS details) AS changes",
    "AS details) AS changes ON CONFLICT DO NOTHING",
)


@pytest.mark.torture("zombie_writer")
async def test_control_of_zombie_writer(template: Path, tmp_path: Path) -> None:
    """Without the cursor's lock two writers put the same changes on record."""
    build = without(tmp_path, NO_LOCK, TWICE_IS_NO_ERROR)
    assert await _zombies(template, tmp_path, 0, build, control=True)
