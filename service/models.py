"""The shapes of requests and answers, from which `/openapi.json` is made too.

Strict: a number is a number, an unknown field is an error. `userId` is kept and answered as text,
so that 1 and "1" are one user.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

ID_MAX = 2**53 - 1
TICKETS_MAX = 10_000_000
NAME_LENGTH_MAX = 200
BODY_BYTES_MAX = 4 << 10
INITIALIZE_BODY_BYTES_MAX = 64 << 10

USER_ID = r"[A-Za-z0-9._~@:+|=-]{1,64}"
UNADDRESSABLE = frozenset({".", ".."})
"""Texts of these characters that no URL can carry: clients resolve them as steps of a path."""

_USER_ID = re.compile(rf"(?!\.{{1,2}}$){USER_ID}")
_EVENT_ID = re.compile(r"[1-9][0-9]{0,15}")
_USER_ID_RULE = (
    "a non-negative integer below 2^53, or a string of 1 to 64 of the characters"
    " A-Z a-z 0-9 . _ ~ @ : + | = - that is neither . nor .."
)


def parse_event_id(text: str) -> int | None:
    """Return the event id of a path, None for what cannot be one."""
    if _EVENT_ID.fullmatch(text) is None or int(text) > ID_MAX:
        return None
    return int(text)


def parse_user_id(text: str) -> str | None:
    """Return the user id of a path, None for what cannot be one."""
    return text if _USER_ID.fullmatch(text) else None


def _user_id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= ID_MAX:
        return str(value)
    if isinstance(value, str) and _USER_ID.fullmatch(value):
        return value
    raise PydanticCustomError("user_id", "Input should be " + _USER_ID_RULE)


def _storable(value: str) -> str:
    if "\x00" in value:
        raise PydanticCustomError("nul", "Input should not hold the character U+0000")
    return value


EventId = Annotated[int, Field(ge=1, le=ID_MAX, examples=[1])]
UserId = Annotated[
    str,
    PlainValidator(_user_id),
    WithJsonSchema(
        {
            "description": _USER_ID_RULE,
            "oneOf": [
                {"type": "integer", "minimum": 0, "maximum": ID_MAX},
                {"type": "string", "pattern": f"^{_USER_ID.pattern}$"},
            ],
            "examples": [123],
        }
    ),
]
Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=NAME_LENGTH_MAX,
        examples=["Event Name"],
        json_schema_extra={"pattern": r"^[^\u0000]*$"},
    ),
    AfterValidator(_storable),
]
Total = Annotated[int, Field(ge=1, le=TICKETS_MAX, examples=[100])]
# Not Literal[1]: that takes `true` and `1.0` too.
Quantity = Annotated[int, Field(ge=1, le=1, examples=[1])]

# Of answers alone.
UserIdText = Annotated[
    str, Field(json_schema_extra={"pattern": f"^{_USER_ID.pattern}$"}, examples=["123"])
]
Remaining = Annotated[int, Field(ge=0, le=TICKETS_MAX, examples=[100])]
Waiting = Annotated[int, Field(ge=0, examples=[0])]
Place = Annotated[int, Field(ge=1, examples=[1])]
Epoch = Annotated[int, Field(ge=1, examples=[1])]
Seq = Annotated[int, Field(ge=1, examples=[2])]
Durability = Literal["fsync", "recorded", "memory"]
Time = Annotated[
    str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-22T10:00:00.000Z"])
]


class Request(BaseModel):
    """What every request body has in common."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class InitializeRequest(Request):
    """Open an event."""

    name: Name
    totalTickets: Total


class BookRequest(Request):
    """Book one ticket, or join the waiting list."""

    eventId: EventId
    userId: UserId
    quantity: Quantity = 1


class CancelRequest(Request):
    """Give a ticket back, or leave the waiting list."""

    eventId: EventId
    userId: UserId


def _absent(schema: dict[str, Any]) -> None:
    """Describe a field that is left out rather than null."""
    schema.pop("default", None)


class Event(BaseModel):
    """An event as it was opened."""

    id: EventId
    name: Name
    totalTickets: Total
    remainingTickets: Remaining
    createdAt: Time
    updatedAt: Time


class InitializeAnswer(BaseModel):
    """201 of `POST /initialize`."""

    event: Event


class PendingAnswer(BaseModel):
    """202 where the record was waited for, and not reached in time; `Location` tells on.

    Nothing is promised yet. `userId` is absent for an event that was opened.
    """

    message: Annotated[str, Field(examples=["Not on record yet"])]
    status: Literal["pending"]
    eventId: EventId
    userId: UserIdText | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)
    durability: Literal["none"]
    epoch: Epoch
    seq: Seq


class CurrentState(BaseModel):
    """A user's state now, beside what the request's key came to the first time."""

    status: Literal["booked", "waiting", "cancelled", "left_waiting_list"]
    position: Place | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)
    seq: Seq


class BookAnswer(BaseModel):
    """201, 200 and 202 of `POST /book`. `position` only while waiting.

    A replay has `current` instead, with the position in it.
    """

    message: Annotated[str, Field(examples=["Ticket booked successfully"])]
    status: Literal["booked", "waiting"]
    eventId: EventId
    userId: UserIdText
    quantity: Quantity
    position: Place | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)
    durability: Durability
    epoch: Epoch
    seq: Seq
    current: CurrentState | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)


class CancelAnswer(BaseModel):
    """200 of `POST /cancel`. `reassigned`: somebody who waited has the ticket now."""

    message: Annotated[
        str, Field(examples=["Booking cancelled and ticket reassigned if applicable"])
    ]
    status: Literal["cancelled", "left_waiting_list"]
    eventId: EventId
    userId: UserIdText
    reassigned: bool
    durability: Durability
    epoch: Epoch
    seq: Seq
    current: CurrentState | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)


class StatusAnswer(BaseModel):
    """200 of `GET /status/{eventId}`."""

    eventId: EventId
    name: Name
    totalTickets: Total
    remainingTickets: Remaining
    waitingListCount: Waiting
    createdAt: Time
    updatedAt: Time


class UserAnswer(BaseModel):
    """200 of `GET /events/{eventId}/users/{userId}`. `position` only while waiting.

    `durability` is what the change that led to this state has reached: the deployment's level, or
    `recorded` where that was asked for, and looked into, and found.
    """

    eventId: EventId
    userId: UserIdText
    status: Literal["booked", "waiting", "cancelled", "left_waiting_list"]
    quantity: Quantity | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)
    position: Place | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)
    durability: Durability | Literal["none"]
    seq: Seq


class InvalidField(BaseModel):
    """One of the `errors` of an invalid request: in the body, or a header."""

    pointer: str | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)
    header: Literal["Idempotency-Key"] | SkipJsonSchema[None] = Field(
        None, json_schema_extra=_absent
    )
    detail: str


class ProblemAnswer(BaseModel):
    """RFC 9457, with a stable `code`, and `message` for the original's clients."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    message: str
    errors: list[InvalidField] | SkipJsonSchema[None] = Field(None, json_schema_extra=_absent)


class Health(BaseModel):
    """200 of `/livez` and `/readyz`."""

    status: Literal["live", "ready"]
