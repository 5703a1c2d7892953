"""The header Idempotency-Key: read, or refused. Knows nothing of what a key has done."""

from collections.abc import Mapping

from starlette.requests import Request

from service.errors import Problem
from service.keyed import KEY, digest_of

HEADER = "Idempotency-Key"
REPLAYED: Mapping[str, str] = {"Idempotent-Replayed": "true"}

RULE = "1 to 64 of the characters A-Z a-z 0-9 _ . : -, bare or in double quotes"


def keyed_by(request: Request, operation: str, **fields: int) -> str:
    """Return `<key>/<digest>` of a request, empty where it has no key.

    `fields` are those of the body beyond event and user, whose state keeps the key. Raises Problem
    `invalid_request` for what cannot be a key, and for two that differ.
    """
    found = {value.strip() for value in request.headers.getlist(HEADER)}
    if not found:
        return ""
    keys = {value[1:-1] if value[:1] == value[-1:] == '"' else value for value in found}
    if len(keys) > 1:
        raise _invalid("Header should be sent once")
    (key,) = keys
    if KEY.fullmatch(key) is None:
        raise _invalid("Header should be " + RULE)
    return f"{key}/{digest_of(operation, **fields)}"


def _invalid(detail: str) -> Problem:
    errors = [{"header": HEADER, "detail": detail}]
    return Problem("invalid_request", f"{HEADER}: {detail}", errors=errors)
