"""`POST /book` and `POST /cancel` as nearly everybody sends them, answered without an application.

Nothing is decided here: the engine is asked as the handlers ask it, and every answer has the bytes
that theirs has (`tests/http/test_hot_path.py`). What is unusual about a request, or wrong with it,
is left to the handlers before anything was done. It saves each request its task, the messages and
the scope of ASGI, routing, and an answer encoded from scratch: see `loadtests/results`.
"""

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Annotated, Any, Protocol

import structlog
from pydantic import Field, ValidationError
from starlette.responses import Response

from service.answers import booking_answer, cancellation_answer
from service.batcher import Expired, WaitingRoomFull
from service.bodies import problem_answer
from service.engine import Engine
from service.errors import Problem
from service.hot_answers import HANG_UP, booking_bytes, cancellation_bytes
from service.metrics import Metrics
from service.models import BODY_BYTES_MAX, ID_MAX, USER_ID, EventId, Quantity, Request
from service.results import Booking, Cancellation, Missed
from service.stopwatch import Durations

log = structlog.stdlib.get_logger("onsale")

Headers = Sequence[tuple[bytes, bytes]]

PATHS = {b"/book": "/book", b"/cancel": "/cancel"}
_JSON = b"application/json"
_UNUSUAL = frozenset({b"idempotency-key", b"transfer-encoding", b"expect", b"upgrade"})
_RECORDED = b"durability=recorded"


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


class Connection(Protocol):
    """What is answered to."""

    def answer(self, exchange: "Exchange", status: int, rest: bytes) -> None:
        """Write an answer, `rest` behind the headers that every answer has."""


class HotPath:
    """The hot path of one worker."""

    def __init__(self, engine: Engine, metrics: Metrics, durations: Durations) -> None:
        """Take the engine that decides."""
        self.engine = engine
        self.metrics = metrics
        self.durations = durations
        self._tasks: set[asyncio.Task[None]] = set()
        self._always: tuple[object, bytes] = (None, b"")

    def begin(
        self, path: bytes, headers: Headers, body: bytes, connection: Connection
    ) -> "Exchange | None":
        """Ask the engine; None, with nothing done, where the request is for the handlers.

        Names of headers are lower case. `connection` is answered later, once.
        """
        is_json, prefer = False, ""
        for name, value in headers:
            if name in _UNUSUAL:
                return None
            if name == b"content-type":
                is_json = value == _JSON
            elif name == b"prefer":
                if value != _RECORDED or prefer:
                    return None
                prefer = "recorded"
        if not is_json or len(body) > BODY_BYTES_MAX:
            return None
        try:
            asked = _MODELS[path].model_validate_json(body)
        except ValidationError:
            return None
        return Exchange(self, connection, path, asked.eventId, str(asked.userId), prefer).begun()

    def always(self, headers: Headers) -> bytes:
        """Return the lines that every answer has: `date`, which uvicorn makes anew each second."""
        if headers is not self._always[0]:
            self._always = headers, b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._always[1]

    def keep(self, task: "asyncio.Task[None]") -> None:
        """Hold a task until it is done: the loop alone would let go of it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Nobody:
    """Stands where an application would wait for parts of the body: it is all there."""

    def set(self) -> None:
        """Wake nobody."""


class Exchange:
    """One request and its answer; to uvicorn's protocol, a cycle whose application has begun."""

    __slots__ = (
        "_began",
        "_connection",
        "_event_id",
        "_hot",
        "_path",
        "_prefer",
        "_user_id",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
    )

    message_event = _Nobody()

    def __init__(
        self,
        hot: HotPath,
        connection: Connection,
        path: bytes,
        event_id: int,
        user_id: str,
        prefer: str,
    ) -> None:
        self._hot = hot
        self._connection = connection
        self._path = path
        self._event_id = event_id
        self._user_id = user_id
        self._prefer = prefer
        self._began = perf_counter()
        self.keep_alive = True
        self.more_body = self.disconnected = False
        self.response_started = self.response_complete = False

    def begun(self) -> "Exchange":
        """Ask. What waits for the record or the loader has a task, as every handler has."""
        engine = self._hot.engine
        if engine.awaits(self._prefer):
            self._go_on()
            return self
        try:
            submit = engine.submit_book if self._path == b"/book" else engine.submit_cancel
            submit(self._event_id, self._user_id).add_done_callback(self._settle)
        except WaitingRoomFull:
            # Never in the midst of the parser, which would not know of the exchange yet.
            asyncio.get_running_loop().call_soon(self._refuse, Problem("overloaded"))
        return self

    def _settle(self, asked: "asyncio.Future[Any]") -> None:
        """Answer with what a script said."""
        try:
            result = asked.result()
        except Problem as problem:
            self._refuse(problem)
        except Expired:
            self._refuse(Problem("unavailable"))
        except BaseException as error:
            self._fail(error)
        else:
            if isinstance(result, Missed):
                self._go_on()
            elif result is None:
                self._refuse(Problem("not_booked"))
            else:
                reached = self._hot.engine.given(self._event_id, result.at)
                self._write_result(result, reached)

    def _go_on(self) -> None:
        """Ask as the handlers do: whatever has to be waited for, `engine` knows."""
        self._hot.keep(asyncio.get_running_loop().create_task(self._in_full()))

    async def _in_full(self) -> None:
        engine = self._hot.engine
        ask = engine.book if self._path == b"/book" else engine.cancel
        try:
            result = await ask(self._event_id, self._user_id, prefer=self._prefer)
        except Problem as problem:
            self._refuse(problem)
        except Exception as error:
            self._fail(error)
        else:
            self._write_result(result, result.durability)

    def _write_result(self, result: Booking | Cancellation, reached: str) -> None:
        if reached == "none":
            make = booking_answer if isinstance(result, Booking) else cancellation_answer
            response = make(self._event_id, self._user_id, result, self._prefer)  # type: ignore[arg-type]
            self._write_response(response)
            return
        applied = "preference-applied: durability=recorded\r\n" if self._prefer == reached else ""
        last = "" if self.keep_alive else HANG_UP
        encode = booking_bytes if isinstance(result, Booking) else cancellation_bytes
        self._write(*encode(self._event_id, self._user_id, result, reached, applied, last))  # type: ignore[arg-type]

    def _refuse(self, problem: Problem) -> None:
        self._hot.metrics.problems.labels(problem.code).inc()
        self._write_response(problem_answer(problem))

    def _fail(self, error: BaseException) -> None:
        path = PATHS[self._path]
        log.error("request failed", method="POST", path=path, exc_info=error)
        self._write_response(problem_answer(Problem("internal_error")))

    def _write_response(self, response: Response) -> None:
        lines = [b"%b: %b\r\n" % header for header in response.raw_headers]
        last = b"" if self.keep_alive else HANG_UP.encode()
        rest = b"".join((*lines, last, b"\r\n", bytes(response.body)))
        self._write(response.status_code, rest)

    def _write(self, status: int, rest: bytes) -> None:
        self._hot.durations.note(PATHS[self._path], status, perf_counter() - self._began)
        if not self.disconnected:
            self._connection.answer(self, status, rest)
