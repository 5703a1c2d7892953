"""PostgreSQL away under load: where what is not on record has a bound, and Redis does not fill."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from service.keys import partition_keys
from service.listener import bind, http_url, readiness
from service.room import CHANGE_BYTES
from tests.http.conftest import LoggedRole
from tests.servers import Servers, wait_until

BOOKINGS_MAX = (1 << 20) // CHANGE_BYTES
CANCELLATIONS_MAX = (2 << 20) // CHANGE_BYTES
BATCH = 128
TICKETS = 800
LONG = "u{:063d}"


@dataclass(frozen=True)
class Behind:
    """A service whose bounds are the least that can be set."""

    servers: Servers
    url: str
    valkey: Any
    api_log: Path

    def unrecorded(self) -> int:
        """Return R less W."""
        seq, recorded = self.valkey.hmget(partition_keys(0).meta, "seq", "recorded")
        return int(seq) - int(recorded)


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    """API and writer on servers that nobody else uses."""
    servers = Servers(tmp_path / "data")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(bind("127.0.0.1", 0))
        stack.callback(servers.stop)
        servers.start()
        servers.migrate(servers.postgresql_url)
        environment = {
            "REDIS_URL": servers.redis_url,
            "DATABASE_URL": servers.postgresql_url,
            "ONSALE_DATA_DIR": str(tmp_path / "data"),
            "ONSALE_METRICS_DIR": str(tmp_path / "metrics"),
            "ONSALE_UNRECORDED_BYTES_MAX": str(1 << 20),
            "ONSALE_CANCEL_RESERVE_BYTES": str(1 << 20),
            "ONSALE_LOG_FORMAT": "json",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        fd = listener.fileno()
        api = LoggedRole("api", environment, tmp_path / "api.log", "--fd", str(fd))
        writer = LoggedRole("writer", environment, tmp_path / "writer.log")
        for role in (writer, api):
            stack.callback(role.stop)
            role.start(pass_fds=(fd,) if role is api else ())
        valkey = redis.Redis.from_url(servers.redis_url, decode_responses=True)
        stack.callback(valkey.close)
        found = Behind(servers, http_url(listener), valkey, tmp_path / "api.log")
        wait_until(lambda: asyncio.run(readiness(listener)).ready, what="the service is ready")
        yield found


async def post(client: httpx.AsyncClient, path: str, users: Sequence[str]) -> list[httpx.Response]:
    """Send a batch at once."""
    bodies = ({"eventId": 1, "userId": user} for user in users)
    return await asyncio.gather(*(client.post(path, json=body) for body in bodies))


def codes(answers: Sequence[httpx.Response]) -> Counter[object]:
    """Count what was answered: the status, or a problem's code."""
    return Counter(a.json().get("code", a.status_code) for a in answers)


async def until_refused(
    client: httpx.AsyncClient, path: str, users: Sequence[str]
) -> list[httpx.Response]:
    """Send batch after batch until one is refused in part; return all answers."""
    answers: list[httpx.Response] = []
    for at in range(0, len(users), BATCH):
        answers += await post(client, path, users[at : at + BATCH])
        if "record_behind" in codes(answers):
            return answers
    pytest.fail(f"nothing was refused: {codes(answers)}")


async def turns(client: httpx.AsyncClient, code: str | None) -> None:
    """Wait until `/readyz` has a problem's code, or none."""
    async with asyncio.timeout(90):
        while (await client.get("/readyz")).json().get("code") != code:
            await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
async def test_with_postgresql_away_redis_does_not_fill(behind: Behind) -> None:
    """Bookings go on up to their bound, cancellations to theirs, reads for ever; then all again."""
    valkey = behind.valkey
    async with httpx.AsyncClient(base_url=behind.url, timeout=30, trust_env=False) as client:
        opened = await client.post("/initialize", json={"name": "A", "totalTickets": TICKETS})
        assert opened.json()["event"]["id"] == 1
        wait_until(lambda: behind.unrecorded() == 0, what="the opening is on record")
        behind.servers.kill("postgresql")
        before = valkey.info("memory")["used_memory"]

        users = [LONG.format(number) for number in range(2 * BOOKINGS_MAX)]
        answers = await until_refused(client, "/book", users)
        assert behind.unrecorded() == BOOKINGS_MAX
        counted = codes(answers)
        assert (counted[201], counted[202]) == (TICKETS, BOOKINGS_MAX - TICKETS)
        refused = next(a for a in answers if a.status_code == 503)
        assert refused.json()["type"] == "/problems/record_behind"
        assert 1 <= int(refused.headers["retry-after"]) <= 3

        # What changes nothing is answered, and so is whoever gives back: promotions included.
        assert codes(await post(client, "/book", users[:BATCH])) == {200: BATCH}
        cancelled = await until_refused(client, "/cancel", users)
        waiters = BOOKINGS_MAX - TICKETS
        assert sum(a.json().get("reassigned", False) for a in cancelled) == waiters
        assert behind.unrecorded() == CANCELLATIONS_MAX
        status = (await client.get("/status/1")).json()
        assert status["waitingListCount"] == 0
        assert (await client.get(f"/events/1/users/{users[BOOKINGS_MAX - 1]}")).json()[
            "status"
        ] == "booked"
        await turns(client, "record_behind")
        # The batches, the callers and the connections' buffers take some as well.
        assert valkey.info("memory")["used_memory"] - before < CANCELLATIONS_MAX * CHANGE_BYTES

        numbers = (await client.get("/metrics")).text
        for operation, most in (("book", BOOKINGS_MAX), ("cancel", CANCELLATIONS_MAX)):
            named = f'onsale_unrecorded_changes_max{{operation="{operation}"}}'
            assert f"{named} {most:.1f}" in numbers
            assert f'onsale_outcomes_total{{operation="{operation}",outcome="record_' in numbers

        await asyncio.to_thread(behind.servers.start_postgres)
        wait_until(lambda: behind.unrecorded() == 0, what="all is on record")
        assert codes(await post(client, "/book", ["again"])) == {201: 1}
        await turns(client, None)
    said = behind.api_log.read_text()
    assert "bookings stop at 1 MiB not on record (1024 changes)" in said
    assert "cancellations at 2 MiB (2048)" in said
