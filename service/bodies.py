"""JSON over HTTP: bodies read within bounds, answers and problems encoded.

Knows the shapes of requests and problems, nothing of Redis or PostgreSQL.
"""

import json
import random
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import Problem
from service.models import BODY_BYTES_MAX
from service.models import Request as RequestModel

Body = TypeVar("Body", bound=RequestModel)

RETRY_AFTER_S = (1, 2, 3)
"""One of these is told to whoever may come again later."""

_ERRORS_MAX = 20


async def read_body(
    request: Request, model: type[Body], *, bytes_max: int = BODY_BYTES_MAX
) -> Body:
    """Read and validate a JSON body.

    Raises Problem: `unsupported_media_type`, `body_too_large`, `invalid_json`, `invalid_request`
    with all invalid fields at once, up to 20.
    """
    media_types = request.headers.getlist("content-type")
    if len(media_types) > 1:
        raise Problem("unsupported_media_type", "There is more than one Content-Type.")
    media_type = "".join(media_types).partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem("unsupported_media_type")
    codings = ",".join(request.headers.getlist("content-encoding")).split(",")
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings):
        raise Problem("unsupported_media_type", "The body must not have a Content-Encoding.")
    raw = await _bounded(request, bytes_max)
    try:
        valid = model.model_validate_json(raw)
    except ValidationError as error:
        raise _invalid(error) from None
    # The validator takes the last of two fields of one name; another reader takes the first.
    if repeated := _repeated(raw):
        found = {"pointer": f"/{_escaped(repeated)}", "detail": "Field occurs more than once"}
        raise Problem("invalid_request", _sentence(found), errors=[found])
    return valid


def _repeated(raw: bytes) -> str:
    """Return a name that occurs more than once in a valid body, which is one object of scalars."""
    names = [name for name, _ in json.loads(raw, object_pairs_hook=list)]
    return next((name for name in names if names.count(name) > 1), "")


async def _bounded(request: Request, bytes_max: int) -> bytes:
    """Read the body, and no more than the bound, whatever length was announced."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:12]) > bytes_max:
        raise Problem("body_too_large", f"The body may have {bytes_max} bytes.")
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise Problem("body_too_large", f"The body may have {bytes_max} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


def _invalid(error: ValidationError) -> Problem:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return Problem("invalid_json", found[0]["msg"] + ".")
    errors = [
        {
            "pointer": "".join(f"/{_escaped(part)}" for part in e["loc"]),
            "detail": e["msg"],
        }
        for e in found[:_ERRORS_MAX]  # a body of 64 KiB may have thousands of unknown fields
    ]
    return Problem("invalid_request", "; ".join(_sentence(e) for e in errors), errors=errors)


def _sentence(error: Mapping[str, str]) -> str:
    return f"{error['pointer'] or 'the body'}: {error['detail']}"


def _escaped(part: int | str) -> str:
    """Escape a reference token of a JSON pointer, and cut what a stranger made long."""
    return str(part)[:64].replace("~", "~0").replace("/", "~1")


def answer(
    status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """Encode an answer."""
    return Response(
        _encode(body),
        status_code=status,
        media_type="application/json",
        headers=dict(headers) if headers else None,
    )


def problem_answer(
    problem: Problem,
    headers: Mapping[str, str] | None = None,
    *,
    retry_after_s: int = 0,
    root: str = "",
) -> Response:
    """Encode a problem as RFC 9457; what may be repeated later says when, with jitter.

    `retry_after_s`: when, where that is not left to chance. `root`: the path prefix of its type.
    """
    body: dict[str, Any] = {
        "type": f"{root}/problems/{problem.code}",
        "title": problem.type.title,
        "status": problem.type.status,
        "detail": problem.detail,
        "code": problem.code,
        "message": problem.type.title,
    }
    if problem.errors:
        body["errors"] = list(problem.errors)
    extra = dict(headers or {})
    if problem.type.status == 503:
        extra["Retry-After"] = str(retry_after_s or random.choice(RETRY_AFTER_S))  # jitter
    if problem.type.status == 413:
        # The rest of the body is not read, so nothing else can come on this connection.
        extra["Connection"] = "close"
    return Response(
        _encode(body),
        status_code=problem.type.status,
        media_type="application/problem+json",
        headers=extra,
    )


def _encode(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


__all__ = ["ClientDisconnect", "answer", "problem_answer", "read_body"]
