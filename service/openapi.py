"""The OpenAPI document: the API described from the same models that validate it. No I/O."""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import idempotency, models
from service.errors import PROBLEMS
from service.keyed import KEY

_REQUESTS = (models.InitializeRequest, models.BookRequest, models.CancelRequest)
_ANSWERS = (
    models.InitializeAnswer,
    models.BookAnswer,
    models.CancelAnswer,
    models.PendingAnswer,
    models.StatusAnswer,
    models.UserAnswer,
    models.ProblemAnswer,
    models.Health,
)
_Model = type[BaseModel]
_ANY = ("invalid_http", "request_timeout", "uri_too_long", "head_too_large")
"""What may befall every request, whatever it asks for."""

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
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of an answer that is known: 304 while it still holds.",
    "schema": {"type": "string"},
    "example": '"e3b0c44298fc1c14"',
}
_ETAG = {
    "ETag": {
        "schema": {"type": "string"},
        "required": True,
        "description": "Of what is told: the same as long as nothing of it changes",
    }
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": (
        "RFC 7240. `durability=recorded` has this answer wait until the change is on record;"
        " a lower level than the deployment's is not applied."
    ),
    "schema": {"type": "string"},
    "example": "durability=recorded",
}
_KEY = {
    "name": idempotency.HEADER,
    "in": "header",
    "required": False,
    "description": (
        f"{idempotency.RULE}. The same key again, for the same event and user, does nothing: the"
        " first answer comes once more, with `Idempotent-Replayed: true`, and the state now in"
        " `current`. The last eight keys under which a user changed something are known."
    ),
    "schema": {"type": "string", "pattern": f'^("{KEY.pattern}"|{KEY.pattern})$'},
    "example": "order-4711",
}
_REPLAYED = {
    "Idempotent-Replayed": {
        "schema": {"const": "true"},
        "required": False,
        "description": "Nothing was done: the first answer again",
    }
}
_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where the state appears"}}
_PENDING = "`pending`: the record was waited for, and not reached in time"


def document(root: str = "") -> dict[str, Any]:
    """Return the OpenAPI 3.1 document; `root` is the path prefix of all addresses in it."""
    described = _document()
    if root:
        described["servers"] = [{"url": root}]
        for example in _problems(described):
            example["type"] = root + example["type"]
    return described


def _problems(described: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the examples of problems, wherever they stand."""
    for operations in described["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                content = response.get("content", {}).get("application/problem+json", {})
                yield from (each["value"] for each in content.get("examples", {}).values())


def _document() -> dict[str, Any]:
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
                ' Numbers are written as integers: neither `1.0` nor `"1"` is taken for 1.'
                " Every answer about a booking names its `durability`; where the record was waited"
                " for and not reached in time it is 202 `pending`, and promises nothing yet."
            ),
        },
        "tags": [{"name": "booking"}, {"name": "health"}],
        "paths": _paths(),
        "components": {"schemas": _schemas()},
    }


def _paths() -> dict[str, Any]:
    book, pending = models.BookAnswer, models.PendingAnswer
    health = models.Health
    return {
        "/initialize": {
            "post": _operation(
                "Open an event",
                "initialize",
                {
                    201: ("The event is open", models.InitializeAnswer, _LOCATION),
                    202: (_PENDING, pending, _LOCATION),
                },
                (*_BODY, *_UNSURE),
                parameters=[_PREFER],
                body=models.InitializeRequest,
            )
        },
        "/book": {
            "post": _operation(
                "Book a ticket, or join the waiting list",
                "book",
                {
                    200: ("The same booking again: it stands", book, _LOCATION),
                    201: ("Booked", book, _LOCATION | _REPLAYED),
                    202: (
                        f"Waiting; `position` counts from 1. Or {_PENDING}",
                        (book, pending),
                        _LOCATION | _REPLAYED,
                    ),
                },
                (*_BODY, "idempotency_key_reused", "event_not_found", *_UNSURE),
                parameters=[_KEY, _PREFER],
                body=models.BookRequest,
            )
        },
        "/cancel": {
            "post": _operation(
                "Give a ticket back, or leave the waiting list",
                "cancel",
                {
                    200: ("Cancelled, or left the waiting list", models.CancelAnswer, _REPLAYED),
                    202: (_PENDING, pending, _LOCATION | _REPLAYED),
                },
                (*_BODY, "idempotency_key_reused", "event_not_found", "not_booked", *_UNSURE),
                parameters=[_KEY, _PREFER],
                body=models.CancelRequest,
            )
        },
        "/status/{eventId}": {
            "get": _operation(
                "How an event stands",
                "status",
                {200: ("The event as it is now", models.StatusAnswer, _ETAG)},
                ("event_not_found", *_STORES),
                parameters=[_EVENT_ID, _IF_NONE_MATCH],
                unchanged=True,
            )
        },
        "/events/{eventId}/users/{userId}": {
            "get": _operation(
                "A user's state for an event",
                "user",
                {200: ("The state as it is now", models.UserAnswer, {})},
                ("event_not_found", "not_booked", *_STORES),
                parameters=[_EVENT_ID, _USER_ID, _PREFER],
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
                (*_STORES, "draining"),
            )
        },
    }


def _operation(
    summary: str,
    name: str,
    answers: dict[int, tuple[str, _Model | tuple[_Model, ...], dict[str, Any]]],
    problems: tuple[str, ...],
    *,
    body: type[BaseModel] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    unchanged: bool = False,
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
    if unchanged:
        responses["304"] = {"description": "As it was known", "headers": _ETAG}
    codes: dict[int, list[str]] = {}
    for code in (*problems, *_ANY):
        codes.setdefault(PROBLEMS[code].status, []).append(code)
    for status, names in sorted(codes.items()):
        responses[str(status)] = _problem_response(status, names)
    operation["responses"] = responses
    return operation


def _content(model: _Model | tuple[_Model, ...]) -> dict[str, Any]:
    """Return the content of one model, or of one out of several."""
    several = model if isinstance(model, tuple) else (model,)
    schemas = [{"$ref": _REF.format(model=one.__name__)} for one in several]
    schema = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    return {"application/json": {"schema": schema}}


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
