"""The HTTP edge: decode, call the engine, encode. No Redis and no SQL here.

A refusal is a `Problem`, which `app` encodes. Answers about one user are not to be stored by
anybody in between. A change that was made is never answered as a problem: what is not known to
be on record, and was asked to be, is `pending`.
"""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from service.answers import (
    NO_STORE,
    applied,
    booking_answer,
    cancellation_answer,
    pending_answer,
    status_answer,
    time_text,
    user_answer,
)
from service.bodies import answer, read_body
from service.draining import Draining
from service.engine import Engine
from service.errors import PROBLEMS, Problem
from service.idempotency import keyed_by
from service.models import (
    INITIALIZE_BODY_BYTES_MAX,
    BookRequest,
    CancelRequest,
    InitializeRequest,
    parse_event_id,
    parse_user_id,
)
from service.preferences import preferred
from service.readiness import Readiness


class Handlers:
    """The handlers of one application."""

    def __init__(self, engine: Engine, readiness: Readiness, draining: Draining) -> None:
        """Take the engine that decides, what is known of its partitions, and of a going down."""
        self._engine = engine
        self._readiness = readiness
        self._draining = draining

    def routes(self) -> list[Route]:
        """Return the routes of the API."""
        return [
            Route("/initialize", self.initialize, methods=["POST"]),
            Route("/book", self.book, methods=["POST"]),
            Route("/cancel", self.cancel, methods=["POST"]),
            Route("/status/{event_id}", self.status, methods=["GET"]),
            Route("/events/{event_id}/users/{user_id}", self.user, methods=["GET"]),
            Route("/problems/{code}", self.problem, methods=["GET"]),
            Route("/livez", self.livez, methods=["GET"]),
            Route("/readyz", self.readyz, methods=["GET"]),
            Route("/", self.index, methods=["GET"]),
        ]

    async def initialize(self, request: Request) -> Response:
        """Open an event: 201."""
        asked = await read_body(request, InitializeRequest, bytes_max=INITIALIZE_BODY_BYTES_MAX)
        prefer = preferred(request.headers, "durability")
        event = await self._engine.initialize(asked.name, asked.totalTickets, prefer)
        location = {"Location": f"/status/{event.event_id}"}
        if event.durability == "none":
            return pending_answer({"eventId": event.event_id}, event.at, location)
        body = {
            "id": event.event_id,
            "name": event.name,
            "totalTickets": event.capacity,
            "remainingTickets": event.available,
            "createdAt": time_text(event.created_at),
            "updatedAt": time_text(event.updated_at),
        }
        return answer(201, {"event": body}, {**location, **applied(prefer, event.durability)})

    async def book(self, request: Request) -> Response:
        """Book: 201, 202 while waiting, 200 for a booking that stood."""
        asked = await read_body(request, BookRequest)
        prefer = preferred(request.headers, "durability")
        keyed = keyed_by(request, "book", quantity=asked.quantity)
        booking = await self._engine.book(asked.eventId, asked.userId, keyed=keyed, prefer=prefer)
        return booking_answer(asked.eventId, asked.userId, booking, prefer)

    async def cancel(self, request: Request) -> Response:
        """Cancel, or leave the waiting list: 200. Never says who was promoted."""
        asked = await read_body(request, CancelRequest)
        prefer = preferred(request.headers, "durability")
        keyed = keyed_by(request, "cancel")
        done = await self._engine.cancel(asked.eventId, asked.userId, keyed=keyed, prefer=prefer)
        return cancellation_answer(asked.eventId, asked.userId, done, prefer)

    async def status(self, request: Request) -> Response:
        """Tell how an event stands: 200, or 304 to who knows it."""
        event = await self._engine.event(_event_id(request))
        return status_answer(event, ",".join(request.headers.getlist("if-none-match")))

    async def user(self, request: Request) -> Response:
        """Tell a user's state: 200."""
        event_id = _event_id(request)
        user_id = parse_user_id(request.path_params["user_id"])
        if user_id is None:
            raise Problem("not_booked")
        prefer = preferred(request.headers, "durability")
        state = await self._engine.user(event_id, user_id, prefer)
        return user_answer(event_id, user_id, state, prefer)

    async def problem(self, request: Request) -> Response:
        """Explain a problem's code: what a `type` points to."""
        code = request.path_params["code"]
        if code not in PROBLEMS:
            raise Problem("not_found")
        known = PROBLEMS[code]
        body = {
            "code": code,
            "status": known.status,
            "title": known.title,
            "repeat": known.repeat,
        }
        return answer(200, body)

    async def livez(self, _: Request) -> Response:
        """Say that this process answers: 200, whatever the stores do."""
        return answer(200, {"status": "live"}, NO_STORE)

    async def readyz(self, _: Request) -> Response:
        """Say whether bookings are taken: 200, or the problem that stands in the way."""
        if self._draining.begun:
            raise Problem("draining")
        self._readiness.check()
        return answer(200, {"status": "ready"}, NO_STORE)

    async def index(self, _: Request) -> Response:
        """Lead a person who opens the address to the documentation."""
        return RedirectResponse("/docs", status_code=307)


def _event_id(request: Request) -> int:
    event_id = parse_event_id(request.path_params["event_id"])
    if event_id is None:
        raise Problem("event_not_found")
    return event_id
