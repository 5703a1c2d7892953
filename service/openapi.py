"""`/openapi.json` and `/docs`: the API described from the same models that validate it.

The page and its scripts come out of an installed package, so that nothing is asked of the outside.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import swagger_ui_bundle
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from service import models
from service.bodies import answer
from service.errors import PROBLEMS, Problem

_REQUESTS = (models.InitializeRequest, models.BookRequest, models.CancelRequest)
_ANSWERS = (
    models.InitializeAnswer,
    models.BookAnswer,
    models.CancelAnswer,
    models.StatusAnswer,
    models.UserAnswer,
    models.ProblemAnswer,
    models.Health,
)
_BODY = ("invalid_json", "body_too_large", "unsupported_media_type", "invalid_request")
_STORES = ("overloaded", "unavailable", "closed")
_UNSURE = (*_STORES, "record_behind", "outcome_unknown")
_REF = "#/components/schemas/{model}"

_EVENT_ID = {
    "name": "eventId",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 1, "maximum": models.ID_MAX},
    "example": 1,
}
_USER_ID = {
    "name": "userId",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._~@:+|=-]{1,64}$"},
    "example": "123",
}
_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where the state appears"}}

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Onsale: the API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  validatorUrl: null,
  defaultModelsExpandDepth: 0,
});
</script>
</body>
</html>
"""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:;"
        " script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"
    ),
}
_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}


def routes() -> list[Route]:
    """Return the routes of the documentation; the document is made once."""
    described = document()

    async def openapi(_: Request) -> Response:
        return answer(200, described)

    return [
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/docs", _docs, methods=["GET"]),
        Route("/docs/{file}", _file, methods=["GET"]),
    ]


def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Onsale",
            "version": version("onsale"),
            "summary": "Sells tickets at the moment when everybody wants one.",
            "description": (
                "A 201 is a promise: the booking was fsynced before it was sent. When an event is"
                " sold out, booking joins its waiting list, and a cancellation promotes the first"
                " who waits in the same step. Booking and cancelling are idempotent by event and"
                " user, so a request whose outcome is not known may be sent again as it was."
            ),
        },
        "tags": [{"name": "booking"}, {"name": "health"}],
        "paths": _paths(),
        "components": {"schemas": _schemas()},
    }


def _paths() -> dict[str, Any]:
    book = models.BookAnswer
    health = models.Health
    return {
        "/initialize": {
            "post": _operation(
                "Open an event",
                "initialize",
                {201: ("The event is open", models.InitializeAnswer, _LOCATION)},
                (*_BODY, *_UNSURE),
                body=models.InitializeRequest,
            )
        },
        "/book": {
            "post": _operation(
                "Book a ticket, or join the waiting list",
                "book",
                {
                    200: ("The same booking again: it stands", book, _LOCATION),
                    201: ("Booked", book, _LOCATION),
                    202: ("Waiting; `position` counts from 1", book, _LOCATION),
                },
                (*_BODY, "event_not_found", *_UNSURE),
                body=models.BookRequest,
            )
        },
        "/cancel": {
            "post": _operation(
                "Give a ticket back, or leave the waiting list",
                "cancel",
                {200: ("Cancelled, or left the waiting list", models.CancelAnswer, {})},
                (*_BODY, "event_not_found", "not_booked", *_UNSURE),
                body=models.CancelRequest,
            )
        },
        "/status/{eventId}": {
            "get": _operation(
                "How an event stands",
                "status",
                {200: ("The event as it is now", models.StatusAnswer, {})},
                ("event_not_found", *_STORES),
                parameters=[_EVENT_ID],
            )
        },
        "/events/{eventId}/users/{userId}": {
            "get": _operation(
                "A user's state for an event",
                "user",
                {200: ("The state as it is now", models.UserAnswer, {})},
                ("event_not_found", "not_booked", *_STORES),
                parameters=[_EVENT_ID, _USER_ID],
            )
        },
        "/livez": {
            "get": _operation(
                "Whether the process answers", "livez", {200: ("Live", health, {})}, ()
            )
        },
        "/readyz": {
            "get": _operation(
                "Whether bookings are taken",
                "readyz",
                {200: ("Ready", health, {})},
                _STORES,
            )
        },
    }


def _operation(
    summary: str,
    name: str,
    answers: dict[int, tuple[str, type[BaseModel], dict[str, Any]]],
    problems: tuple[str, ...],
    *,
    body: type[BaseModel] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    tag = "health" if name in ("livez", "readyz") else "booking"
    operation: dict[str, Any] = {"operationId": name, "summary": summary, "tags": [tag]}
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    responses: dict[str, Any] = {}
    for status, (description, model, headers) in answers.items():
        responses[str(status)] = {
            "description": description,
            "content": _content(model),
        }
        if headers:
            responses[str(status)]["headers"] = headers
    codes: dict[int, list[str]] = {}
    for code in problems:
        codes.setdefault(PROBLEMS[code].status, []).append(code)
    for status, names in sorted(codes.items()):
        responses[str(status)] = _problem_response(status, names)
    operation["responses"] = responses
    return operation


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _problem_response(status: int, codes: list[str]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {
            "application/problem+json": {
                "schema": {"$ref": _REF.format(model="ProblemAnswer")},
                "examples": {code: {"value": _example(code)} for code in codes},
            }
        },
    }
    if status == 503:
        response["headers"] = {
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}
        }
    return response


def _example(code: str) -> dict[str, Any]:
    known = PROBLEMS[code]
    example: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": known.title,
        "status": known.status,
        "detail": f"{known.title}.",
        "code": code,
        "message": known.title,
    }
    if code == "invalid_request":
        example["errors"] = [{"pointer": "/eventId", "detail": "Field required"}]
    return example


def _schemas() -> dict[str, Any]:
    _, top = models_json_schema(
        [
            *((model, "validation") for model in _REQUESTS),
            *((model, "serialization") for model in _ANSWERS),
        ],
        ref_template=_REF,
    )
    schemas: dict[str, Any] = top["$defs"]
    return schemas


async def _docs(_: Request) -> Response:
    return HTMLResponse(_PAGE, headers=_HEADERS)


async def _file(request: Request) -> Response:
    name = request.path_params["file"]
    if name not in _FILES:
        raise Problem("not_found")
    return FileResponse(
        Path(swagger_ui_bundle.swagger_ui_path) / name,
        media_type=_FILES[name],
        headers={"Cache-Control": "max-age=86400", **_HEADERS},
    )
