"""`Prefer: durability=recorded` over HTTP, and what comes of it when the writer stands still."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.http.conftest import Service

DEADLINE_S = 3.0
PREFER = {"Prefer": "durability=recorded"}

Client = httpx.AsyncClient


@contextlib.contextmanager
def frozen_writer(service: Service) -> Iterator[None]:
    """Let nothing be recorded meanwhile."""
    os.kill(service.writer.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(service.writer.pid, signal.SIGCONT)


@pytest.fixture
async def event_id(service: Service) -> int:
    """An event with two tickets, which is on record."""
    event_id = await asyncio.to_thread(service.open_event, 2)
    await asyncio.to_thread(service.stores.reached)
    return event_id


async def recorded(client: Client, location: str) -> dict[str, object]:
    """Follow a location until what is there is on record."""
    async with asyncio.timeout(60):
        while True:
            body: dict[str, object] = (await client.get(location, headers=PREFER)).json()
            if body["durability"] == "recorded":
                return body
            await asyncio.sleep(0.02)


async def test_an_answer_waits_when_it_is_asked_to(client: Client, event_id: int) -> None:
    """Booked, booked again, waiting, left, cancelled: each says `recorded`, and that it applied."""
    for path, user, status, outcome in (
        ("/book", 1, 201, "booked"),
        ("/book", 1, 200, "booked"),
        ("/book", 2, 201, "booked"),
        ("/book", 3, 202, "waiting"),
        ("/book", 3, 202, "waiting"),
        ("/cancel", 3, 200, "left_waiting_list"),
        ("/cancel", 1, 200, "cancelled"),
    ):
        answer = await client.post(path, json={"eventId": event_id, "userId": user}, headers=PREFER)
        assert (answer.status_code, answer.json()["status"]) == (status, outcome)
        assert answer.json()["durability"] == "recorded"
        assert answer.headers["preference-applied"] == "durability=recorded"
        state = await client.get(f"/events/{event_id}/users/{user}", headers=PREFER)
        assert (state.json()["seq"], state.json()["durability"]) == (
            answer.json()["seq"],
            "recorded",
        )


@pytest.mark.parametrize("prefer", ["wait=5", "durability=gold", "durability", '"', "x=" + "y" * 9])
async def test_other_preferences_change_nothing(client: Client, event_id: int, prefer: str) -> None:
    """They are ignored: the deployment's level, no header, no error."""
    answer = await client.post(
        "/book", json={"eventId": event_id, "userId": 1}, headers={"Prefer": prefer}
    )
    assert (answer.status_code, answer.json()["durability"]) == (201, "fsync")
    assert "preference-applied" not in answer.headers


async def test_the_level_that_is_given_anyway_may_be_asked_for(
    client: Client, event_id: int
) -> None:
    """It is honoured, and said to be; a lower one is not applied."""
    for prefer, applied in (("fsync", "durability=fsync"), ("memory", None)):
        answer = await client.post(
            "/book",
            json={"eventId": event_id, "userId": prefer},
            headers={"Prefer": f"durability={prefer}"},
        )
        assert (answer.status_code, answer.json()["durability"]) == (201, "fsync")
        assert answer.headers.get("preference-applied") == applied


async def test_an_event_may_wait_for_the_record_too(client: Client) -> None:
    """201 as ever, with the header."""
    body = {"name": "Event Name", "totalTickets": 1}
    answer = await client.post("/initialize", json=body, headers=PREFER)
    assert (answer.status_code, list(answer.json())) == (201, ["event"])
    assert answer.headers["preference-applied"] == "durability=recorded"


async def test_what_is_not_recorded_in_time_is_pending(
    service: Service, client: Client, event_id: int
) -> None:
    """202 at the deadline, never a failure; its Location follows it until it is recorded."""
    loop = asyncio.get_running_loop()
    await client.post("/book", json={"eventId": event_id, "userId": "early"})
    await asyncio.to_thread(service.stores.reached)
    with frozen_writer(service):
        began = loop.time()
        opening = {"name": "Event Name", "totalTickets": 1}
        user = {"eventId": event_id, "userId": "a|b"}
        early = {"eventId": event_id, "userId": "early"}
        opened, booked, cancelled = await asyncio.gather(
            client.post("/initialize", json=opening, headers=PREFER),
            client.post("/book", json=user, headers=PREFER),
            client.post("/cancel", json=early, headers=PREFER),
        )
        assert 0.9 * DEADLINE_S < loop.time() - began < 1.1 * DEADLINE_S
        for answer in (opened, booked, cancelled):
            assert (answer.status_code, answer.json()["status"]) == (202, "pending")
            assert answer.json()["durability"] == "none"
            assert "preference-applied" not in answer.headers
        assert opened.headers["location"] == f"/status/{opened.json()['eventId']}"
        assert (await client.get(opened.headers["location"])).json()["remainingTickets"] == 1
        state = (await client.get(booked.headers["location"])).json()
        assert (state["status"], state["durability"]) == ("booked", "fsync")
        at_once = await client.post("/book", json={"eventId": event_id, "userId": "c"})
        assert (at_once.status_code, at_once.json()["durability"]) == (201, "fsync")
    for answer, status in ((booked, "booked"), (cancelled, "cancelled")):
        state = await recorded(client, answer.headers["location"])
        assert (state["status"], state["seq"]) == (status, answer.json()["seq"])
    again = await client.post("/book", json=user, headers=PREFER)
    assert (again.status_code, again.json()["durability"]) == (200, "recorded")
    assert again.json()["seq"] == booked.json()["seq"]


async def test_refusals_do_not_wait(service: Service, client: Client, event_id: int) -> None:
    """What changed nothing promises nothing."""
    with frozen_writer(service):
        async with asyncio.timeout(0.8 * DEADLINE_S):
            user = {"eventId": event_id, "userId": "nobody"}
            answer = await client.post("/cancel", json=user, headers=PREFER)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_booked")
    assert "preference-applied" not in answer.headers
