"""HTTP/1.1 as this service speaks it: uvicorn's on httptools, with bounds and a clock.

Owns the bytes of a connection. What is no request never reaches the application, and is answered
under a code of its own, in its place behind what came before it; then the connection is closed, and
nothing that follows is read. Bounds hold for each request, however it is cut into segments: what
the parser has not told yet is counted in segments.
"""

import re
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.bodies import problem_answer
from service.draining import Draining, has_unread
from service.errors import Problem
from service.heads import (
    DETAILS,
    HEAD_BYTES_MAX,
    HEADER_BYTES_MAX,
    URL_BYTES_MAX,
    flaw,
    header_bytes,
    header_lines,
)
from service.offers import parser_behind
from service.patience import NEVER, READ_S, Patience
from service.prefix import stripped

PIECE_BYTES = HEADER_BYTES_MAX
"""Bytes fed to the parser at once, at most."""

BLIND_BYTES = 128
"""Bytes fed at once of a body whose end is not known: at most seven requests begin in them."""

WRITE_BUFFER_BYTES_MAX = 16 << 10
"""Bytes of answers that a client has not taken, beyond the kernel's buffer: then reading stops."""

_NONE, _HEAD, _BODY = range(3)

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n")


class _RefusedError(Exception):
    """Stops the parser; `_flaw` says why.

    The parser raises an error of its own instead, whose context is another where this happens
    while an exception is handled.
    """


class _Flow(FlowControl):
    """Reads nothing more while requests wait for their turn."""

    def __init__(self, http: "Http1") -> None:
        super().__init__(http.transport)
        self._http = http

    def resume_reading(self) -> None:
        if self.read_paused and not self._http.has_ahead:
            super().resume_reading()


class Http1(HttpToolsProtocol):
    """One connection."""

    read_s = READ_S
    root = ""
    """The path prefix under which a proxy publishes the API."""

    draining = Draining()
    """While the process goes down each answer closes its connection."""

    noted: Callable[[str], None] = staticmethod(lambda _: None)
    """Is told the code of each request that is refused here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what uvicorn gives."""
        super().__init__(*args, **kwargs)
        self._part = _NONE
        self._offered = False
        self._refused = False
        self._last = self._flaw = ""
        # Bytes that wait for their turn, from the place `_ahead_at` on; and how many bytes of the
        # body that is read are still to come, as far as that is known.
        self._ahead = b""
        self._ahead_at = self._body_left = 0
        # Of the segment that is read, of those with a part of this head, and of the first of them.
        self._segment = self._segments = self._first = 0

    # The connection.

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES_MAX)
        self.flow = _Flow(self)
        self._patience = Patience(transport, self._out_of_patience, self.loop, self.read_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._patience.end()
        self._forget_ahead()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Note that the client has yet to take what was answered."""
        self._patience.full()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on answering."""
        self._patience.taken()
        super().resume_writing()

    @property
    def has_ahead(self) -> bool:
        """Whether requests wait for their turn, parsed or not."""
        return bool(self.pipeline or self._ahead)

    def data_received(self, data: bytes) -> None:
        """Read a segment, as far as its turn has come.

        One request is read at a time, and the next when that has its answer: requests that a client
        has sent ahead wait as bytes. As objects they take a hundred times the room, and none of
        them would be for the hot path.
        """
        if self._refused:
            return
        if self._ahead:
            self._ahead = self._ahead[self._ahead_at :] + data
            self._ahead_at = 0
            self._read_ahead()
        elif (
            len(data) <= PIECE_BYTES
            and data.count(_HEAD_END) < 2
            and (self._part == _BODY or not self._owes)
        ):
            self._read(data)
        else:
            self._ahead = data
            self._read_ahead()

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's never keeps open
        """Keep open, to answer what is owed, for a client that only has nothing more to ask.

        One that has gone looks the same, and is no worse off: what it asked is carried out anyhow.
        A request that ends in the middle is none.
        """
        if not self._owes or (self._part == _BODY and not self._refused):
            return False
        if self._part == _HEAD and not self._refused:
            self._refuse("invalid_http")
        elif not self._refused:
            # Nothing waits behind it: where requests wait, nothing is read, not even the end.
            self.cycle.keep_alive = False
        return True

    def _read_ahead(self) -> None:
        while (
            self._ahead
            and not self.pipeline
            and not self._refused
            and (self._part == _BODY or not self._owes)
        ):
            start = self._ahead_at
            end = start + self._piece_bytes()
            piece = self._ahead[start:end]
            if end < len(self._ahead):
                self._ahead_at = end
            else:
                self._forget_ahead()
            self._read(piece)
        if self._ahead:
            self.flow.pause_reading()

    def _piece_bytes(self) -> int:
        """Return how much of what waits is read now: to the end of one request, at the most.

        Where that is, is found without the parser. A wrong guess would change when something is
        read, never as what: framing is the parser's alone.
        """
        ahead, start = self._ahead, self._ahead_at
        there = len(ahead) - start
        if self._part == _BODY:
            known = min(self._body_left, there)
            self._body_left -= known
            return known or min(BLIND_BYTES, there)
        end = ahead.find(_HEAD_END, start)
        if end < 0:
            return min(PIECE_BYTES, there)
        head = end + len(_HEAD_END) - start
        length = _LENGTH.search(ahead, start, end + len(_HEAD_END)) if not self._part else None
        body = int(length[1]) if length else 0
        self._body_left = max(0, head + body - there)
        return min(head + body, there)

    def _forget_ahead(self) -> None:
        self._ahead, self._ahead_at = b"", 0

    def _read(self, data: bytes | memoryview) -> None:
        self._segment = len(data)
        self._segments += self._segment
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._read_behind(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._flaw or "invalid_http")
            return
        if self._segments - self._first > HEAD_BYTES_MAX:
            self._refuse("head_too_large")
        elif not self._patience.until:
            self._patience.begin(self.read_s)

    def _read_behind(self, data: bytes | memoryview) -> None:
        """Read what follows a head that offers an upgrade, and behind each that follows it."""
        while True:
            self._offered = False
            self.parser = parser_behind(self, self.cycle.scope["headers"])
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            else:
                return

    def shutdown(self) -> None:
        """Close where no request has begun; else after its answer."""
        if self._owes:
            self.cycle.keep_alive = False
        elif self._part == _NONE and not has_unread(self.transport):
            self.transport.close()

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Begin a request; when it must be there is settled once the segment is read."""
        self._part = _HEAD
        self._patience.until = 0.0
        self._segments = self._first = self._segment
        self._begin_head()

    def on_url(self, url: bytes) -> None:
        """Take a part of the address."""
        super().on_url(url)
        if len(self.url) > URL_BYTES_MAX:
            self._flaw = "uri_too_long"
            raise _RefusedError

    def on_headers_complete(self) -> None:
        """Judge the head before the application is told of it."""
        parser, headers = self.parser, self.headers
        code = flaw(parser.get_method(), parser.get_http_version(), headers)
        if not code and self._segments > HEADER_BYTES_MAX:
            code = "head_too_large" if header_bytes(headers) > HEADER_BYTES_MAX else ""
        if code:
            self._flaw = code
            raise _RefusedError
        if self.root:
            self.url = stripped(self.url, self.root.encode())
        self._begin_request()
        self._part = _BODY
        self._offered = parser.should_upgrade()
        # What stands behind the body is read and forgotten: it is no header (RFC 9110, 6.5.1).
        self.headers = []

    def on_chunk_header(self) -> None:
        """Note that the body goes on."""
        self._segments = self._first = self._segment

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._segments = self._first
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request: from now on it is the service that is waited for, or the next one."""
        if self._offered:
            return  # the parser believes that what follows is another protocol
        self._part = _NONE
        if self._owes:
            self._patience.until = NEVER
        else:  # it was answered before its body was there
            self._patience.begin(self.timeout_keep_alive)
        super().on_message_complete()

    def _begin_head(self) -> None:
        super().on_message_begin()

    def _begin_request(self) -> None:
        """Have the application begin with a request, or let it wait for its turn."""
        parser = self.parser
        if parser.get_http_version() == "1.0" and parser.should_keep_alive():
            self._begin_kept_alive()
        else:
            super().on_headers_complete()
        if self.draining.begun:
            self.cycle.keep_alive = False

    def _begin_kept_alive(self) -> None:
        """Begin a request of HTTP/1.0 that asks for the connection to be kept (`ab -k`).

        uvicorn keeps none of these. Such a client has to be told, and an answer without a length
        ends with its connection.
        """
        app = self.app

        async def answering(scope: Any, receive: Any, send: Any) -> None:
            async def told(message: Any) -> None:
                if message["type"] == "http.response.start":
                    names = {name.lower() for name, _ in message["headers"]}
                    if b"content-length" not in names and message["status"] != 304:
                        cycle.keep_alive = False
                    elif cycle.keep_alive and b"connection" not in names:
                        kept = (b"connection", b"keep-alive")
                        message = {**message, "headers": [*message["headers"], kept]}
                await send(message)

            await app(scope, receive, told)

        self.app = answering
        try:
            super().on_headers_complete()
        finally:
            self.app = app
        cycle = self.cycle
        cycle.keep_alive = True

    # What becomes of a request.

    def on_response_complete(self) -> None:
        """Go on with what was sent ahead, or wait for the next request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            if cycle.more_body:
                self._patience.begin(self.read_s)  # while it waited, nothing of it was read
        elif self._last:
            self._hang_up(self._last)
            return
        else:  # a request of which a part is there has its whole time from here on
            self._patience.begin(self.timeout_keep_alive if self._part == _NONE else self.read_s)
        if not self.pipeline:
            if self._ahead:
                self._read_ahead()
            self.flow.resume_reading()

    def _out_of_patience(self) -> None:
        if self._part == _NONE:
            self.transport.close()
        elif self.pipeline or (self._part == _HEAD and self._owes):
            self._patience.begin(self.read_s)  # whoever waits for the service is not late
        else:
            self._refuse("request_timeout")

    @property
    def _owes(self) -> bool:
        """Whether an answer is due to the request whose head came last."""
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, code: str) -> None:
        """Answer with a problem in its turn, close, and read nothing more."""
        self._refused = True
        self._forget_ahead()
        self._patience.until = NEVER
        others_wait = self._owes
        if self._part == _BODY and self.pipeline:
            self.pipeline.popleft()  # it waits for its turn, and will not have it
        elif self._part == _BODY:
            if self.cycle.response_started:
                self.transport.close()  # it has its answer
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            others_wait = False
        if others_wait:
            self._last = code
        else:
            self._hang_up(code)

    def _encoded(self, code: str) -> bytes:
        detail = DETAILS.get(code, "")
        answer = problem_answer(Problem(code, detail), {"Connection": "close"}, root=self.root)
        headers = [*self.server_state.default_headers, *answer.raw_headers]
        lines = header_lines(headers)
        is_head = self._part == _HEAD and self.url and self.parser.get_method() == b"HEAD"
        body = b"" if is_head else bytes(answer.body)
        return b"".join((STATUS_LINE[answer.status_code], lines, b"\r\n", body))

    def _hang_up(self, code: str) -> None:
        self.noted(code)
        if self.access_log:
            client = ":".join(map(str, self.client or ()))
            self.access_logger.info("%s - refused: %s", client, code)
        self.transport.write(self._encoded(code))
        self.transport.close()
