"""What nearly everybody sends in a sale, answered without an application in between.

`POST /book` and `POST /cancel` here, reads in `hot_reads`. Nothing is decided: the engine is asked
as the handlers ask it, and every answer has the bytes that theirs has (`tests/http/test_hot_path`).
What is unusual about a request, or wrong with it, is left to the handlers before anything was done.
It saves each request its task, the messages and the scope of ASGI, routing, and an answer encoded
from scratch: see `loadtests/results`.
"""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from pydantic import Field, ValidationError
from starlette.responses import Response

from service.answers import booking_answer, cancellation_answer
from service.engine import Engine
from service.errors import Problem
from service.heads import Headers, header_lines
from service.hot_answers import booking_bytes, cancellation_bytes
from service.hot_exchange import Connection, Exchange, Surroundings
from service.hot_reads import BEGINNINGS, read_of
from service.metrics import Metrics
from service.models import (
    BODY_BYTES_MAX,
    ID_MAX,
    UNADDRESSABLE,
    USER_ID,
    EventId,
    Quantity,
    Request,
)
from service.results import Booking, Cancellation, Reached
from service.shedding import kind_of

_JSON = b"application/json"
_UNUSUAL = frozenset(
    {b"idempotency-key", b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}
)
_RECORDED = b"durability=recorded"
_APPLIED = "preference-applied: durability=recorded\r\n"


class _Cancel(Request):
    """`CancelRequest` in the validator's own terms: no Python is called for a field (2 µs)."""

    eventId: EventId
    userId: Annotated[
        Annotated[str, Field(pattern=f"^{USER_ID}$")] | Annotated[int, Field(ge=0, le=ID_MAX)],
        Field(union_mode="left_to_right"),
    ]


class _Book(_Cancel):
    """`BookRequest` likewise."""

    quantity: Quantity = 1


_MODELS: dict[bytes, type[_Cancel]] = {b"/book": _Book, b"/cancel": _Cancel}


class Change(Exchange):
    """A booking or a cancellation. `prefer` is `recorded`, or empty."""

    __slots__ = ("_awaited", "_deadline", "_event_id", "_prefer", "_result", "_user_id")

    method = "POST"
    model: type[_Cancel]
    encode_pending: Callable[..., Response]

    def __init__(
        self, hot: Surroundings, connection: Connection, event_id: int, user_id: str, prefer: str
    ) -> None:
        """Take what is asked for."""
        super().__init__(hot, connection)
        self._event_id = event_id
        self._user_id = user_id
        self._prefer = prefer
        self._awaited = hot.engine.awaits(prefer)
        if self._awaited:
            self._deadline = hot.engine.deadline()

    def _answer(self, result: Booking | Cancellation | None) -> None:
        if result is None:
            raise Problem("not_booked")
        engine = self._hot.engine
        if not self._awaited:
            self._tell(result, engine.given(self._event_id, result.at))
            return
        self._result = result
        about = (self._event_id, result, self._deadline)
        if task := engine.submit_recorded(*about, self._settle_recorded):
            self._hot.keep(task)

    def _settle_recorded(self, reached: Reached) -> None:
        try:
            result = self._result if reached == "recorded" else self._result.reaching(reached)
            self._tell(result, reached)
        except Exception as error:
            self._fail(error)

    def _answer_in_full(self, result: Booking | Cancellation) -> None:
        self._tell(result, result.durability)

    def _tell(self, result: Booking | Cancellation, reached: Reached) -> None:
        if reached == "none":
            about = (self._event_id, self._user_id, result)
            self._write_response(self.encode_pending(*about, self._prefer))
        else:
            applied = _APPLIED if self._prefer == reached else ""
            self._write(*self._encoded(result, reached, applied))

    def _encoded(self, result: Any, reached: Reached, applied: str) -> tuple[int, bytes]:
        raise NotImplementedError


class Book(Change):
    """`POST /book`."""

    __slots__ = ()

    route = "/book"
    model = _Book
    encode_pending = staticmethod(booking_answer)

    def _encoded(self, result: Booking, reached: Reached, applied: str) -> tuple[int, bytes]:
        about = (self._event_id, self._user_id, result)
        return booking_bytes(*about, reached, applied, self._last, self._hot.root)

    def _submit(self) -> bool:
        about = (self._event_id, self._user_id, self._settle)
        self._hot.engine.submit_book(*about, awaited=self._awaited)
        return True

    def _ask_in_full(self) -> Coroutine[Any, Any, Any]:
        return self._hot.engine.book(self._event_id, self._user_id, prefer=self._prefer)


class Cancel(Change):
    """`POST /cancel`."""

    __slots__ = ()

    route = "/cancel"
    model = _Cancel
    encode_pending = staticmethod(cancellation_answer)

    def _encoded(self, result: Cancellation, reached: Reached, applied: str) -> tuple[int, bytes]:
        about = (self._event_id, self._user_id, result)
        return cancellation_bytes(*about, reached, applied, self._last)

    def _submit(self) -> bool:
        about = (self._event_id, self._user_id, self._settle)
        self._hot.engine.submit_cancel(*about, awaited=self._awaited)
        return True

    def _ask_in_full(self) -> Coroutine[Any, Any, Any]:
        return self._hot.engine.cancel(self._event_id, self._user_id, prefer=self._prefer)


_CHANGES: dict[bytes, type[Change]] = {b"/book": Book, b"/cancel": Cancel}


class HotPath(Surroundings):
    """The hot path of one worker."""

    def __init__(self, engine: Engine, metrics: Metrics, root: str = "") -> None:
        """Take the engine that decides, and the path prefix of links."""
        super().__init__(engine, metrics, root)
        self._always: tuple[object, bytes] = (None, b"")

    @staticmethod
    def may_take(method: bytes, url: bytes) -> bool:
        """Whether a request may be for the hot path, as far as its first line tells."""
        return (
            url in _CHANGES
            if method == b"POST"
            else method == b"GET" and url.startswith(BEGINNINGS)
        )

    def begin(
        self, url: bytes, headers: Headers, body: bytes, connection: Connection
    ) -> Exchange | None:
        """Ask the engine; None, with nothing done, where the request is for the handlers.

        `url` is of a request that the path may take; names of headers are lower case.
        `connection` is answered later, once.
        """
        kind = _CHANGES.get(url)
        if kind is None:
            read = None if body else read_of(url, headers, self, connection)
            return None if read is None else read.begin()
        prefer = _preference(headers)
        if prefer is None or len(body) > BODY_BYTES_MAX:
            return None
        if self.shedding.admission.refuses(kind_of(url)):
            return kind(self, connection, 0, "", "").turned_away()
        try:
            asked = kind.model.model_validate_json(body)
        except ValidationError:
            return None
        user_id = str(asked.userId)
        # Each name brings a colon, and only texts may have more: the validator takes the last of
        # two fields of one name, which the handlers refuse.
        colons = len(asked.model_fields_set) + user_id.count(":")
        if body.count(b":") != colons or b"\\" in body or user_id in UNADDRESSABLE:
            return None
        return kind(self, connection, asked.eventId, user_id, prefer).begin()

    def always(self, headers: Headers) -> bytes:
        """Return the lines that every answer has: `date`, which uvicorn makes anew each second."""
        if headers is not self._always[0]:
            self._always = headers, header_lines(headers)
        return self._always[1]


def _preference(headers: Headers) -> str | None:
    """Return `recorded` or an empty text; None where the head is for the handlers."""
    is_json, prefer = False, ""
    for name, value in headers:
        if name in _UNUSUAL:
            return None
        if name == b"content-type":
            if is_json or value != _JSON:
                return None
            is_json = True
        elif name == b"prefer":
            if value != _RECORDED or prefer:
                return None
            prefer = "recorded"
    return prefer if is_json else None
