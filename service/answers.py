"""The answers of the API: changes, what is not known to be on record, and what is read. Pure.

The words and the headers stand here once; `hot_path` writes the most frequent of them by templates,
and a test holds both alike.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b

from starlette.responses import Response

from service.bodies import answer
from service.idempotency import REPLAYED
from service.lineage import Position
from service.results import (
    Booking,
    Cancellation,
    EventState,
    Reached,
    Standing,
    UserState,
)

_START = datetime(1970, 1, 1, tzinfo=UTC)
NO_STORE: Mapping[str, str] = {"Cache-Control": "no-store"}
BOOKED = "Ticket booked successfully"
WAITING = "Added to waiting list"
CANCELLED = "Booking cancelled and ticket reassigned if applicable"
LEFT = "Left the waiting list"
_PENDING = "Not on record yet; its Location tells when it is"


def booking_answer(event_id: int, user_id: str, booking: Booking, prefer: str) -> Response:
    """Encode what a booking came to: 201, 202 while waiting or pending, 200 for one that stood."""
    about = {"eventId": event_id, "userId": user_id}
    headers = {"Location": location(event_id, user_id), **NO_STORE, **_replayed(booking.current)}
    if booking.durability == "none":
        return pending_answer(about, booking.at, headers)
    waiting = booking.status == "waiting"
    body: dict[str, object] = {
        "message": WAITING if waiting else BOOKED,
        "status": booking.status,
        **about,
        "quantity": 1,
        "durability": booking.durability,
        "epoch": booking.at.epoch,
        "seq": booking.at.seq,
    }
    if booking.current is not None:
        body["current"] = _current(booking.current)
    elif waiting:
        body["position"] = booking.position
    status = 202 if waiting else 201 if booking.new else 200
    return answer(status, body, {**headers, **applied(prefer, booking.durability)})


def cancellation_answer(event_id: int, user_id: str, done: Cancellation, prefer: str) -> Response:
    """Encode what a cancellation came to: 200, 202 while pending. Never says who was promoted."""
    about = {"eventId": event_id, "userId": user_id}
    headers = {**NO_STORE, **_replayed(done.current)}
    if done.durability == "none":
        return pending_answer(about, done.at, {"Location": location(event_id, user_id), **headers})
    body: dict[str, object] = {
        "message": LEFT if done.status == "left_waiting_list" else CANCELLED,
        "status": done.status,
        **about,
        "reassigned": done.reassigned,
        "durability": done.durability,
        "epoch": done.at.epoch,
        "seq": done.at.seq,
    }
    if done.current is not None:
        body["current"] = _current(done.current)
    return answer(200, body, {**headers, **applied(prefer, done.durability)})


def status_answer(event: EventState, known: str) -> Response:
    """Encode how an event stands: 200, or 304 where `known`, of If-None-Match, says the same.

    The ETag is of the body's bytes.
    """
    body = {
        "eventId": event.event_id,
        "name": event.name,
        "totalTickets": event.capacity,
        "remainingTickets": event.available,
        "waitingListCount": event.waiting,
        "createdAt": time_text(event.created_at),
        "updatedAt": time_text(event.updated_at),
    }
    found = answer(200, body, {"Cache-Control": "no-cache"})
    tag = f'"{blake2b(bytes(found.body), digest_size=8).hexdigest()}"'
    if known and is_known(tag, known):
        return Response(status_code=304, headers={"Cache-Control": "no-cache", "ETag": tag})
    found.headers["ETag"] = tag
    return found


def is_known(tag: str, known: str) -> bool:
    """Whether If-None-Match names a tag; compared weakly, as RFC 9110 has it for a GET."""
    return known.strip() == "*" or tag in (
        named.strip().removeprefix("W/") for named in known.split(",")
    )


def user_answer(event_id: int, user_id: str, state: UserState, prefer: str) -> Response:
    """Encode a user's state: 200."""
    body: dict[str, object] = {"eventId": event_id, "userId": user_id, "status": state.status}
    if state.status in ("booked", "waiting"):
        body["quantity"] = 1
    if state.status == "waiting":
        body["position"] = state.position
    body["durability"] = state.durability
    body["seq"] = state.seq
    return answer(200, body, {**NO_STORE, **applied(prefer, state.durability)})


def time_text(at: int) -> str:
    """Return microseconds since 1970 as RFC 3339: UTC, to the millisecond as the original did."""
    moment = _START + timedelta(microseconds=at)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def pending_answer(
    about: Mapping[str, object], at: Position, headers: Mapping[str, str]
) -> Response:
    """Encode a change that waited for the record in vain: 202, and nothing promised yet."""
    body = {
        "message": _PENDING,
        "status": "pending",
        **about,
        "durability": "none",
        "epoch": at.epoch,
        "seq": at.seq,
    }
    return answer(202, body, headers)


def location(event_id: int, user_id: str) -> str:
    """Return where a user's state appears."""
    return f"/events/{event_id}/users/{user_id.replace('|', '%7C')}"


def applied(prefer: str, reached: Reached) -> dict[str, str]:
    """Return the header that says that a preference was honoured, where it was."""
    return {"Preference-Applied": f"durability={prefer}"} if prefer == reached else {}


def _replayed(current: Standing | None) -> Mapping[str, str]:
    """Return the header that says that nothing was done, where an answer is told again."""
    return REPLAYED if current is not None else {}


def _current(now: Standing) -> dict[str, object]:
    position = {"position": now.position} if now.status == "waiting" else {}
    return {"status": now.status, **position, "seq": now.seq}
