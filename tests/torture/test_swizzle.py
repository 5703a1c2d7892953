"""All of it at random: processes killed and frozen, scripts flushed, replies lost, clients gone.

Faults after which answers may be lost by design (a store wiped, or put back older) are not among
them: tests/restores has these.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import psutil
import pytest
import redis

from tests.deployment import USUAL, Build, Deployment, frozen
from tests.http.conftest import LoggedRole
from tests.torture.broken import FORGETS_KEYS, without
from tests.torture.faults import in_one_sale
from tests.torture.fickle import Fickle
from tests.torture.killing import KILLS
from tests.torture.mischief import Mischief, before_http, before_redis
from tests.torture.people import IMPATIENT_S, PATIENCE_S
from tests.torture.sale import Sale, holds, judge, selling

NAME = "swizzle"
CONTROL_S = 15

OFTEN_TO_REDIS, OFTEN_TO_HTTP = 0.01, 0.02
FROZEN_S_MAX = 2.0
PAUSE_S_MAX = 1.5
TWICE = 0.3
"""How often two things are done at once, to different processes."""

GROWN_UP_S = 10.0
GROWTH_MAX, GROWTH_BYTES_MAX = 0.05, 16 << 20

Harm = Callable[[Random], object]


@contextlib.asynccontextmanager
async def exposed(
    directory: Path, template: Path, build: Build, seed: int
) -> AsyncIterator[tuple[Deployment, list[Mischief]]]:
    """Run a service with a proxy on either side of its API."""
    deployment = Deployment(directory, template, build)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, deployment.stop)
        behind, front = await stack.enter_async_context(
            before_redis(deployment.servers.redis_url, f"{NAME} redis {seed}", OFTEN_TO_REDIS)
        )
        for api in deployment.apis:
            api.environment["REDIS_URL"] = front
        before, url = await stack.enter_async_context(
            before_http(deployment.url, f"{NAME} http {seed}", OFTEN_TO_HTTP)
        )
        await asyncio.to_thread(deployment.start)
        deployment.url = url
        yield deployment, [behind, before]


@pytest.mark.torture(NAME)
async def test_everything_at_random(template: Path, tmp_path: Path, seed: int) -> None:
    """Nothing is lost, nothing is done twice, nothing grows."""
    seconds = in_one_sale(NAME)
    holds(await _swizzled(template, tmp_path, seed, seconds))


async def _swizzled(
    template: Path,
    directory: Path,
    seed: int,
    seconds: int,
    *,
    build: Build = USUAL,
    control: bool = False,
) -> list[str]:
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with exposed(directory, template, build, seed) as (deployment, proxies):
        async with selling(NAME, seed, deployment, crowd=Fickle, patience_s=patience_s) as sale:
            await sale.some(50, 100)
            for proxy in proxies:
                proxy.at_work = True
            weights = Weights(deployment)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                await _harm(sale)
                weights.look()
                await asyncio.sleep(sale.chance.uniform(0, PAUSE_S_MAX))
            for proxy in proxies:
                proxy.at_work = False
            await sale.some(100, 200)
            sale.runs = seconds
            sale.found += weights.grown()
        assert isinstance(sale.people, Fickle)
        sale.found += sale.people.misled
        return await judge(sale, control=control)


async def _harm(sale: Sale) -> None:
    """Do one thing, or two to different processes at once."""
    harms = _harms(sale.deployment)
    targets = sale.chance.sample([*harms], 2 if sale.chance.random() < TWICE else 1)
    async with asyncio.TaskGroup() as group:
        for target in targets:
            harm = sale.chance.choice(harms[target])
            group.create_task(asyncio.to_thread(harm, Random(sale.chance.random())))


def _harms(deployment: Deployment) -> dict[str, list[Harm]]:
    """Return what can be done, by whom it is done to."""
    servers = deployment.servers
    harms: dict[str, list[Harm]] = {
        "valkey": [
            lambda _: deployment.restart_valkey(),
            lambda _: _flush_scripts(deployment),
            lambda chance: _freeze(servers.pid("valkey"), chance),
        ],
        "postgresql": [
            lambda chance: deployment.restart_postgresql(chance.choice([*KILLS.values()])),
            lambda chance: _freeze(servers.pid("postgresql"), chance),
        ],
        "writer": [
            lambda _: _restart_writer(deployment),
            lambda chance: _freeze(deployment.writer.pid, chance),
        ],
    }
    for api in deployment.apis:
        harms[api.log.name] = [partial(_restart_api, deployment, api), partial(_freeze_api, api)]
    return harms


def _restart_writer(deployment: Deployment) -> None:
    deployment.writer.kill()
    deployment.writer.start()


def _restart_api(deployment: Deployment, api: LoggedRole, _: Random) -> None:
    deployment.restart_api(api)


def _freeze_api(api: LoggedRole, chance: Random) -> None:
    _freeze(api.pid, chance)


def _freeze(pid: int, chance: Random) -> None:
    with frozen(pid):
        time.sleep(chance.uniform(0.05, FROZEN_S_MAX))


def _flush_scripts(deployment: Deployment) -> None:
    with redis.Redis.from_url(deployment.servers.redis_url) as client:
        client.script_flush()


@dataclass(repr=False)
class Weights:
    """What each process had in memory when it had come to work, and what it has now."""

    deployment: Deployment
    seen: dict[int, float] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)

    def look(self) -> None:
        """Weigh everybody who has been at work for a while and was not weighed before."""
        for role in self.deployment.roles:
            since = self.seen.setdefault(role.pid, time.monotonic())
            if role.pid not in self.first and time.monotonic() - since > GROWN_UP_S:
                self.first[role.pid] = psutil.Process(role.pid).memory_info().rss

    def grown(self) -> list[str]:
        """Say who has grown beyond bounds since."""
        wrong = []
        for role in self.deployment.roles:
            if before := self.first.get(role.pid):
                now = psutil.Process(role.pid).memory_info().rss
                if now > before * (1 + GROWTH_MAX) + GROWTH_BYTES_MAX:
                    wrong.append(f"{role.log.name} has grown from {before} to {now} bytes")
        return wrong


@pytest.mark.torture("swizzle")
async def test_control_of_swizzle(template: Path, tmp_path: Path) -> None:
    """Without the memory of keys most of it is found out."""
    build = without(tmp_path, FORGETS_KEYS)
    assert await _swizzled(template, tmp_path, 0, CONTROL_S, build=build, control=True)
