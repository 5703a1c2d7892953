"""The Starlette and the raw ASGI application that do nothing, and what they answer.

They read the body and answer what a booking is answered, a constant of the same size.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

BOOKED = json.dumps(
    {
        "message": "Ticket booked successfully",
        "status": "booked",
        "eventId": 1,
        "userId": "r01-000000001",
        "quantity": 1,
        "durability": "fsync",
        "epoch": 1,
        "seq": 100000,
    },
    separators=(",", ":"),
).encode()
STATUS = json.dumps(
    {
        "eventId": 1,
        "name": "Bench",
        "totalTickets": 10000000,
        "remainingTickets": 9900000,
        "waitingListCount": 0,
        "createdAt": "2026-01-01T00:00:00.000Z",
        "updatedAt": "2026-01-01T00:00:00.000Z",
    },
    separators=(",", ":"),
).encode()

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def json_answer(status: int, body: bytes = BOOKED) -> Response:
    """Return an answer in JSON."""
    return Response(body, status, media_type="application/json")


def application(
    book: Callable[[Request], Awaitable[Response]], lifespan: Lifespan | None = None
) -> Starlette:
    """Return what all have in common: the paths, and a constant about an event."""

    async def status(_: Request) -> Response:
        return json_answer(200, STATUS)

    async def livez(_: Request) -> Response:
        return json_answer(200, b"{}")

    routes = [
        Route("/book", book, methods=["POST"]),
        Route("/status/{event_id}", status, methods=["GET"]),
        Route("/livez", livez, methods=["GET"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def starlette() -> ASGIApp:
    """Read the body, answer a constant."""

    async def book(request: Request) -> Response:
        await request.body()
        return json_answer(201)

    return application(book)


def raw() -> ASGIApp:
    """Do the same with nothing between uvicorn and the answer."""
    headers = [
        (b"content-length", str(len(BOOKED)).encode()),
        (b"content-type", b"application/json"),
    ]
    start = {"type": "http.response.start", "status": 201, "headers": headers}
    end = {"type": "http.response.body", "body": BOOKED}
    live = {**start, "status": 200}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send(live if scope["path"] == "/livez" else start)
        await send(end)

    return app
