"""Clients that hang up at a random moment: nobody gets another's answer, and nothing is left."""

import asyncio
import contextlib
from pathlib import Path

import httpx
import psutil
import pytest

from tests.deployment import USUAL, Build, Deployment
from tests.http.conftest import LoggedRole
from tests.torture.broken import without
from tests.torture.faults import in_one_sale
from tests.torture.fickle import Fickle, FickleAndForgetful
from tests.torture.people import IMPATIENT_S, PATIENCE_S
from tests.torture.sale import Sale, deployed, holds, judge, selling

NAME = "clients_hang_up"

REQUEST_S = 3.0
"""So long a request lives at most."""

FILES_MORE_MAX = 60
"""Of both API processes together: so many connections to the stores, and of people who have not
left, there may be more. One for each who has left would be hundreds."""


@pytest.mark.torture(NAME)
async def test_clients_hang_up(template: Path, tmp_path: Path, seed: int) -> None:
    """What they asked for was done once or not at all, and is found out under its key."""
    holds(await _hung_up(template, tmp_path, seed))


async def _hung_up(
    template: Path,
    directory: Path,
    seed: int,
    *,
    build: Build = USUAL,
    crowd: type[Fickle] = Fickle,
    control: bool = False,
) -> list[str]:
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with deployed(directory, template, build) as deployment:
        async with selling(NAME, seed, deployment, crowd=crowd, patience_s=patience_s) as sale:
            assert isinstance(sale.people, Fickle)
            await sale.some(50, 100)
            before = _files(deployment)
            while sale.people.hung_up < in_one_sale(NAME):
                await sale.some(5, 20)
            sale.runs = sale.people.hung_up
            sale.found += await _left_behind(sale, before)
        # Who was in the middle of something then has been misled as well, if at all.
        sale.found += sale.people.misled
        sale.found += _failures(deployment.apis)
        with contextlib.suppress(TimeoutError):
            await deployment.is_recorded()
        await asyncio.sleep(REQUEST_S)
        sale.found += await _wait_in_vain(deployment)
        return await judge(sale, control=control)


async def _left_behind(sale: Sale, before: int) -> list[str]:
    """Look for what a connection that has gone should have taken along."""
    deployment = sale.deployment
    try:
        async with asyncio.timeout(5):
            while _files(deployment) > before + FILES_MORE_MAX:
                await asyncio.sleep(0.05)
    except TimeoutError:
        return [f"{before} open files have become {_files(deployment)}"]
    return []


async def _wait_in_vain(deployment: Deployment) -> list[str]:
    """Return who waits for the record although nobody waits for the answer."""
    async with httpx.AsyncClient(base_url=deployment.url, trust_env=False) as client:
        metrics = (await client.get("/metrics")).text.splitlines()
    (waiters,) = (line for line in metrics if line.startswith("onsale_recorded_waiters "))
    return [] if float(waiters.split()[1]) == 0 else [waiters]


def _files(deployment: Deployment) -> int:
    return sum(psutil.Process(api.pid).num_fds() for api in deployment.apis)


def _failures(apis: list[LoggedRole]) -> list[str]:
    """Return what the log calls a failure: that somebody left is none."""
    words = ('"level": "error"', '"level": "critical"', "Traceback")
    lines = [line for api in apis for line in api.log.read_text().splitlines()]
    return [f"logged: {line}" for line in lines if any(word in line for word in words)]


LEAKS = (
    "service/http1.py",
    "        self._patience.end()\n",
    """        self._patience.end()
        __import__("os").open("/dev/null", 0)
""",
)
CALLS_IT_A_FAILURE = ("service/app.py", "            ClientDisconnect: _disconnected,\n", "")


@pytest.mark.parametrize("text", [LEAKS, CALLS_IT_A_FAILURE], ids=["leaks", "fails"])
@pytest.mark.torture("clients_hang_up")
async def test_control_of_clients_hang_up(
    template: Path, tmp_path: Path, text: tuple[str, str, str]
) -> None:
    """A service that keeps a file for each, or takes their leaving for a failure, is found out."""
    build = without(tmp_path, text)
    assert await _hung_up(template, tmp_path, 0, build=build, control=True)


@pytest.mark.torture("clients_hang_up")
async def test_control_of_forgetful_clients(template: Path, tmp_path: Path) -> None:
    """Who comes back with another key has asked for something else."""
    assert await _hung_up(template, tmp_path, 0, crowd=FickleAndForgetful, control=True)
