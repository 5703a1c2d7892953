"""Memory that is full: Redis refuses whatever would need more, before it has done any of it."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.crowd import connected
from tests.deployment import USUAL, Build, Deployment
from tests.torture.broken import without
from tests.torture.faults import in_one_sale
from tests.torture.people import PATIENCE_S
from tests.torture.sale import Sale, deployed, holds, judge, selling, until_it_sells


@pytest.mark.torture("memory_full")
async def test_memory_is_full(template: Path, tmp_path: Path, seed: int) -> None:
    """Bookings and cancellations are refused as a whole, reads are answered; then it goes on."""
    holds(await _memory_full(tmp_path, template, seed))


@pytest.mark.torture("memory_full")
async def test_control_of_memory_full(template: Path, tmp_path: Path) -> None:
    """Scripts that begin with no memory left, and pass over what is refused, are found out."""
    build = without(tmp_path)
    for script in (Path(build.settings["PYTHONPATH"]) / "lua").rglob("*.lua"):
        if script.name != "begin_epoch.lua":
            text = script.read_text().removeprefix("#!lua\n").replace("redis.call(", "redis.pcall(")
            script.write_text(text)
    assert await _memory_full(tmp_path / "service", template, 0, build, control=True)


async def _memory_full(
    directory: Path, template: Path, seed: int, build: Build = USUAL, *, control: bool = False
) -> list[str]:
    wrong: list[str] = []
    async with deployed(directory, template, build) as deployment:
        patience_s = 5.0 if control else PATIENCE_S
        async with selling("memory_full", seed, deployment, patience_s=patience_s) as sale:
            for number in range(3 if control else in_one_sale(sale.fault)):
                await sale.some(20, 120)
                await sale.do(partial(_fill, sale, wrong, asks=number == 0 and not control))
        return await judge(sale, control=control, also=wrong)


def _fill(sale: Sale, wrong: list[str], *, asks: bool) -> None:
    """Leave Valkey hardly any memory, or none, for a while."""
    deployment = sale.deployment
    with redis.Redis.from_url(deployment.servers.redis_url, decode_responses=True) as client:
        valkey: Any = client
        room = sale.chance.choice((0, sale.chance.randint(0, 20_000)))
        valkey.config_set("maxmemory", valkey.info("memory")["used_memory"] + room)
        refused = valkey.info("errorstats").get("errorstat_OOM", {"count": 0})["count"]
        until = time.monotonic() + 10
        while valkey.info("errorstats").get("errorstat_OOM", {"count": 0})["count"] < refused + 5:
            if time.monotonic() > until:
                wrong.append("nothing was refused")
                break
            time.sleep(0.01)
        if asks:
            valkey.config_set("maxmemory", 1)
            wrong.extend(asyncio.run(_asked(deployment)))
        valkey.config_set("maxmemory", 0)
    until_it_sells(deployment)


async def _asked(deployment: Deployment) -> list[str]:
    """Ask for what needs memory and for what needs none."""
    async with connected(deployment.url, 1) as (client,):
        looked = await client.get("/status/1")
        booked = await client.post("/book", {"eventId": 1, "userId": "nobody"})
    said = [looked.status, booked.status, booked.body.get("code")]
    return [] if said == [200, 503, "unavailable"] else [f"with no memory it says {said}"]
