"""One request on the hot path, and its answer: what bookings, cancellations and reads share.

To uvicorn's protocol an exchange is a cycle whose application has begun. The engine is asked as the
handlers ask it: once without a task, being called back, and again in a task where something has to
be waited for.
"""

import asyncio
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Protocol

import structlog
from starlette.responses import Response

from service.batcher import Expired, WaitingRoomFull
from service.bodies import problem_answer
from service.engine import Engine
from service.errors import Problem
from service.heads import Headers, header_lines
from service.hot_answers import HANG_UP
from service.metrics import Metrics
from service.prefix import located
from service.results import Missed
from service.shedding import Shedding

log = structlog.stdlib.get_logger("onsale")


class Connection(Protocol):
    """What is answered to."""

    def answer(self, exchange: "Exchange", status: int, rest: bytes) -> None:
        """Write an answer, `rest` behind the headers that every answer has."""


class Surroundings:
    """What all exchanges of one worker share."""

    root = ""
    """The path prefix of links."""

    def __init__(self, engine: Engine, metrics: Metrics, root: str = "") -> None:
        """Take the engine that decides, and the path prefix of links."""
        self.root = root
        self.engine = engine
        self.metrics = metrics
        self.durations = metrics.request_durations
        self.shedding = Shedding(engine.admission, metrics, root)
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, task: "asyncio.Task[None]") -> None:
        """Hold a task until it is done: the loop alone would let go of it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Nobody:
    """Stands where an application would wait for parts of the body: it is all there."""

    def set(self) -> None:
        """Wake nobody."""


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_began",
        "_connection",
        "_hot",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
    )

    method = ""
    route = ""
    message_event = _Nobody()

    def __init__(self, hot: Surroundings, connection: Connection) -> None:
        """Begin the clock; nothing is asked yet."""
        self._hot = hot
        self._connection = connection
        self._began = perf_counter()
        self.keep_alive = True
        self.more_body = self.disconnected = False
        self.response_started = self.response_complete = False

    # What each kind says.

    def _submit(self) -> bool:
        """Ask, for `_settle` to be told; False where it has to be waited for.

        Raises WaitingRoomFull.
        """
        raise NotImplementedError

    def _ask_in_full(self) -> Coroutine[Any, Any, Any]:
        """Ask as the handlers do: whatever has to be waited for, `engine` knows."""
        raise NotImplementedError

    def _answer(self, result: Any) -> None:
        """Answer with what a script said. Raises Problem."""
        raise NotImplementedError

    def _answer_in_full(self, result: Any) -> None:
        """Answer with what the engine said."""
        raise NotImplementedError

    # What all have in common.

    def begin(self) -> "Exchange":
        """Ask; the answer comes later, never in the midst of the parser."""
        try:
            if not self._submit():
                self._go_on()
        except WaitingRoomFull:
            return self.turned_away()
        return self

    def turned_away(self) -> "Exchange":
        """Ask nobody: there are too many."""
        asyncio.get_running_loop().call_soon(self._shed)
        return self

    def _settle(self, result: Any) -> None:
        """Take what a script said, or what went wrong."""
        try:
            if isinstance(result, Exception):
                raise result
            if isinstance(result, Missed):
                self._go_on()
            else:
                self._answer(result)
        except Problem as problem:
            self._refuse(problem)
        except Expired:
            self._refuse(Problem("unavailable"))
        except Exception as error:
            self._fail(error)

    def _go_on(self) -> None:
        self._hot.keep(asyncio.get_running_loop().create_task(self._in_full()))

    async def _in_full(self) -> None:
        try:
            self._answer_in_full(await self._ask_in_full())
        except Problem as problem:
            self._refuse(problem)
        except Exception as error:
            self._fail(error)

    def _refuse(self, problem: Problem) -> None:
        self._hot.metrics.problems.labels(problem.code).inc()
        self._write_response(problem_answer(problem, root=self._hot.root))

    def _fail(self, error: BaseException) -> None:
        log.error("request failed", method=self.method, path=self.route, exc_info=error)
        self._write_response(problem_answer(Problem("internal_error"), root=self._hot.root))

    def _shed(self) -> None:
        if not self.keep_alive:
            self._refuse(Problem("overloaded"))
            return
        rest = self._hot.shedding.rest(self.route)
        if not self.disconnected:
            self._connection.answer(self, 503, rest)

    @property
    def _last(self) -> str:
        """The line that tells a client that this was the last answer, where it is."""
        return "" if self.keep_alive else HANG_UP

    def _write_response(self, response: Response) -> None:
        headers: Headers = response.raw_headers
        if self._hot.root:
            headers = located(headers, self._hot.root.encode())
        lines = header_lines(headers)
        rest = b"".join((lines, self._last.encode(), b"\r\n", bytes(response.body)))
        self._write(response.status_code, rest)

    def _write(self, status: int, rest: bytes) -> None:
        self._hot.durations.note((self.route, status), perf_counter() - self._began)
        if not self.disconnected:
            self._connection.answer(self, status, rest)
