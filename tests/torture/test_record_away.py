"""PostgreSQL away for as long as it takes: Redis fills up to its bounds, and no further."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from service.room import CHANGE_BYTES
from tests.crowd import Client, connected
from tests.deployment import META, Build, Deployment
from tests.torture.broken import without
from tests.torture.history import Operation, read_journal
from tests.torture.people import OWN_USERS
from tests.torture.sale import Sale, deployed, holds, judge, selling

BOOKINGS_MAX = (2 << 20) // CHANGE_BYTES
CANCELLATIONS_MAX = (3 << 20) // CHANGE_BYTES
BOUNDS = {"ONSALE_UNRECORDED_BYTES_MAX": str(2 << 20), "ONSALE_CANCEL_RESERVE_BYTES": str(1 << 20)}
PEOPLE = 24
GIVERS = 8
BATCHES_BYTES = 8 << 20
"""What connections, scripts and the allocator may take beside the changes."""


@pytest.mark.torture("record_away")
async def test_the_record_is_away_until_the_bounds(
    template: Path, tmp_path: Path, seed: int
) -> None:
    """Bookings stop exactly at theirs, cancellations at theirs, and then all comes on record."""
    holds(await _away(tmp_path, template, seed, Build(BOUNDS)))


@pytest.mark.torture("record_away")
async def test_control_of_record_away(template: Path, tmp_path: Path) -> None:
    """Without the bound of bookings Redis takes more than it has room for."""
    bound = ("lua/book.lua", "elseif seq - recorded >= unrecorded_max then", "elseif false then")
    build = without(tmp_path, bound, build=Build(BOUNDS))
    assert await _away(tmp_path / "service", template, 0, build, control=True)


async def _away(
    directory: Path, template: Path, seed: int, build: Build, *, control: bool = False
) -> list[str]:
    async with deployed(directory, template, build) as deployment:
        async with (
            selling("record_away", seed, deployment, people=PEOPLE, recorded=0.0) as sale,
            connected(deployment.url, GIVERS) as clients,
        ):
            await sale.some(20, 120)
            valkey = psutil.Process(deployment.servers.pid("valkey"))
            held = valkey.memory_info().rss
            await asyncio.to_thread(deployment.kill_postgresql)
            recorded = (await _ends(deployment))[1]
            await _comes_to_rest(deployment, BOOKINGS_MAX)
            giving = Giving(sale)
            givers = [asyncio.create_task(giving.give_back(c, n)) for n, c in enumerate(clients)]
            await _comes_to_rest(deployment, CANCELLATIONS_MAX)
            last = (await _ends(deployment))[0]
            grown = valkey.memory_info().rss - held
            giving.stopping = True
            began = time.monotonic()
            await asyncio.to_thread(deployment.servers.start_postgres)
            async with asyncio.timeout(60):
                while (await _ends(deployment))[1] < last:
                    await asyncio.sleep(0.02)
            sale.measured.append(time.monotonic() - began)
            await asyncio.gather(*givers)
            await sale.people.grow(100)
        sale.runs += 1
        wrong = await _beyond(deployment, recorded, last)
        if grown > CANCELLATIONS_MAX * CHANGE_BYTES + BATCHES_BYTES:
            wrong.append(f"Valkey has grown by {grown} bytes")
        return await judge(sale, control=control, also=wrong)


async def _ends(deployment: Deployment) -> tuple[int, int]:
    """Return R and W."""
    async with deployment.valkey() as client:
        seq, recorded = await client.hmget(META, "seq", "recorded")
    return int(seq), int(recorded)


async def _comes_to_rest(deployment: Deployment, bound: int) -> None:
    """Wait until so much is not on record that nothing more comes, or far too much."""
    async with asyncio.timeout(90):
        before = -1
        while True:
            seq, recorded = await _ends(deployment)
            if seq == before or seq - recorded > 2 * bound:
                return
            before = seq if seq - recorded >= bound else -1
            await asyncio.sleep(1.0)


async def _beyond(deployment: Deployment, recorded: int, last: int) -> list[str]:
    """Return what was changed beyond its bound while `recorded` was all that was on record."""
    rows = await read_journal(deployment.servers.postgresql_url)
    kinds = [row.change.kind for row in rows if recorded < row.change.seq <= last]
    booked = [kind in ("booked", "waiting") for kind in kinds]
    wrong = []
    if any(booked[BOOKINGS_MAX:]):
        wrong.append(f"{sum(booked[BOOKINGS_MAX:])} bookings came after the bound")
    # The last cancellation may promote somebody.
    if not CANCELLATIONS_MAX <= len(kinds) <= CANCELLATIONS_MAX + 1:
        wrong.append(f"{len(kinds)} changes were not on record at the end")
    return wrong


@dataclass
class Giving:
    """Who gives back what others hold, and leaves the line for them, until the bound."""

    sale: Sale
    stopping: bool = False

    async def give_back(self, client: Client, number: int) -> None:
        """Cancel for one user after the other."""
        people = self.sale.people
        users = [
            (event_id, f"p{person}-{one}")
            for person in range(number, PEOPLE, GIVERS)
            for one in range(OWN_USERS)
            for event_id in people.event_ids
        ]
        for count, (event_id, user) in enumerate(users):
            if self.stopping:
                return
            key = f"{self.sale.seed}-back{number}-{count}"
            one = Operation("cancel", event_id, user, key, time.monotonic())
            people.history.append(one)
            await people._to_the_end(client, one, "")
