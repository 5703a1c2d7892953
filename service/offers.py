"""Upgrades that are offered and not taken: who offers one is served in HTTP/1.1 (RFC 9110, 7.8).

Java's client offers h2c on every first request, `curl --http2` likewise. httptools takes what
follows such a head for another protocol, so the request's body and all behind it is given to
another parser, which is told of the same framing and of nothing else. Looks at no byte itself.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import httptools

_FRAMING = (b"content-length", b"transfer-encoding")


class Reader(Protocol):
    """What a parser tells of requests."""

    def on_message_begin(self) -> None:
        """Begin a request."""

    def on_url(self, url: bytes) -> None:
        """Take a part of its address."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field, of the head or behind the body."""

    def on_headers_complete(self) -> None:
        """End the head."""

    def on_chunk_header(self) -> None:
        """Begin a chunk."""

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""

    def on_message_complete(self) -> None:
        """End the request."""


def parser_behind(
    reader: Reader, headers: Iterable[tuple[bytes, bytes]]
) -> httptools.HttpRequestParser:
    """Return a parser that reads on behind a head with these headers, the body first."""
    parser = httptools.HttpRequestParser(_Behind(reader))
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
    framing = [b"%b: %b" % header for header in headers if header[0] in _FRAMING]
    parser.feed_data(b"\r\n".join((b"POST / HTTP/1.1", *framing, b"\r\n")))
    return parser


class _Behind:
    """The callbacks of such a parser: of the first head nothing is told a second time."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._told_already = True
        self.on_message_begin = self._unless_told(reader.on_message_begin)
        self.on_url = self._unless_told(reader.on_url)
        self.on_header = self._unless_told(reader.on_header)
        self.on_chunk_header = reader.on_chunk_header
        self.on_body = reader.on_body
        self.on_message_complete = reader.on_message_complete

    def on_headers_complete(self) -> None:
        if self._told_already:
            self._told_already = False
        else:
            self._reader.on_headers_complete()

    def _unless_told(self, callback: Callable[..., None]) -> Callable[..., None]:
        def told(*what: bytes) -> None:
            if not self._told_already:
                callback(*what)

        return told
