"""Two API processes are restarted one by one under load, behind nginx and haproxy."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg

from tests.crowd import Answer, Client, connected
from tests.http.api_process import api_process, is_ready
from tests.http.conftest import Service
from tests.proxies.proxies import haproxy, haproxy_tries, nginx
from tests.servers import Role, free_port, wait_until

CLIENTS = 8
DRAIN_S = "6"
"""Longer than each proxy keeps a connection that nothing is sent on; the image has 10."""

PAUSE_S = 0.01
BOOKINGS_MIN = 1_000
RESTARTS_MAX = 10


class Crowd:
    """Clients that book under ever new names, on connections that they keep."""

    def __init__(self, name: str, event: int) -> None:
        """Take a name that no other crowd has at this event."""
        self._name, self._event = name, event
        self.statuses: Counter[int] = Counter()
        self.changed: list[str] = []
        self.stopping = False

    async def attend(self, place: int, client: Client) -> None:
        """Book, look and cancel until it is over; what fails is noted, and not repeated."""
        number = 0
        while not self.stopping:
            user = f"{self._name}-{place}-{number}"
            booking = {"eventId": self._event, "userId": user}
            self._note(await client.post("/book", booking), f"booked {user}")
            if number % 4 == 0:
                self._note(await client.post("/cancel", booking), f"cancelled {user}")
            if number % 4 == 1:
                self._note(await client.get(f"/status/{self._event}"), "")
            number += 1
            await asyncio.sleep(PAUSE_S)

    def _note(self, answer: Answer, change: str) -> None:
        self.statuses[answer.status] += 1
        if change and answer.status in (200, 201):
            self.changed.append(change)

    @contextlib.asynccontextmanager
    async def at(self, address: str) -> AsyncIterator[None]:
        """Be there meanwhile, and until a thousand have booked."""
        async with connected(address, CLIENTS) as clients:
            tasks = [
                asyncio.create_task(self.attend(place, client))
                for place, client in enumerate(clients)
            ]
            try:
                yield
                async with asyncio.timeout(90):
                    while self.statuses.total() < BOOKINGS_MIN:
                        await asyncio.sleep(PAUSE_S)
            finally:
                self.stopping = True
                await asyncio.gather(*tasks)


def restart(role: Role, port: int) -> None:
    """End a process as an operator does, and start it again."""
    role.stop()
    role.start()
    wait_until(lambda: is_ready(port), what="the process serves again")


async def test_a_rolling_restart_behind_nginx_and_haproxy_fails_no_request(
    service: Service, tmp_path: Path
) -> None:
    """Each answer is 200 or 201, and each change is on record once. haproxy never tried twice."""
    event = await asyncio.to_thread(service.open_event, 1_000_000)
    ports = [free_port(), free_port()]
    behind_nginx, behind_haproxy = Crowd("n", event), Crowd("h", event)
    with (
        api_process(service, ports[0], ONSALE_DRAIN_SECONDS=DRAIN_S) as one,
        api_process(service, ports[1], ONSALE_DRAIN_SECONDS=DRAIN_S) as other,
        nginx(tmp_path / "nginx", ports) as at_nginx,
        haproxy(tmp_path / "haproxy", ports) as at_haproxy,
    ):
        async with behind_nginx.at(at_nginx), behind_haproxy.at(at_haproxy):
            for role, port in ((one, ports[0]), (other, ports[1])):
                await asyncio.to_thread(restart, role, port)
        tries = haproxy_tries(tmp_path / "haproxy")
    assert behind_nginx.statuses.keys() == {200, 201}, behind_nginx.statuses
    assert behind_haproxy.statuses.keys() == {200, 201}, behind_haproxy.statuses
    assert not any(tries.values()), tries
    changed = [*behind_nginx.changed, *behind_haproxy.changed]
    record = await asyncpg.connect(service.servers.postgresql_url)
    try:
        assert sorted(await _on_record(record, event, len(changed))) == sorted(changed)
    finally:
        await record.close()


async def test_without_drain_and_repeats_a_restart_is_noticed(
    service: Service, tmp_path: Path
) -> None:
    """The control: haproxy has to try again, and an nginx that must not hands out 502."""
    event = await asyncio.to_thread(service.open_event, 1_000_000)
    ports = [free_port(), free_port()]
    behind_nginx, behind_haproxy = Crowd("n", event), Crowd("h", event)
    no_repeats = {
        "proxy_next_upstream error timeout;": "proxy_next_upstream off;",
        "proxy_next_upstream error timeout http_503 non_idempotent;": "",
    }
    with (
        api_process(service, ports[0]) as one,
        api_process(service, ports[1]),
        nginx(tmp_path / "nginx", ports, no_repeats) as at_nginx,
        haproxy(tmp_path / "haproxy", ports) as at_haproxy,
    ):
        async with behind_nginx.at(at_nginx), behind_haproxy.at(at_haproxy):
            # A check may come first now and then, and take the process out before a request.
            for _ in range(RESTARTS_MAX):
                await asyncio.to_thread(restart, one, ports[0])
                tries = haproxy_tries(tmp_path / "haproxy")
                if behind_nginx.statuses[502] and any(tries.values()):
                    break
    assert behind_nginx.statuses[502] > 0, behind_nginx.statuses
    assert any(tries.values()), tries
    assert behind_haproxy.statuses.keys() == {200, 201}, behind_haproxy.statuses


async def _on_record(
    record: "asyncpg.Connection[asyncpg.Record]", event: int, many: int
) -> list[str]:
    """Return the changes at an event in words, once there are as many."""
    query = "SELECT kind, user_id FROM journal WHERE event_id = $1 AND kind <> 'opened'"
    async with asyncio.timeout(90):
        while len(rows := await record.fetch(query, event)) < many:
            await asyncio.sleep(0.05)
    return [f"{row['kind']} {row['user_id']}" for row in rows]
