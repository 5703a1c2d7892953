"""The main job under a crowd: a race for tickets, and promotions in order."""

import asyncio
from collections import Counter

import asyncpg
import redis.asyncio

from service.keys import partition_keys
from tests.conftest import Client
from tests.crowd import connected, post_all
from tests.http.conftest import Service

USERS, CONNECTIONS, TICKETS, CANCELLED = 5_000, 200, 500, 200
RECORDED_S = 5.0
"""A second is the promise, which a disk that others use may exceed: `make bench` measures it."""


async def test_five_thousand_race_for_five_hundred_tickets(service: Service) -> None:
    """Exactly 500 get 201, all others a position of their own; 200 cancel, the first 200 move up.

    Every change is on record within a second of the last answer.
    """
    event_id = await asyncio.to_thread(service.open_event, TICKETS)
    bodies = [{"eventId": event_id, "userId": user} for user in range(USERS)]
    async with connected(service.url, CONNECTIONS) as clients:
        answers = await post_all(clients, "/book", bodies)
        assert Counter(a.status for a in answers) == {201: TICKETS, 202: USERS - TICKETS}
        await _recorded_in_time(service)
        waiting = {a.body["position"]: a.body["userId"] for a in answers if a.status == 202}
        assert sorted(waiting) == list(range(1, USERS - TICKETS + 1))

        booked = [a.body["userId"] for a in answers if a.status == 201]
        cancelled = booked[:CANCELLED]
        done = await post_all(
            clients, "/cancel", [{"eventId": event_id, "userId": user} for user in cancelled]
        )
        assert {(a.status, a.body["reassigned"]) for a in done} == {(200, True)}
        await _recorded_in_time(service)
        status = await clients[0].get(f"/status/{event_id}")
        left = USERS - TICKETS - CANCELLED
        assert (status.body["remainingTickets"], status.body["waitingListCount"]) == (0, left)
        next_in_line = await clients[0].get(f"/events/{event_id}/users/{waiting[CANCELLED + 1]}")
        assert next_in_line.body["position"] == 1

    record = await asyncpg.connect(service.servers.postgresql_url)
    holders = await record.fetch(
        "SELECT user_id FROM bookings WHERE event_id = $1 AND status = 'booked'", event_id
    )
    first_in_line = [waiting[place] for place in range(1, CANCELLED + 1)]
    assert {row["user_id"] for row in holders} == {*booked[CANCELLED:], *first_in_line}
    promoted = await record.fetch(
        "SELECT user_id FROM journal WHERE event_id = $1 AND kind = 'promoted' ORDER BY seq",
        event_id,
    )
    assert [row["user_id"] for row in promoted] == first_in_line
    await record.close()


async def _recorded_in_time(service: Service) -> None:
    """Hold that P reaches R in time."""
    client: Client = redis.asyncio.Redis.from_url(service.servers.redis_url, decode_responses=True)
    record = await asyncpg.connect(service.servers.postgresql_url)
    last = int(await client.hget(partition_keys(0).meta, "seq"))
    async with asyncio.timeout(RECORDED_S):
        while await record.fetchval("SELECT seq FROM cursors WHERE partition = 0") < last:
            await asyncio.sleep(0.005)
    await record.close()
    await client.aclose()
