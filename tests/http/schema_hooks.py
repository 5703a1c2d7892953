"""What Schemathesis is told of this service beyond its document; loaded by the test's own process.

One of its checks is replaced, since two answers are right that it cannot know to be: JSON Schema
takes `1.0` for an integer, and a number is to be written as one here (DESIGN, section 5); and
whether an `Idempotency-Key` was used before, no schema can say.
"""

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance


@schemathesis.check
def what_is_valid_is_taken(
    context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: "schemathesis.Case[Any]",
) -> bool | None:
    """What the document allows is not refused as invalid, but for the two."""
    if response.status_code == 422 and (
        response.json().get("code") == "idempotency_key_reused" or _has_float(case.body)
    ):
        return None
    taken: bool | None = positive_data_acceptance(context, response, case)
    return taken


def _has_float(body: Any) -> bool:
    """Whether a number in the body is written as no integer is."""
    return isinstance(body, dict) and any(isinstance(value, float) for value in body.values())
