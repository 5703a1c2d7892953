"""A store that does nothing for five seconds: everybody is answered in time, and then as ever."""

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import redis

from tests.crowd import Client
from tests.deployment import USUAL, Build, Deployment
from tests.servers import wait_until
from tests.torture.broken import without
from tests.torture.faults import in_one_sale
from tests.torture.sale import Sale, deployed, holds, judge, selling

FROZEN_S = 5.0
RATE = 100
LATE_S = 4.0
"""The deadline of a request is 3 s; the rest is for a machine with too much to do."""

NORMAL_AGAIN_S = 1.5
CLIENTS_MORE = 8


@pytest.mark.torture("valkey_frozen")
async def test_valkey_is_frozen(template: Path, tmp_path: Path, seed: int) -> None:
    """Who asks meanwhile is told 503 within the deadline; nothing is done twice."""
    holds(await _frozen("valkey", tmp_path, template, seed))


@pytest.mark.torture("valkey_frozen")
async def test_control_of_valkey_frozen(template: Path, tmp_path: Path) -> None:
    """A call that waits for its reply without end keeps its people waiting."""
    bound = "timeout_s = min(timeout_s or self._attempt_timeout_s, self._attempt_timeout_s)"
    build = without(tmp_path, ("service/wire.py", bound, "timeout_s = 60.0"))
    assert await _frozen("valkey", tmp_path / "service", template, 0, build, control=True)


@pytest.mark.torture("postgresql_frozen")
async def test_postgresql_is_frozen(template: Path, tmp_path: Path, seed: int) -> None:
    """Bookings go on; who wants to be on record is told `pending` within the deadline."""
    holds(await _frozen("postgresql", tmp_path, template, seed))


@pytest.mark.torture("postgresql_frozen")
async def test_control_of_postgresql_frozen(template: Path, tmp_path: Path) -> None:
    """An answer that waits for the record without end keeps its people waiting."""
    armed = "_sweep_at(waiter.deadline"
    bound = ("service/watermark.py", f"{armed})", f"{armed} + 1e6)")
    build = without(tmp_path, bound)
    assert await _frozen("postgresql", tmp_path / "service", template, 0, build, control=True)


async def _frozen(
    store: str,
    directory: Path,
    template: Path,
    seed: int,
    build: Build = USUAL,
    *,
    control: bool = False,
) -> list[str]:
    wrong: list[str] = []
    async with deployed(directory, template, build) as deployment:
        # One that begins with PostgreSQL frozen serves once it has given up on it, after 5 s.
        serve = partial(_all_serve, deployment)
        await asyncio.to_thread(wait_until, serve, what="all processes serve")
        async with selling(f"{store}_frozen", seed, deployment) as sale:
            for _ in range(1 if control else in_one_sale(sale.fault)):
                await sale.some(20, 120)
                wrong += await _freeze(sale, store)
        if sale.people.slowest_s > LATE_S:
            wrong.append(f"somebody was answered after {sale.people.slowest_s:.1f} s")
        return await judge(sale, control=control, also=wrong)


def _all_serve(deployment: Deployment) -> bool:
    return all('"event": "serving"' in api.log.read_text() for api in deployment.apis)


async def _freeze(sale: Sale, store: str) -> list[str]:
    """Freeze a store while requests come at a steady rate; return what is wrong with it."""
    deployment = sale.deployment
    clients = await asyncio.to_thread(_clients, deployment.servers.redis_url)
    watching = Watching(deployment.url, sale.people.event_ids[0])
    asking = asyncio.create_task(watching.ask_steadily())
    await asyncio.to_thread(deployment.freeze, store, FROZEN_S)
    thawed = time.monotonic()
    await sale.people.grow(1)
    sale.measured.append(time.monotonic() - thawed)
    await asyncio.sleep(max(0.0, thawed + 2 * NORMAL_AGAIN_S - time.monotonic()))
    watching.stopping = True
    await asking
    sale.runs += 1
    refused = 503 if store == "valkey" else 200
    wrong = [*watching.wrong(thawed, refused)]
    more = await asyncio.to_thread(_clients, deployment.servers.redis_url) - clients
    if more > CLIENTS_MORE:
        wrong.append(f"Valkey has {more} clients more than before")
    return wrong


@dataclass
class Watching:
    """Who looks at an event, so many times a second, whatever becomes of the ones before.

    `asked` holds when each was asked, how long it took in seconds, and the status.
    """

    url: str
    event_id: int
    asked: list[tuple[float, float, int]] = field(default_factory=list)
    stopping: bool = False
    _idle: list[Client] = field(default_factory=list)

    async def ask_steadily(self) -> None:
        """Ask until told to stop, and until all are answered."""
        began = time.monotonic()
        tasks = []
        for number in itertools.count():
            await asyncio.sleep(began + number / RATE - time.monotonic())
            if self.stopping:
                break
            tasks.append(asyncio.create_task(self._ask()))
        await asyncio.gather(*tasks)
        for client in self._idle:
            await client.close()

    async def _ask(self) -> None:
        host, _, port = self.url.removeprefix("http://").partition(":")
        client = self._idle.pop() if self._idle else Client(host, int(port))
        asked = time.monotonic()
        answer = await client.get(f"/status/{self.event_id}")
        self.asked.append((asked, time.monotonic() - asked, answer.status))
        self._idle.append(client)

    def wrong(self, thawed: float, refused: int) -> list[str]:
        """Return what is wrong: an answer that is late or another, and any once it is over."""
        slowest = max(took for _, took, _ in self.asked)
        after = [one for one in self.asked if one[0] > thawed + NORMAL_AGAIN_S]
        strange = {status for _, _, status in self.asked} - {200, refused}
        return [
            *([f"an answer took {slowest:.1f} s"] if slowest > LATE_S else []),
            *([f"somebody was answered {sorted(strange)}"] if strange else []),
            *(f"afterwards {status} in {took:.1f} s" for _, took, status in after if status != 200),
            *([] if after else ["nobody asked afterwards"]),
        ]


def _clients(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        found = client.info("clients")
    assert isinstance(found, dict)
    return int(found["connected_clients"])
