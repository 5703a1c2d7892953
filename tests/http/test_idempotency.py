"""Idempotency-Key over HTTP: what a repeat is answered, what a key cannot be, and every kill."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.crowd import connected
from tests.http.conftest import Service
from tests.http.test_kills import stores
from tests.running import Running, running

__all__ = ["running"]

HEADER = "Idempotency-Key"


async def ask(
    client: httpx.AsyncClient, path: str, event_id: int, user: str, *keys: str
) -> httpx.Response:
    """Post, under a key or several."""
    body = {"eventId": event_id, "userId": user}
    return await client.post(path, json=body, headers=[(HEADER, key) for key in keys])


def but(answer: httpx.Response, *names: str) -> dict[str, Any]:
    """Return a body without some members."""
    return {name: held for name, held in answer.json().items() if name not in names}


async def test_a_booking_is_told_again(service: Service, client: httpx.AsyncClient) -> None:
    """The same status and words, 201 again, and beside it the state now; whatever came between."""
    event_id = service.open_event(1)
    first = await ask(client, "/book", event_id, "a", "k")
    again = await ask(client, "/book", event_id, "a", '"k"')
    assert (first.status_code, again.status_code) == (201, 201)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert but(again, "current") == first.json()
    assert again.json()["current"] == {"status": "booked", "seq": first.json()["seq"]}
    cancelled = await ask(client, "/cancel", event_id, "a")
    later = await ask(client, "/book", event_id, "a", "k")
    assert (later.status_code, but(later, "current")) == (201, first.json())
    assert later.json()["current"] == {"status": "cancelled", "seq": cancelled.json()["seq"]}
    assert (await client.get(f"/status/{event_id}")).json()["remainingTickets"] == 1


async def test_waiting_and_cancelling_are_told_again(
    service: Service, client: httpx.AsyncClient
) -> None:
    """202 with the position in `current` as it is now; 200 and `reassigned` as they were."""
    event_id = service.open_event(1)
    for user in ("a", "b", "c"):
        await ask(client, "/book", event_id, user, "k")
    gone = await ask(client, "/cancel", event_id, "a", "gone")
    left = await ask(client, "/book", event_id, "c", "k")
    assert (left.status_code, left.json()["status"]) == (202, "waiting")
    assert left.json()["current"]["position"] == 1
    assert "position" not in but(left, "current")
    again = await ask(client, "/cancel", event_id, "a", "gone")
    assert (again.status_code, but(again, "current")) == (200, gone.json())
    assert again.json()["reassigned"] is True
    left = await ask(client, "/cancel", event_id, "c", "left")
    again = await ask(client, "/cancel", event_id, "c", "left")
    assert but(again, "current") == left.json()
    assert again.json()["current"]["status"] == "left_waiting_list"


async def test_another_request_under_a_key_is_refused(
    service: Service, client: httpx.AsyncClient
) -> None:
    """422 with a code of its own, nothing done; a key that changed nothing is still free."""
    event_id = service.open_event(5)
    assert (await ask(client, "/cancel", event_id, "a", "k")).status_code == 404
    assert (await ask(client, "/book", event_id, "a", "k")).status_code == 201
    refused = await ask(client, "/cancel", event_id, "a", "k")
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    assert (await client.get(f"/status/{event_id}")).json()["remainingTickets"] == 4
    assert (await ask(client, "/book", event_id, "b", "k")).status_code == 201


@pytest.mark.parametrize("path", ["/book", "/cancel"])
@pytest.mark.parametrize("keys", [("",), ("x" * 65,), ("a b",), ("a/b",), ("a", "b"), ('"a',)])
async def test_what_cannot_be_a_key_is_refused(
    service: Service, client: httpx.AsyncClient, path: str, keys: tuple[str, ...]
) -> None:
    """422 naming the header, before anything is asked of a store."""
    answer = await ask(client, path, 1, "nobody", *keys)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["header"] for error in answer.json()["errors"]] == [HEADER]


async def test_equal_requests_at_once_have_one_effect(
    service: Service, client: httpx.AsyncClient
) -> None:
    """64 of them with one key: one ticket, one answer, 63 times told again."""
    event_id = service.open_event(9)
    answers = await asyncio.gather(*(ask(client, "/book", event_id, "a", "k") for _ in range(64)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({str(but(answer, "current")) for answer in answers}) == 1
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 63
    assert (await client.get(f"/status/{event_id}")).json()["remainingTickets"] == 8


@pytest.mark.parametrize("role", ["valkey", "api", "postgresql"])
@pytest.mark.timeout(300)
async def test_a_key_survives_kills_between_change_and_answer(running: Running, role: str) -> None:
    """Sent again until answered: a cancellation whose answer was lost is 200, never 404."""
    async with connected(running.urls["http"], 16) as clients:
        opened = await clients[0].post_until_answered(
            "/initialize", {"name": f"keys {role}", "totalTickets": 1_000}
        )
        event_id = opened.body["event"]["id"]
        seqs: dict[tuple[str, str], int] = {}
        stopping = asyncio.Event()

        async def attend(place: int) -> None:
            number = 0
            while not stopping.is_set():
                user = f"{place}-{number}"
                body = {"eventId": event_id, "userId": user}
                for path, wanted in (("/book", 201), ("/cancel", 200)):
                    answer = await clients[place].post_until_answered(path, body, path[1:])
                    assert answer.status == wanted, answer
                    seqs[user, path] = answer.body["seq"]
                number += 1

        crowd = [asyncio.create_task(attend(place)) for place in range(len(clients))]
        for _ in range(3):
            target = len(seqs) + 100
            while len(seqs) < target:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(running.kill, role)
            async with stores(running):
                pass
        stopping.set()
        await asyncio.gather(*crowd)
        async with stores(running) as (_, record):
            async with asyncio.timeout(90):
                last = "SELECT coalesce(max(seq), 0) FROM journal"
                while await record.fetchval(last) < max(seqs.values()):
                    await asyncio.sleep(0.05)
            rows = await record.fetch(
                "SELECT seq, kind, user_id FROM journal WHERE event_id = $1 AND user_id <> ''",
                event_id,
            )
        paths = {"booked": "/book", "cancelled": "/cancel"}
        assert {(row["user_id"], paths[row["kind"]]): row["seq"] for row in rows} == seqs
        assert len(rows) == len(seqs)
