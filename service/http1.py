"""HTTP/1.1 as this service speaks it: uvicorn's on httptools, in two points corrected.

An offered upgrade is ignored, as a server may (RFC 9110, 7.8): httptools drops the body of such a
request (Java's client offers h2c on every first one, `curl --http2` likewise), and the connection
then answers no more. And noise behind a whole request does not take that request's answer away: a
400 must not be all that is heard of a booking that stands.
"""

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = re.compile(rb"(?<=\r\n)upgrade(?=:)", re.IGNORECASE)
_IGNORED = b"ignored"


class Http1(HttpToolsProtocol):
    """One connection."""

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on; a header `Upgrade` under a name that means nothing.

        The same bytes in a body are no JSON, and no worse JSON under another name.
        """
        if b"upgrade:" in data.lower():
            data = _OFFER.sub(_IGNORED, data)
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, once nothing before it awaits an answer; then hang up."""
        last = self.cycle
        if last is None or last.response_complete or last.more_body:
            super().send_400_response(msg)
        else:
            last.keep_alive = False
