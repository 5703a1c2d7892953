"""The contract of the service that Onsale replaces, line by line, on the running service."""

import re
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from service.errors import PROBLEMS
from tests.http.conftest import Service

BOOKED = "Ticket booked successfully"
WAITING = "Added to waiting list"
CANCELLED = "Booking cancelled and ticket reassigned if applicable"
LEFT = "Left the waiting list"
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Client = httpx.AsyncClient


async def book(client: Client, event_id: int, user_id: object) -> httpx.Response:
    """Book one ticket."""
    return await client.post("/book", json={"eventId": event_id, "userId": user_id})


async def cancel(client: Client, event_id: int, user_id: object) -> httpx.Response:
    """Cancel, or leave the waiting list."""
    return await client.post("/cancel", json={"eventId": event_id, "userId": user_id})


async def user(client: Client, event_id: int, user_id: object) -> dict[str, object]:
    """Return what is told of a user who is known, but for how far it has come by now."""
    answer = await client.get(f"/events/{event_id}/users/{user_id}")
    assert answer.status_code == 200
    found = dict(answer.json())
    assert found.pop("durability") in ("fsync", "recorded")
    return found


async def counts(client: Client, event_id: int) -> tuple[int, int]:
    """Return the remaining tickets and how many wait."""
    status = (await client.get(f"/status/{event_id}")).json()
    return status["remainingTickets"], status["waitingListCount"]


def assert_problem(answer: httpx.Response, code: str) -> None:
    """Hold that an answer is this problem, with the `message` that original clients read."""
    assert answer.status_code == PROBLEMS[code].status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert answer.json()["message"] == PROBLEMS[code].title


def assert_recent(text: str) -> None:
    """Hold that a text is a time of these minutes, in UTC and to the millisecond."""
    assert RFC_3339.fullmatch(text)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(text)) < timedelta(minutes=1)


async def test_initialize_opens_an_event(client: Client) -> None:
    """201 with the event's six fields, and where its status is."""
    answer = await client.post("/initialize", json={"name": "Event Name", "totalTickets": 100})
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    event = answer.json()["event"]
    assert list(answer.json()) == ["event"]
    assert_recent(event.pop("createdAt"))
    assert_recent(event.pop("updatedAt"))
    event_id = event.pop("id")
    assert isinstance(event_id, int)
    assert event == {"name": "Event Name", "totalTickets": 100, "remainingTickets": 100}
    assert answer.headers["location"] == f"/status/{event_id}"


def test_event_ids_count_from_one(service: Service) -> None:
    """The first event of a service is 1, and each later one has a larger id."""
    assert service.stores.query("SELECT min(id) FROM events") == (1,)
    first, second = service.open_event(), service.open_event()
    assert 1 < first < second


@pytest.mark.parametrize(
    "name", ["a", "é" * 200, " ", "日本 🎟 <b>\"'\\/\n\t\u2028", "\ud7ff\uffff"]
)
async def test_a_name_is_kept_as_it_is(client: Client, name: str) -> None:
    """A name of 1 to 200 characters comes back unchanged, from every route."""
    answer = await client.post("/initialize", json={"name": name, "totalTickets": 1})
    event = answer.json()["event"]
    assert event["name"] == name
    assert (await client.get(f"/status/{event['id']}")).json()["name"] == name


@pytest.mark.parametrize("tickets", [1, 10_000_000])
async def test_an_event_may_have_one_ticket_or_ten_million(client: Client, tickets: int) -> None:
    """Both bounds of totalTickets are inside."""
    answer = await client.post("/initialize", json={"name": "a", "totalTickets": tickets})
    assert answer.json()["event"]["remainingTickets"] == tickets


async def test_two_events_of_one_name_are_two(client: Client) -> None:
    """A name identifies nothing; opening again opens another event."""
    body = {"name": "The same", "totalTickets": 1}
    answers = [(await client.post("/initialize", json=body)).json()["event"] for _ in range(2)]
    assert answers[0]["id"] != answers[1]["id"]


async def test_book_takes_a_ticket(client: Client, service: Service) -> None:
    """201 with the original message and what stands, and one ticket less."""
    event_id = service.open_event(2)
    answer = await book(client, event_id, 123)
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/events/{event_id}/users/123"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body.pop("seq") > 0
    assert body.pop("epoch") > 0
    assert body == {
        "message": BOOKED,
        "status": "booked",
        "eventId": event_id,
        "userId": "123",
        "quantity": 1,
        "durability": "fsync",
    }
    assert await counts(client, event_id) == (1, 0)


async def test_book_where_all_is_sold_waits(client: Client, service: Service) -> None:
    """202 with the original message and the true position, first come, first served."""
    event_id = service.open_event()
    await book(client, event_id, "first")
    for position, who in enumerate(("a", "b", "c"), start=1):
        answer = await book(client, event_id, who)
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/events/{event_id}/users/{who}"
        body = answer.json()
        assert (body["message"], body["status"]) == (WAITING, "waiting")
        assert body["position"] == position
    assert await counts(client, event_id) == (0, 3)


async def test_the_same_booking_again_is_the_one_that_stands(
    client: Client, service: Service
) -> None:
    """200 and the first answer's body: no second ticket for one user."""
    event_id = service.open_event(2)
    first = await book(client, event_id, 1)
    again = await book(client, event_id, 1)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert await counts(client, event_id) == (1, 0)


async def test_waiting_again_tells_the_position_now(client: Client, service: Service) -> None:
    """202 while waiting, with the place after somebody ahead has left; nobody waits twice."""
    event_id = service.open_event()
    for who in (1, 2, 3):
        await book(client, event_id, who)
    assert (await book(client, event_id, 3)).json()["position"] == 2
    await cancel(client, event_id, 2)
    again = await book(client, event_id, 3)
    assert (again.status_code, again.json()["position"]) == (202, 1)
    assert await counts(client, event_id) == (0, 1)


@pytest.mark.parametrize("quantity", [{}, {"quantity": 1}])
async def test_a_quantity_of_one_may_be_said(
    client: Client, service: Service, quantity: dict[str, int]
) -> None:
    """`quantity` is absent or 1."""
    body = {"eventId": service.open_event(), "userId": 1, **quantity}
    answer = await client.post("/book", json=body)
    assert (answer.status_code, answer.json()["quantity"]) == (201, 1)


async def test_a_number_and_its_digits_are_one_user(client: Client, service: Service) -> None:
    """1 and "1" have one booking, answered as text."""
    event_id = service.open_event(2)
    assert (await book(client, event_id, 1)).status_code == 201
    again = await book(client, event_id, "1")
    assert (again.status_code, again.json()["userId"]) == (200, "1")
    assert (await cancel(client, event_id, "1")).status_code == 200
    assert await counts(client, event_id) == (2, 0)


@pytest.mark.parametrize("user_id", ["01", "1.0", "+1", "-1", "1e0"])
async def test_what_only_looks_like_a_number_is_another_user(
    client: Client, service: Service, user_id: str
) -> None:
    """Text is compared as text: "01" is not 1."""
    event_id = service.open_event(2)
    await book(client, event_id, 1)
    answer = await book(client, event_id, user_id)
    assert (answer.status_code, answer.json()["userId"]) == (201, user_id)


@pytest.mark.parametrize(
    "user_id", [0, 2**53 - 1, "a" * 64, "azAZ09._~@:+|=-", "mail+tag@example.com", "|", "__proto__"]
)
async def test_every_user_id_is_kept_and_found_again(
    client: Client, service: Service, user_id: object
) -> None:
    """Whatever may be in a user id, `Location` leads to that user."""
    event_id = service.open_event()
    answer = await book(client, event_id, user_id)
    assert answer.status_code == 201
    location = answer.headers["location"]
    assert re.fullmatch(r"[A-Za-z0-9._~@:+=/%-]+", location)  # a URI as it stands
    found = await client.get(location)
    assert (found.status_code, found.json()["userId"]) == (200, str(user_id))


async def test_cancel_gives_the_ticket_back(client: Client, service: Service) -> None:
    """200 with the original message; nobody waited, so nothing was reassigned."""
    event_id = service.open_event()
    booked = (await book(client, event_id, 123)).json()
    answer = await cancel(client, event_id, 123)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body.pop("seq") > booked["seq"]
    assert body.pop("epoch") == booked["epoch"]
    assert body == {
        "message": CANCELLED,
        "status": "cancelled",
        "eventId": event_id,
        "userId": "123",
        "reassigned": False,
        "durability": "fsync",
    }
    assert await counts(client, event_id) == (1, 0)


async def test_cancel_promotes_the_first_who_waits(client: Client, service: Service) -> None:
    """The ticket goes to the head of the list in the same step; the answer does not say whose."""
    event_id = service.open_event()
    for who in ("holder", "first_waiter", "second_waiter"):
        await book(client, event_id, who)
    answer = await cancel(client, event_id, "holder")
    assert (answer.json()["status"], answer.json()["reassigned"]) == ("cancelled", True)
    assert "waiter" not in answer.text
    assert (await user(client, event_id, "first_waiter"))["status"] == "booked"
    assert (await user(client, event_id, "second_waiter"))["position"] == 1
    assert await counts(client, event_id) == (0, 1)


async def test_cancel_by_somebody_who_waits_leaves_the_list(
    client: Client, service: Service
) -> None:
    """200 `left_waiting_list`, nothing reassigned, and everybody behind moves up."""
    event_id = service.open_event()
    for who in (1, 2, 3):
        await book(client, event_id, who)
    answer = await cancel(client, event_id, 2)
    body = answer.json()
    assert answer.status_code == 200
    assert (body["message"], body["status"], body["reassigned"]) == (
        LEFT,
        "left_waiting_list",
        False,
    )
    assert (await user(client, event_id, 3))["position"] == 1
    assert await counts(client, event_id) == (0, 1)


async def test_cancel_without_a_booking_is_404(client: Client, service: Service) -> None:
    """Who has neither a ticket nor a place is told "Booking not found"."""
    answer = await cancel(client, service.open_event(), 123)
    assert_problem(answer, "not_booked")
    assert answer.json()["message"] == "Booking not found"


async def test_cancel_twice_is_404(client: Client, service: Service) -> None:
    """The second cancellation finds nothing, and gives no second ticket back."""
    event_id = service.open_event()
    await book(client, event_id, 1)
    assert (await cancel(client, event_id, 1)).status_code == 200
    assert_problem(await cancel(client, event_id, 1), "not_booked")
    assert await counts(client, event_id) == (1, 0)


async def test_who_cancelled_may_book_again(client: Client, service: Service) -> None:
    """201 where a ticket is left: a cancellation is no ban."""
    event_id = service.open_event()
    first = (await book(client, event_id, 1)).json()
    await cancel(client, event_id, 1)
    again = await book(client, event_id, 1)
    assert again.status_code == 201
    assert again.json()["seq"] > first["seq"]
    assert await counts(client, event_id) == (0, 0)


async def test_who_cancelled_waits_behind_all_others(client: Client, service: Service) -> None:
    """Booking again where all is sold begins at the end of the list."""
    event_id = service.open_event()
    for who in (1, 2, 3):
        await book(client, event_id, who)
    await cancel(client, event_id, 1)
    again = await book(client, event_id, 1)
    assert (again.status_code, again.json()["position"]) == (202, 2)


async def test_who_left_the_list_waits_behind_all_others(client: Client, service: Service) -> None:
    """Leaving gives the place up for good."""
    event_id = service.open_event()
    for who in (1, 2, 3):
        await book(client, event_id, who)
    await cancel(client, event_id, 2)
    assert (await book(client, event_id, 2)).json()["position"] == 2


async def test_status_tells_how_an_event_stands(client: Client, service: Service) -> None:
    """All four fields of the original's documentation, and the times."""
    opened = await client.post("/initialize", json={"name": "Event Name", "totalTickets": 2})
    event = opened.json()["event"]
    for who in (1, 2, 3):
        await book(client, event["id"], who)
    answer = await client.get(f"/status/{event['id']}")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    body = answer.json()
    assert body.pop("createdAt") == event["createdAt"]
    updated_at = body.pop("updatedAt")
    assert_recent(updated_at)
    assert updated_at >= event["updatedAt"]
    assert body == {
        "eventId": event["id"],
        "name": "Event Name",
        "totalTickets": 2,
        "remainingTickets": 0,
        "waitingListCount": 1,
    }


async def test_a_users_state_is_told_at_every_step(client: Client, service: Service) -> None:
    """Unknown, booked, waiting, left, cancelled, promoted: each under its own word."""
    event_id = service.open_event()
    path = f"/events/{event_id}/users/2"
    about = {"eventId": event_id, "userId": "2"}
    assert_problem(await client.get(path), "not_booked")

    await book(client, event_id, 1)
    waiting = (await book(client, event_id, 2)).json()
    assert await user(client, event_id, 2) == {
        **about, "status": "waiting", "quantity": 1, "position": 1, "seq": waiting["seq"],
    }  # fmt: skip
    left = (await cancel(client, event_id, 2)).json()
    assert await user(client, event_id, 2) == {
        **about, "status": "left_waiting_list", "seq": left["seq"],
    }  # fmt: skip
    await book(client, event_id, 2)
    await cancel(client, event_id, 1)
    promoted = await user(client, event_id, 2)
    assert promoted.pop("seq")
    assert promoted == {**about, "status": "booked", "quantity": 1}
    cancelled = (await cancel(client, event_id, 2)).json()
    assert await user(client, event_id, 2) == {
        **about, "status": "cancelled", "seq": cancelled["seq"],
    }  # fmt: skip
    booked = (await book(client, event_id, 2)).json()
    assert await user(client, event_id, 2) == {
        **about, "status": "booked", "quantity": 1, "seq": booked["seq"],
    }  # fmt: skip
    assert (await client.get(path)).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("event_id", [999_999_999, 2**53 - 1])
async def test_an_unknown_event_is_404_everywhere(client: Client, event_id: int) -> None:
    """Each route says "Event not found" of an event that was never opened."""
    for answer in (
        await book(client, event_id, 1),
        await cancel(client, event_id, 1),
        await client.get(f"/status/{event_id}"),
        await client.get(f"/events/{event_id}/users/1"),
    ):
        assert_problem(answer, "event_not_found")
        assert answer.json()["message"] == "Event not found"


async def test_live_and_ready(client: Client) -> None:
    """Both say so with 200, and are not to be stored."""
    for path, status in (("/livez", "live"), ("/readyz", "ready")):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": status})
        assert answer.headers["cache-control"] == "no-store"


async def test_the_first_page_leads_to_the_documentation(client: Client) -> None:
    """Who opens the address in a browser ends at /docs."""
    answer = await client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")
    assert (await client.get("/", follow_redirects=True)).status_code == 200


@pytest.mark.parametrize("code", PROBLEMS)
async def test_every_code_has_its_page(client: Client, code: str) -> None:
    """What a problem's `type` names is there, and says what the code means."""
    answer = await client.get(f"/problems/{code}")
    known = PROBLEMS[code]
    assert (answer.status_code, answer.json()) == (
        200,
        {"code": code, "status": known.status, "title": known.title, "repeat": known.repeat},
    )


async def test_the_type_of_a_problem_leads_to_its_page(client: Client, service: Service) -> None:
    """`type` is an address of this service."""
    problem = (await cancel(client, service.open_event(), 1)).json()
    assert (await client.get(problem["type"])).json()["code"] == problem["code"]
