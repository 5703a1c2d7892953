"""kill -9 of each process of a running `onsale up`, alone and together, under load."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import pytest
import redis.asyncio
from redis import RedisError

from service.keys import partition_keys
from tests import process_state
from tests.conftest import Client as RedisClient
from tests.conftest import Record
from tests.crowd import Answer, Client, connected
from tests.running import ROLES, Running, running

__all__ = ["running"]

CLIENTS = 24
TICKETS = 300
KILLS = 3
BETWEEN_KILLS = 150


@asynccontextmanager
async def stores(running: Running) -> AsyncIterator[tuple[RedisClient, Record]]:
    """Connect to both stores, once they have recovered."""
    client = redis.asyncio.Redis.from_url(running.urls["redis"], decode_responses=True)
    async with asyncio.timeout(90):
        while True:
            try:
                await client.ping()
                record = await asyncpg.connect(running.urls["postgresql"])
                break
            except (RedisError, asyncpg.PostgresError, OSError):
                await asyncio.sleep(0.05)
    yield client, record
    await record.close()
    await client.aclose()


@dataclass
class Sale:
    """A sale in which every request is repeated until its outcome is known."""

    event_id: int
    answered: dict[str, Answer] = field(default_factory=dict)
    cancelled: dict[str, Answer] = field(default_factory=dict)
    stopping: bool = False

    async def attend(self, client: Client, name: str) -> None:
        """Book under ever new names; every third cancels again."""
        number = 0
        while not self.stopping:
            user = f"{name}-{number}"
            body = {"eventId": self.event_id, "userId": user}
            self.answered[user] = await client.post_until_answered("/book", body)
            if number % 3 == 0:
                self.cancelled[user] = await client.post_until_answered("/cancel", body)
            number += 1

    async def grow(self, count: int) -> None:
        """Wait until so many more were answered."""
        target = len(self.answered) + count
        async with asyncio.timeout(60):
            while len(self.answered) < target:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("role", ROLES)
async def test_every_answered_booking_is_there_once(running: Running, role: str) -> None:
    """Three kills under load: no answer is lost, nothing is applied twice, nothing oversold."""

    async def kill() -> None:
        await asyncio.to_thread(running.kill, role)

    await _sell_while(running, kill, role)


@pytest.mark.parametrize("left", [(), ("valkey",), ROLES], ids=["all", "but Valkey", "parent"])
async def test_what_a_kill_of_the_parent_leaves_is_replaced(
    running: Running, left: tuple[str, ...]
) -> None:
    """Kill -9 of everything, or of the parent alone: the next start serves, and nothing is lost."""
    port = int(str(running.urls["http"]).rpartition(":")[2])

    async def kill() -> None:
        await asyncio.to_thread(running.kill_everything, [r for r in ROLES if r not in left])
        await asyncio.to_thread(running.start, port)
        # The fixture of the module stops this one in place of the first.
        process_state.FOR_THE_RUN.add(str(running.parent_pid))

    await _sell_while(running, kill, f"parent{len(left)}", kills=1)


async def _sell_while(
    running: Running, kill: Callable[[], Awaitable[None]], name: str, *, kills: int = KILLS
) -> None:
    """Sell to a crowd, kill meanwhile, and check what is on record afterwards."""
    async with connected(running.urls["http"], CLIENTS) as clients:
        opened = await clients[0].post_until_answered(
            "/initialize", {"name": f"kill {name}", "totalTickets": TICKETS}
        )
        sale = Sale(opened.body["event"]["id"])
        crowd = [
            asyncio.create_task(sale.attend(client, f"{name}{place}"))
            for place, client in enumerate(clients)
        ]
        for _ in range(kills):
            await sale.grow(BETWEEN_KILLS)
            await kill()
            async with stores(running):
                pass
        await sale.grow(BETWEEN_KILLS)
        sale.stopping = True
        await asyncio.gather(*crowd)
    async with stores(running) as (client, record):
        await _recorded(client, record)
        await _check(sale, record)


async def _recorded(client: RedisClient, record: Record) -> None:
    """Wait until P is R."""
    async with asyncio.timeout(60):
        while True:
            epoch, seq = await client.hmget(partition_keys(0).meta, "epoch", "seq")
            row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
            if row is not None and tuple(row) == (int(epoch), int(seq)):
                return
            await asyncio.sleep(0.02)


async def _check(sale: Sale, record: Record) -> None:
    """Compare what clients were told with what is on record."""
    assert {a.status for a in sale.answered.values()} <= {200, 201, 202}
    # A cancellation that took effect, and whose answer was lost, finds nothing the second time.
    assert {a.status for a in sale.cancelled.values() if a.sends == 1} <= {200}
    assert {a.status for a in sale.cancelled.values()} <= {200, 404}
    rows = await record.fetch(
        "SELECT seq, kind, user_id FROM journal WHERE event_id = $1 ORDER BY seq", sale.event_id
    )
    joined = [row["user_id"] for row in rows if row["kind"] in ("booked", "waiting")]
    assert len(joined) == len(set(joined))
    assert set(joined) == set(sale.answered)
    gone = [row["user_id"] for row in rows if row["kind"] in ("cancelled", "left")]
    assert len(gone) == len(set(gone))
    assert set(gone) == set(sale.cancelled)
    assert _line_is_kept([(row["kind"], row["user_id"]) for row in rows]) <= TICKETS
    seqs = [row["seq"] for row in await record.fetch("SELECT seq FROM journal ORDER BY seq")]
    assert seqs == list(range(1, len(seqs) + 1))
    for user, answer in sale.answered.items():
        if answer.status == 202 and answer.sends == 1 and "position" in answer.body:
            assert answer.body["position"] >= 1, user
    held = await record.fetch("SELECT user_id FROM bookings WHERE event_id = $1", sale.event_id)
    assert {row["user_id"] for row in held} == set(sale.answered)


def _line_is_kept(changes: list[tuple[str, str]]) -> int:
    """Hold that each promotion takes the first who waits; return the most that were sold."""
    line: list[str] = []
    sold = most = 0
    for kind, user in changes:
        if kind == "waiting":
            line.append(user)
        elif kind == "left":
            line.remove(user)
        elif kind == "promoted":
            assert line.pop(0) == user
        sold += {"booked": 1, "promoted": 1, "cancelled": -1}.get(kind, 0)
        most = max(most, sold)
    return most
