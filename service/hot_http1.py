"""HTTP/1.1 with a hot path: a request that comes whole is shown to it before the application.

Whole is: the end of the head and all of the body in one segment, on a connection on which nothing
else is under way. A request is held back from its head's end to the segment's; one that is not
whole by then, or not for the hot path, the application gets as if it had not been held.
"""

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.draining import Draining
from service.heads import Headers
from service.hot_exchange import Exchange
from service.hot_path import HotPath
from service.http1 import Http1


class HotHttp1(Http1):
    """One connection."""

    hot: HotPath

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what uvicorn gives."""
        super().__init__(*args, **kwargs)
        self._held: list[bytes] | None = None
        self._head: Headers = ()
        self._unknown = b""

    def data_received(self, data: bytes) -> None:
        """Read a segment, unless it is a request that can be refused without."""
        if not (self.hot.shedding.admission.sheds and self._is_refused(data)):
            super().data_received(data)
            if self._unknown:
                self._unknown = b""

    def _is_refused(self, data: bytes) -> bool:
        """Whether a segment was one request, and is answered: there are too many.

        The parser, which stands between two requests, need not hear of one in which it would find
        nothing new: 12 µs instead of 25.
        """
        if (
            self._part
            or self._owes
            or self.has_ahead
            or self.flow.write_paused
            or self._refused
            or self.draining.begun
            or self.transport.is_closing()
        ):
            return False
        rest = self.hot.shedding.refused(data)
        if not rest:
            if rest is None:
                self._unknown = data
            return False
        always = self.hot.always(self.server_state.default_headers)
        self.transport.write(b"%b%b%b" % (STATUS_LINE[503], always, rest))
        self.server_state.total_requests += 1
        self._patience.begin(self.timeout_keep_alive)
        return True

    def _read(self, data: bytes | memoryview) -> None:
        super()._read(data)
        self._let_go()

    def _begin_head(self) -> None:
        """Begin without a scope, which a request of the hot path never needs (1.5 µs)."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def _begin_request(self) -> None:
        if self._is_hot():
            self._held, self._head = [], self.headers
        else:
            self._begin_cycle(self.headers)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        """End a request, and decide which way it goes."""
        if self._held is not None:
            body = self._held[0] if len(self._held) == 1 else b"".join(self._held)
            exchange = self.hot.begin(self.url, self._head, body, self)
            if exchange is None:
                self._let_go()
            else:
                self._held = None
                exchange.keep_alive = self.parser.should_keep_alive() and not self.draining.begun
                if self._unknown and exchange.keep_alive:
                    self.hot.shedding.learn(self._unknown, self._head, len(body))
                self.cycle = exchange  # type: ignore[assignment]
        super().on_message_complete()

    def answer(self, exchange: Exchange, status: int, rest: bytes) -> None:
        """Write the answer to a request of the hot path, in one piece."""
        exchange.response_started = exchange.response_complete = True
        always = self.hot.always(self.server_state.default_headers)
        self.transport.write(b"%b%b%b" % (STATUS_LINE[status], always, rest))
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _is_hot(self) -> bool:
        """Whether the request may be for the hot path: nothing else is under way here."""
        return (
            self.hot.may_take(self.parser.get_method(), self.url)
            and not self._owes
            and not self.flow.write_paused
            and not self.access_log
            and self.parser.get_http_version() == "1.1"
            and not self.parser.should_upgrade()
        )

    def _let_go(self) -> None:
        """Hand what is held back to the application."""
        if self._held is not None:
            body, self._held = b"".join(self._held), None
            self._begin_cycle(self._head)
            self.headers = []
            super().on_body(body)

    def _begin_cycle(self, headers: Headers) -> None:
        """Have the application begin, with a scope."""
        url, expects = self.url, self.expect_100_continue
        super()._begin_head()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super()._begin_request()

    def _refuse(self, code: str) -> None:
        self._let_go()
        super()._refuse(code)


def hot_http1(
    noted: Callable[[str], None], hot: HotPath, draining: Draining | None = None
) -> type[HotHttp1]:
    """Return the protocol; `noted` is told the code of each request that it refuses."""
    shared = {
        "noted": staticmethod(noted),
        "hot": hot,
        "root": hot.root,
        "draining": draining or Draining(),
    }
    return type("Http1", (HotHttp1,), shared)
