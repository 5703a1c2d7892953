"""How long each request took, by route and status."""

from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.tallies import Tally

_NO_ROUTE = "none"
_FAILED = 500


class Stopwatch:
    """ASGI middleware; adds nothing to an answer and swallows nothing."""

    def __init__(self, app: ASGIApp, *, durations: Tally) -> None:
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
            self._durations.note((route, status), perf_counter() - began)
