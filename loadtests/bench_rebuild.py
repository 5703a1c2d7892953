"""A large event comes back from the record within ten seconds: measured.

Brings up the whole service in an empty directory, sells an event out over HTTP and fills its
waiting list. Then, round by round, Redis is emptied once everything is on record, and the clock
runs from there to the first answer about a user: handshake, rebuild and load of the event. What
came back is compared with the record by `onsale reconcile`.

    .venv/bin/python loadtests/bench_rebuild.py [--tickets 100000] [--waiters 100000] [--rounds 5]

Exits 1 when a round takes longer than 10 s, or when something is missing afterwards.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from statistics import median
from typing import Any, Self
from urllib.parse import urlsplit

from redis.asyncio import Redis

from service.ledger import LedgerPool
from service.redis_store import RedisStore
from service.rundir import Service
from service.serving import serving
from service.settings import Settings, load_settings
from service.vitals import PartitionVitals, look

LIMIT_S = 10.0
CONNECTIONS = 64


class Connection:
    """One keep-alive connection to the service."""

    def __init__(self, address: str) -> None:
        """Take where the service is."""
        self._address = urlsplit(address)

    async def __aenter__(self) -> Self:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(
            self._address.hostname, self._address.port
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send one request; return the status and the body of its answer."""
        raw = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(raw)}\r\n"
        self._writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + raw)
        status = int((await self._reader.readline()).split()[1])
        length = 0
        while (line := await self._reader.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(await self._reader.readexactly(length))


async def fill(address: str, tickets: int, waiters: int) -> int:
    """Open an event and let so many people book; return its id."""
    async with Connection(address) as connection:
        asked = {"name": "Rebuilt", "totalTickets": tickets}
        _, opened = await connection.ask("POST", "/initialize", asked)
    event_id = int(opened["event"]["id"])
    people = iter(range(tickets + waiters))

    async def book() -> None:
        async with Connection(address) as connection:
            for person in people:
                asked = {"eventId": event_id, "userId": person}
                while (await connection.ask("POST", "/book", asked))[0] == 503:  # noqa: ASYNC110  # as Retry-After asks
                    await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(book())
    return event_id


async def until_recorded(service: Service) -> None:
    """Wait until Redis knows all of it to be on record."""
    redis, ledgers = RedisStore(service.redis), LedgerPool(service.postgresql)
    while True:
        found: dict[int, PartitionVitals] = dict((await look(redis, ledgers, 1)).partitions)
        if found and not found[0].unrecorded and not found[0].lag_changes:
            break
        await asyncio.sleep(0.05)
    await redis.aclose()
    await ledgers.aclose()


async def rebuild(service: Service, event_id: int, user: int) -> float:
    """Empty Redis and ask for a user until there is an answer; return the seconds it took."""
    await until_recorded(service)
    client: Any = Redis.from_url(service.redis)
    await client.flushall()
    await client.aclose()
    began = time.monotonic()
    async with Connection(service.http) as connection:
        path = f"/events/{event_id}/users/{user}"
        while (await connection.ask("GET", path))[0] != 200:  # noqa: ASYNC110  # no event tells of it
            await asyncio.sleep(0.01)
        took = time.monotonic() - began
        status, event = await connection.ask("GET", f"/status/{event_id}")
    assert status == 200, event
    sold = event["totalTickets"] - event["remainingTickets"]
    print(f"  {took:.2f} s; {sold:,} sold, {event['waitingListCount']:,} waiting", flush=True)
    return took


async def measure(settings: Settings, tickets: int, waiters: int, rounds: int) -> bool:
    """Fill, measure, print, and say whether it held."""
    async with serving(settings, lambda: False) as found:
        began = time.monotonic()
        event_id = await fill(found.service.http, tickets, waiters)
        print(f"sold and filled in {time.monotonic() - began:.0f} s", flush=True)
        last = tickets + waiters - 1
        took = [await rebuild(found.service, event_id, last) for _ in range(rounds)]
        await until_recorded(found.service)
        reconcile = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service", "reconcile"
        )
        clean = await reconcile.wait() == 0
    holds = clean and max(took) <= LIMIT_S
    print(f"median {median(took):.2f} s, longest {max(took):.2f} s")
    print(
        f"At most {LIMIT_S:.0f} s, and nothing is missing: {'holds' if holds else 'DOES NOT HOLD'}."
    )
    return holds


def main() -> int:
    """Measure in a directory that is gone afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tickets", type=int, default=100_000)
    parser.add_argument("--waiters", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    print(f"Python {platform.python_version()}, {chosen.rounds} rounds;", end=" ")
    print(f"{chosen.tickets:,} tickets, {chosen.waiters:,} waiters ...", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        # The service and the command are children, and find it as a user's would.
        os.environ.update(ONSALE_DATA_DIR=directory, PORT="0")
        settings = load_settings()
        return int(not asyncio.run(measure(settings, *vars(chosen).values())))


if __name__ == "__main__":
    sys.exit(main())
