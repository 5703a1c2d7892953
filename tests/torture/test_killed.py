"""kill -9 of each process of a service that sells, at random moments."""

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest

from tests.deployment import META, USUAL, Build, Deployment
from tests.http.conftest import LoggedRole
from tests.servers import wait_until
from tests.torture.broken import FORGETS_KEYS, without
from tests.torture.faults import in_one_sale
from tests.torture.killing import KILLS
from tests.torture.people import IMPATIENT_S, PATIENCE_S
from tests.torture.sale import Sale, deployed, holds, judge, selling

PARTITIONED = (USUAL, Build({"ONSALE_PARTITIONS": "3"}))
"""Every other sale has its events in three partitions, each with epochs and seqs of its own."""

SERVES = '"event": "serving"'
RESUMES_S = 5.0

NO_TRANSACTION = (
    """            async with self._connection.transaction():
                yield await self._cursors(_LOCK_CURSORS, wanted)""",
    """            async with asyncio.timeout(99):
                yield await self._cursors(_LOCK_CURSORS, wanted)""",
)
DAWDLES = (
    """        await Projection(self.connection).carry(placed, rows.users)
""",
    """        await __import__("asyncio").sleep(0.05)
        await Projection(self.connection).carry(placed, rows.users)
""",
)
"""Journal and cursor are written by one statement: what can come apart is the rest."""


@pytest.mark.torture("valkey_killed")
async def test_valkey_is_killed(template: Path, tmp_path: Path, seed: int) -> None:
    """No answer is lost, nothing is done twice, and the record is what the answers say."""
    async with deployed(tmp_path, template, PARTITIONED[seed % 2]) as deployment:
        holds(await _valkey_killed(deployment, seed))


async def _valkey_killed(deployment: Deployment, seed: int, *, control: bool = False) -> list[str]:
    async with selling("valkey_killed", seed, deployment) as sale:
        for _ in range(in_one_sale(sale.fault)):
            await sale.some(5, 120)
            await sale.do(deployment.restart_valkey)
    return await judge(sale, control=control)


@pytest.mark.torture("valkey_killed")
async def test_control_of_valkey_killed(template: Path, tmp_path: Path) -> None:
    """Without the memory of keys a repeat is answered as another request."""
    build = without(tmp_path, FORGETS_KEYS)
    async with deployed(tmp_path, template, build) as deployment:
        assert await _valkey_killed(deployment, 0, control=True)


@pytest.mark.torture("api_killed")
async def test_an_api_process_is_killed(template: Path, tmp_path: Path, seed: int) -> None:
    """What it had under way is found out from the other: done once, and answered as it was."""
    async with deployed(tmp_path, template, PARTITIONED[seed % 2]) as deployment:
        holds(await _api_killed(deployment, seed))


async def _api_killed(deployment: Deployment, seed: int, *, control: bool = False) -> list[str]:
    async with selling("api_killed", seed, deployment) as sale:
        for _ in range(in_one_sale(sale.fault)):
            await sale.some(5, 120)
            api = sale.chance.choice(deployment.apis)
            before = api.said(SERVES)
            await sale.do(partial(deployment.restart_api, api))
            # Now and then the next one dies before it serves, and the other alone or nobody does.
            if sale.chance.random() < 0.8:
                serves = partial(_has_said_more, api, before)
                await asyncio.to_thread(wait_until, serves, what="it serves again")
    return await judge(sale, control=control)


def _has_said_more(api: LoggedRole, before: int) -> bool:
    return api.said(SERVES) > before


@pytest.mark.torture("api_killed")
async def test_control_of_api_killed(template: Path, tmp_path: Path) -> None:
    """Without the memory of keys who repeats elsewhere is answered as somebody else."""
    build = without(tmp_path, FORGETS_KEYS)
    async with deployed(tmp_path, template, build) as deployment:
        assert await _api_killed(deployment, 0, control=True)


@pytest.mark.torture("postgresql_killed")
async def test_postgresql_is_killed(template: Path, tmp_path: Path, seed: int) -> None:
    """Nothing is lost, nothing on record twice; and the writer goes on within five seconds."""
    async with deployed(tmp_path, template, PARTITIONED[seed % 2]) as deployment:
        holds(await _postgresql_killed(deployment, seed))


async def _postgresql_killed(
    deployment: Deployment, seed: int, *, control: bool = False
) -> list[str]:
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with selling("postgresql_killed", seed, deployment, patience_s=patience_s) as sale:
        for _ in range(in_one_sale(sale.fault)):
            await sale.some(5, 120)
            kill = sale.chance.choice([*KILLS.values()])
            await sale.do(partial(deployment.restart_postgresql, kill))
            await _records(sale, deployment)
    return await judge(sale, control=control)


async def _records(sale: Sale, deployment: Deployment) -> None:
    """Wait until Redis knows that what it had a moment ago is on record."""
    began = time.monotonic()
    async with asyncio.timeout(sale.people.patience_s), deployment.valkey() as client:
        wanted = await client.hget(META, "seq")
        while int(await client.hget(META, "recorded")) < int(wanted):
            await asyncio.sleep(0.01)
    if (took := time.monotonic() - began) > RESUMES_S:
        sale.found.append(f"nothing came on record for {took:.1f} s")


@pytest.mark.torture("postgresql_killed")
async def test_control_of_postgresql_killed(template: Path, tmp_path: Path) -> None:
    """Where a commit is no one transaction, the journal has what the tables lack."""
    build = without(
        tmp_path,
        ("service/ledger.py", *NO_TRANSACTION),
        ("service/record.py", *DAWDLES),
    )
    async with deployed(tmp_path, template, build) as deployment:
        assert await _postgresql_killed(deployment, 0, control=True)
