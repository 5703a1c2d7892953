"""Power loss: Valkey is killed, and its disk keeps what was synced, and no more."""

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest
import redis

from tests.deployment import USUAL, Build, Deployment
from tests.torture.faults import in_one_sale
from tests.torture.power import Power
from tests.torture.preloads import compiled
from tests.torture.sale import Sale, deployed, holds, judge, selling, until_it_sells

EVERYSEC = Build({"ONSALE_DURABILITY": "memory"}, redis_options=("--appendfsync", "everysec"))
"""A Redis that answers before the sync. The service refuses to call that `fsync`."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is preloaded into Valkey."""
    return compiled("power", tmp_path_factory.mktemp("power"))


@pytest.mark.torture("power_lost")
async def test_power_is_lost(template: Path, tmp_path: Path, library: Path, seed: int) -> None:
    """Whatever was answered survives it, in the middle of a rewrite of the file as well."""
    holds(await _power_lost(tmp_path, template, library, seed))


@pytest.mark.torture("power_lost")
async def test_control_of_power_lost(template: Path, tmp_path: Path, library: Path) -> None:
    """Where answers do not wait for the sync some are lost, and the checks find them."""
    assert await _power_lost(tmp_path, template, library, 0, EVERYSEC, control=True)


async def _power_lost(
    directory: Path,
    template: Path,
    library: Path,
    seed: int,
    build: Build = USUAL,
    *,
    control: bool = False,
) -> list[str]:
    power = Power(library, directory / "power")
    build = Build(build.settings, build.redis_options, redis_prefix=power.prefix)
    async with deployed(directory / "service", template, build) as deployment:
        async with selling("power_lost", seed, deployment) as sale:
            for number in range(3 if control else in_one_sale(sale.fault)):
                await sale.some(5, 120)
                await sale.do(partial(_lose_power, sale, power, number % 5, control=control), 0)
        return await judge(sale, control=control)


def _lose_power(sale: Sale, power: Power, kind: int, *, control: bool) -> None:
    """Cut it off; at two of five points in a rewrite of the file, at one of five for everything."""
    deployment = sale.deployment
    if kind in (1, 3):
        _begin_rewrite(deployment, sale.chance.uniform(0.0, 0.03))
    if kind == 2:
        for role in (*deployment.apis, deployment.writer):
            role.kill()
        # What its disk would keep of unsynced WAL is not tried: a kill has to do.
        deployment.kill_postgresql()
    _kill_all(deployment.servers.pid("valkey"))
    deployment.servers.kill("valkey")
    power.cut(deployment.servers.run.data / "valkey", sale.chance)
    deployment.servers.start_valkey()
    if kind == 2:
        deployment.servers.start_postgres()
        deployment.writer.start()
        for api in deployment.apis:
            deployment.start_api(api)
    if control:
        until_it_sells(deployment)


def _begin_rewrite(deployment: Deployment, pause_s: float) -> None:
    """Have the file rewritten, and wait until that is somewhere in the middle, or just done."""
    with redis.Redis.from_url(deployment.servers.redis_url) as client:
        client.bgrewriteaof()
        asyncio.run(asyncio.sleep(pause_s))


def _kill_all(pid: int) -> None:
    """Kill a server with the process that rewrites its file."""
    children = psutil.Process(pid).children(recursive=True)
    os.killpg(pid, signal.SIGKILL)
    psutil.wait_procs(children, timeout=20)
