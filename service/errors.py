"""Every way in which Onsale says no: one situation, one code.

`PROBLEMS` is the closed list of codes that an answer may carry (DESIGN section 5); the HTTP edge
turns a `Problem` into an RFC 9457 body, nothing below it knows of HTTP. The other exceptions stay
inside the service.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Repeat = Literal["never", "after_change", "after_delay", "same_request"]


@dataclass(frozen=True, slots=True)
class ProblemType:
    """What a code means, and whether a client may repeat the request.

    `repeat`: `never` as it stands; `after_change` of the situation (a cancellation, an opening);
    `after_delay`, since nothing was done; `same_request`, whose answer then says what was done.
    """

    status: int
    title: str
    repeat: Repeat


PROBLEMS: Mapping[str, ProblemType] = {
    "invalid_http": ProblemType(400, "The request is not sound HTTP/1.1", "never"),
    "invalid_json": ProblemType(400, "The body is not JSON", "never"),
    "not_found": ProblemType(404, "There is nothing at this address", "never"),
    "event_not_found": ProblemType(404, "Event not found", "never"),
    "not_booked": ProblemType(404, "Booking not found", "after_change"),
    "method_not_allowed": ProblemType(405, "This address has other methods", "never"),
    "request_timeout": ProblemType(408, "The request did not come whole in time", "same_request"),
    "body_too_large": ProblemType(413, "The body is too large", "never"),
    "uri_too_long": ProblemType(414, "The address is too long", "never"),
    "unsupported_media_type": ProblemType(415, "The body must be application/json", "never"),
    "invalid_request": ProblemType(422, "The request is not valid", "never"),
    "idempotency_key_reused": ProblemType(
        422, "This Idempotency-Key was sent with another request", "never"
    ),
    "head_too_large": ProblemType(431, "The headers are too large", "never"),
    "internal_error": ProblemType(500, "The service failed", "same_request"),
    "overloaded": ProblemType(503, "Too many requests are waiting", "after_delay"),
    "record_behind": ProblemType(503, "Too much is not on record yet", "after_delay"),
    "unavailable": ProblemType(503, "A store cannot be reached at the moment", "after_delay"),
    "closed": ProblemType(503, "The sale is closed until its stores agree", "after_delay"),
    "draining": ProblemType(503, "This process is going down", "after_delay"),
    "outcome_unknown": ProblemType(503, "Whether this was done is not known", "same_request"),
}

FROZEN = (
    "This event is frozen by its operator's decision, pending repair; what it sold can be read."
)
"""What `closed` says of one event that has dead letters."""


class Problem(Exception):
    """A refusal that reaches the client under a code of `PROBLEMS`.

    `detail` is one sentence for a person. `errors` lists all invalid fields at once, each with a
    JSON pointer and a detail.
    """

    def __init__(
        self, code: str, detail: str = "", *, errors: Sequence[Mapping[str, str]] = ()
    ) -> None:
        """Look the code up at once, so that a code outside the list fails where it is made."""
        self.type = PROBLEMS[code]
        self.code = code
        self.detail = detail or f"{self.type.title}."
        self.errors = errors
        super().__init__(f"{code}: {self.detail}")


class ConfigurationError(Exception):
    """A setting or a store's configuration that the service refuses to work with."""


class CorruptEntryError(Exception):
    """An outbox entry that no version of the codec could have written."""


class LineageError(Exception):
    """An outbox entry that does not follow the record: a gap, or an epoch that has ended."""


class RefusedChangeError(Exception):
    """A change that PostgreSQL refuses for what it says, so that no repeat can help."""


class UnreadableWitnessError(Exception):
    """A file that says what was answered, and cannot be read: what was answered is not known."""

    def __init__(self, path: object, why: str) -> None:
        """Name the file."""
        super().__init__(f"what was answered cannot be told: {path}: {why}")
