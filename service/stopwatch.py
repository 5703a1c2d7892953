"""How long each request took, by route and status."""

import asyncio
from bisect import bisect_left
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import REQUEST_S, Metrics, observe_many

_NO_ROUTE = "none"
_FAILED = 500
_FLUSH_S = 0.1


class Durations:
    """What requests took, counted here and handed on ten times a second.

    The files that processes share cost 4 µs for each number (`metrics`), a list 0.5 µs.
    """

    def __init__(self, metrics: Metrics) -> None:
        """Count for these metrics."""
        self._family = metrics.requests
        self._counted: dict[tuple[str, int], list[int]] = {}
        self._sums: dict[tuple[str, int], float] = {}
        self._flusher: asyncio.TimerHandle | None = None

    def note(self, route: str, status: int, seconds: float) -> None:
        """Take note of one request."""
        key = (route, status)
        counts = self._counted.get(key)
        if counts is None:
            counts = self._counted[key] = [0] * (len(REQUEST_S) + 1)
            self._sums[key] = 0.0
        counts[bisect_left(REQUEST_S, seconds)] += 1
        self._sums[key] += seconds
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Hand on what was counted since the last time."""
        if self._flusher is not None:
            self._flusher.cancel()
            self._flusher = None
        for (route, status), counts in self._counted.items():
            child = self._family.labels(route, str(status))
            observe_many(child, counts, self._sums[route, status])
        self._counted.clear()
        self._sums.clear()


class Stopwatch:
    """ASGI middleware; adds nothing to an answer and swallows nothing."""

    def __init__(self, app: ASGIApp, *, durations: Durations) -> None:
        """Measure what `app` does."""
        self._app = app
        self._durations = durations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note when its answer has left."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = perf_counter()
        status = _FAILED  # of a handler that raises; the outermost layer answers for it

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self._durations.note(route, status, perf_counter() - began)
