"""Whatever the hot path takes, the handlers would take too, and as the same request."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.answers import booking_answer, cancellation_answer
from service.hot_answers import HANG_UP, booking_bytes, cancellation_bytes
from service.hot_path import _CHANGES
from service.lineage import Position
from service.models import ID_MAX, BookRequest, CancelRequest
from service.results import Booking, Cancellation

REQUESTS: dict[bytes, type[BookRequest] | type[CancelRequest]] = {
    b"/book": BookRequest,
    b"/cancel": CancelRequest,
}
NEAR: list[object] = [
    *(0, 1, -1, ID_MAX, ID_MAX + 1, 2**63, 2**64, 1.0, 1.5, 1e3, True, False, None, [], {}),
    *("", "a", "1", "01", "a" * 64, "a" * 65, "é", "a b", "a\n", "a\u0000", "a|b", "~@:+=-._", "٣"),
]
values = st.one_of(st.sampled_from(NEAR), st.integers(), st.text(max_size=70), st.floats())
bodies = st.dictionaries(
    st.sampled_from(["eventId", "userId", "quantity", "other", "eventid"]), values
).map(json.dumps)
TEXTS = [
    *('{"eventId":1,"userId":1,"eventId":2}', '{"eventId":1,"userId":1}x', '{"eventId":01}'),
    *(' {"eventId" : 1 , "userId" : "a" }\n', '{"eventId":1,"userId":"\\u0061"}', "[]", "", "1"),
    *(
        '{"eventId":1,"userId":NaN}',
        '{"eventId":1,"userId":"\\ud800"}',
        '{"eventId":1e0,"userId":1}',
    ),
]


def taken(model: type[Any], body: str) -> tuple[int, str, int] | None:
    """Return what a model makes of a body, None where it is refused."""
    try:
        found = model.model_validate_json(body.encode())
    except ValidationError:
        return None
    return found.eventId, str(found.userId), getattr(found, "quantity", 1)


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("body", TEXTS)
def test_texts_are_read_alike(path: bytes, body: str) -> None:
    """Duplicates, white space, escapes, what is no JSON."""
    assert taken(_CHANGES[path].model, body) == taken(REQUESTS[path], body)


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("value", NEAR)
@pytest.mark.parametrize("field", ["eventId", "userId", "quantity", "other"])
def test_values_are_read_alike(path: bytes, field: str, value: object) -> None:
    """At every bound of every field."""
    body = json.dumps({"eventId": 1, "userId": "a", field: value})
    assert taken(_CHANGES[path].model, body) == taken(REQUESTS[path], body)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from(sorted(REQUESTS)), body=bodies)
def test_anything_is_read_alike(path: bytes, body: str) -> None:
    """Whatever comes."""
    assert taken(_CHANGES[path].model, body) == taken(REQUESTS[path], body)


def encoded(response: Any) -> tuple[int, bytes]:
    """Return an answer as uvicorn writes it, behind what every answer has."""
    lines = [b"%b: %b\r\n" % header for header in response.raw_headers]
    return response.status_code, b"".join((*lines, b"\r\n", response.body))


@pytest.mark.parametrize("prefer", ["", "recorded"])
@pytest.mark.parametrize("user", ["a", "a|b~@:+=-._", "9" * 16])
@pytest.mark.parametrize("status", ["booked", "waiting"])
@pytest.mark.parametrize("new", [True, False])
def test_bookings_are_answered_alike(prefer: str, user: str, status: str, new: bool) -> None:
    """To the byte."""
    reached: Any = prefer or "fsync"
    booking = Booking(status, new, Position(3, 12_345), 7 if status == "waiting" else 0, reached)
    applied = "preference-applied: durability=recorded\r\n" if prefer else ""
    assert booking_bytes(12, user, booking, reached, applied, "") == encoded(
        booking_answer(12, user, booking, prefer)
    )


@pytest.mark.parametrize("prefer", ["", "recorded"])
@pytest.mark.parametrize(
    ("status", "reassigned"),
    [("cancelled", True), ("cancelled", False), ("left_waiting_list", False)],
)
def test_cancellations_are_answered_alike(prefer: str, status: str, reassigned: bool) -> None:
    """To the byte."""
    reached: Any = prefer or "memory"
    done = Cancellation(status, Position(3, 12_345), reassigned, reached)
    applied = "preference-applied: durability=recorded\r\n" if prefer else ""
    assert cancellation_bytes(12, "a", done, reached, applied, "") == encoded(
        cancellation_answer(12, "a", done, prefer)
    )


def test_who_is_hung_up_on_is_told() -> None:
    """In the head, before the body."""
    done = Cancellation("cancelled", Position(1, 2), reassigned=False)
    _, rest = cancellation_bytes(1, "a", done, "fsync", "", HANG_UP)
    head, _, body = rest.partition(b"\r\n\r\n")
    assert head.endswith(b"\r\nconnection: close")
    assert json.loads(body)["status"] == "cancelled"
