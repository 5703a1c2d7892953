"""Going down and up in order: SIGTERM loses nothing that a repeat would not mend."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import psutil
import redis

from service.keys import partition_keys
from tests.crowd import Client, connected
from tests.http.api_process import api_process, is_ready
from tests.http.balancer import Balancer
from tests.http.conftest import Service
from tests.http.test_kills import Sale
from tests.running import Running
from tests.servers import Role, Servers, free_port, wait_until

CLIENTS = 16
RESTARTS = 3


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process, and let it go on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_request_in_flight_is_answered_before_the_process_ends(service: Service) -> None:
    """SIGTERM while Redis is slow: no new connection, the old one has its answer, then the end."""
    event_id = await asyncio.to_thread(service.open_event, 5)
    port = free_port()
    with api_process(service, port) as role:
        async with connected(f"http://127.0.0.1:{port}", 2) as (client, idle):
            assert (await idle.get(f"/status/{event_id}")).status == 200
            with frozen(service.servers.pid("valkey")):
                asked = asyncio.create_task(
                    client.post("/book", {"eventId": event_id, "userId": "in-flight"})
                )
                process = psutil.Process(role.pid)
                while not _has_read(process, port):
                    await asyncio.sleep(0.005)
                process.terminate()
                while _listens(port):
                    await asyncio.sleep(0.005)
                answered, _ = await asyncio.wait({asked}, timeout=0.5)
                assert not answered
            answer = await asked
            assert answer.status == 201
            # Who was idle was hung up on, and not left waiting.
            assert (await idle.get(f"/status/{event_id}")).status == 0
        # uvicorn ends by the signal that it was sent, once everything is done.
        assert await asyncio.to_thread(process.wait, 10) in (0, -signal.SIGTERM)
    async with connected(service.url, 1) as (client,):
        state = await client.get(f"/events/{event_id}/users/in-flight")
    assert state.body["status"] == "booked"


def _has_read(process: psutil.Process, port: int) -> bool:
    """Whether everything that was sent to a process has reached it: nothing waits in the kernel."""
    queues = [
        line.split()[4].split(":")[1]
        for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01"
    ]
    return len(queues) == 2 and set(queues) == {"00000000"}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_rolling_restart_loses_nothing_that_a_repeat_does_not_mend(
    service: Service,
) -> None:
    """Two processes behind a balancer, each restarted three times in turn, under load.

    Every request is answered in the end, and had its effect once.
    """
    event_id = await asyncio.to_thread(service.open_event, 200)
    ports = [free_port(), free_port()]
    with api_process(service, ports[0]) as one, api_process(service, ports[1]) as other:
        async with Balancer(ports).listening() as address, connected(address, CLIENTS) as clients:
            sale = Sale(event_id)
            crowd = [
                asyncio.create_task(sale.attend(client, f"r{place}"))
                for place, client in enumerate(clients)
            ]
            for _ in range(RESTARTS):
                for role, port in ((one, ports[0]), (other, ports[1])):
                    await sale.grow(100)
                    await asyncio.to_thread(_restart, role, port)
            await sale.grow(100)
            sale.stopping = True
            await asyncio.gather(*crowd)
    async with _recorded(service) as record:
        await _every_answer_is_on_record(sale, record)


def _restart(role: Role, port: int) -> None:
    role.stop()
    role.start()
    wait_until(lambda: is_ready(port), what="the process serves again")


@contextlib.asynccontextmanager
async def _recorded(service: Service) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Connect to the record, once P is R."""
    record = await asyncpg.connect(service.servers.postgresql_url)
    with redis.Redis.from_url(service.servers.redis_url) as client:
        last = int(client.hget(partition_keys(0).meta, "seq") or 0)
    async with asyncio.timeout(60):
        while await record.fetchval("SELECT seq FROM cursors WHERE partition = 0") < last:
            await asyncio.sleep(0.01)
    yield record
    await record.close()


async def _every_answer_is_on_record(
    sale: Sale, record: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    rows = await record.fetch(
        "SELECT kind, user_id FROM journal WHERE event_id = $1 ORDER BY seq", sale.event_id
    )
    joined = [row["user_id"] for row in rows if row["kind"] in ("booked", "waiting")]
    gone = [row["user_id"] for row in rows if row["kind"] in ("cancelled", "left")]
    assert sorted(joined) == sorted(sale.answered)
    assert sorted(gone) == sorted(sale.cancelled)
    assert {a.status for a in sale.answered.values() if a.sends == 1} <= {201, 202}
    assert {a.status for a in sale.cancelled.values() if a.sends == 1} <= {200}


async def test_the_writer_is_at_r_before_the_stores_go(tmp_path: Path) -> None:
    """SIGTERM to `onsale up` under load: what Redis holds at the end is on record at the end."""
    service = Running(tmp_path / "data")
    await asyncio.to_thread(service.start)
    try:
        async with connected(service.urls["http"], CLIENTS) as clients:
            opened = await clients[0].post("/initialize", {"name": "Event", "totalTickets": 500})
            sale = Sale(opened.body["event"]["id"])
            crowd = [
                asyncio.create_task(_attend_once(sale, client, f"d{place}"))
                for place, client in enumerate(clients)
            ]
            await sale.grow(300)
            await asyncio.to_thread(service.stop)
            await asyncio.gather(*crowd)
    finally:
        service.stop()
    log = (tmp_path / "data" / "log" / "writer.log").read_text()
    assert "all that Redis held is on record" in log
    servers = Servers(tmp_path / "data")
    try:
        await asyncio.to_thread(servers.start)
        with redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
            held = client.hmget(partition_keys(0).meta, "epoch", "seq")
        record = await asyncpg.connect(servers.postgresql_url)
        row = await record.fetchrow("SELECT epoch, seq FROM cursors WHERE partition = 0")
        assert row is not None
        assert [str(row["epoch"]), str(row["seq"])] == held
        users = await record.fetch("SELECT user_id FROM bookings")
        assert {row["user_id"] for row in users} >= set(sale.answered)
        await record.close()
    finally:
        servers.stop()


async def _attend_once(sale: Sale, client: Client, name: str) -> None:
    """Book under ever new names until the service has gone."""
    number = 0
    while True:
        user = f"{name}-{number}"
        answer = await client.post("/book", {"eventId": sale.event_id, "userId": user})
        if answer.status == 0:
            return
        assert answer.status in (201, 202)
        sale.answered[user] = answer
        number += 1
