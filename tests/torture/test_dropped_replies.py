"""Requests that are carried out and never answered, between people, the API and Valkey."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.deployment import USUAL, Build, Deployment
from tests.torture.broken import FORGETS_KEYS, without
from tests.torture.faults import in_one_sale
from tests.torture.mischief import Mischief, before_http, before_redis
from tests.torture.people import IMPATIENT_S, PATIENCE_S
from tests.torture.sale import holds, judge, selling

BEHIND_THE_API, BEFORE_THE_API = "redis_replies_dropped", "http_replies_dropped"

OFTEN = {BEHIND_THE_API: 0.03, BEFORE_THE_API: 0.08}
"""Most requests go through: a sale with mischief, not a standstill with a sale."""


@contextlib.asynccontextmanager
async def meddled_with(
    directory: Path, template: Path, build: Build, where: str, seed: int
) -> AsyncIterator[tuple[Deployment, Mischief]]:
    """Run a service with a proxy on one side of its API; the writer has its own way to Valkey."""
    deployment = Deployment(directory, template, build)
    named = f"{where} {seed}", OFTEN[where]
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, deployment.stop)
        if where == BEHIND_THE_API:
            url = deployment.servers.redis_url
            proxy, front = await stack.enter_async_context(before_redis(url, *named))
            for api in deployment.apis:
                api.environment["REDIS_URL"] = front
        else:
            proxy, front = await stack.enter_async_context(before_http(deployment.url, *named))
        await asyncio.to_thread(deployment.start)
        if where == BEFORE_THE_API:
            deployment.url = front
        yield deployment, proxy


async def dropped(
    directory: Path,
    template: Path,
    where: str,
    seed: int,
    *,
    build: Build = USUAL,
    control: bool = False,
) -> list[str]:
    """Sell until so many replies were lost; return what is wrong with that sale."""
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with meddled_with(directory, template, build, where, seed) as (deployment, proxy):
        async with selling(where, seed, deployment, patience_s=patience_s) as sale:
            await sale.some(50, 100)
            proxy.at_work = True
            while proxy.lost_replies < in_one_sale(where):
                await sale.some(5, 20)
            proxy.at_work = False
            sale.runs = proxy.lost_replies
            await sale.some(50, 100)
        return await judge(sale, control=control)


@pytest.mark.torture(BEHIND_THE_API)
async def test_replies_of_valkey_are_dropped(template: Path, tmp_path: Path, seed: int) -> None:
    """Who repeats a numbered call has one effect and the first reply: nothing is taken twice."""
    holds(await dropped(tmp_path, template, BEHIND_THE_API, seed))


@pytest.mark.torture(BEFORE_THE_API)
async def test_replies_of_the_api_are_dropped(template: Path, tmp_path: Path, seed: int) -> None:
    """Who repeats under a key has one effect and one outcome, whatever was heard of the first."""
    holds(await dropped(tmp_path, template, BEFORE_THE_API, seed))


@pytest.mark.torture("redis_replies_dropped")
async def test_control_of_redis_replies_dropped(template: Path, tmp_path: Path) -> None:
    """Without call numbers the same call, sent again, is another one."""
    build = without(tmp_path, ("lua/include/numbered.lua", "  if last then\n", "  if false then\n"))
    assert await dropped(tmp_path, template, BEHIND_THE_API, 0, build=build, control=True)


@pytest.mark.torture("http_replies_dropped")
async def test_control_of_http_replies_dropped(template: Path, tmp_path: Path) -> None:
    """Without the memory of keys the same request, sent again, is another one."""
    build = without(tmp_path, FORGETS_KEYS)
    assert await dropped(tmp_path, template, BEFORE_THE_API, 0, build=build, control=True)
