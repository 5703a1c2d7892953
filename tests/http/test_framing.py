"""What is no sound HTTP/1.1, or could be two things to two readers, is refused first of all.

Each is `invalid_http`, on the running service, and the connection ends behind it: where the next
request would begin is never guessed. What is still answered behind a proxy that reads otherwise is
how requests are smuggled (RFC 9112, 11.2).
"""

import pytest

from tests.http.conftest import Service
from tests.http.raw import Connection, assert_problem, chunked, request

pytestmark = pytest.mark.usefixtures("reaches_neither_store")

JSON = "Content-Type: application/json"
GOOD = b'{"eventId":1,"userId":1}'
SMUGGLED = request("POST", "/book", JSON, body=GOOD)
HOST = b"Host: localhost\r\n"
CHUNKED = "Transfer-Encoding: chunked"

LENGTHS = ("-1", "+5", "1e3", "0x10", "5, 5", "", "five", "\xb2", "1.0", "9" * 23)
FRAMINGS = {
    "both length and chunks": request(
        "POST", "/book", JSON, "Transfer-Encoding: chunked", body=GOOD
    ),
    "both chunks and length": request("POST", "/book", JSON, "Content-Length: 5")[:-2]
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": request("POST", "/book", JSON, "Content-Length: 5", body=GOOD),
    "the same length twice": request("POST", "/book", JSON, "Content-Length: 24", body=GOOD),
    **{
        f"the length {value!r}": request("POST", "/book", JSON, f"Content-Length: {value}") + GOOD
        for value in LENGTHS
    },
    "a length with letters around": request("POST", "/book", JSON, "Content-Length : 24") + GOOD,
    **{
        f"the encoding {value!r}": request("POST", "/book", JSON, f"Transfer-Encoding: {value}")
        + b"18\r\n%b\r\n0\r\n\r\n" % GOOD
        for value in (
            "gzip",
            "identity",
            "xchunked",
            "chunked, gzip",
            "gzip, chunked",
            "chunked, chunked",
            "chunked;q=1",
            "",
            '"chunked"',
        )
    },
    **{
        f"the chunk size {size!r}": request("POST", "/book", JSON, "Transfer-Encoding: chunked")
        + b"%b\r\n%b\r\n0\r\n\r\n" % (size, GOOD)
        for size in (b"zz", b"-1", b"0x18", b"", b"f" * 18)
    },
    "a chunk longer than its size": request("POST", "/book", JSON, "Transfer-Encoding: chunked")
    + b"5\r\n%b\r\n0\r\n\r\n" % GOOD,
    "NUL in a header": request("POST", "/book", JSON, "X-A: a\x00b", body=GOOD),
    "a folded header": request("POST", "/book", JSON, "X-A: a\r\n b", body=GOOD),
    "a space before the colon": request("POST", "/book", JSON, "X-A : a", body=GOOD),
    "a header without a colon": request("POST", "/book", JSON, "X-A", body=GOOD),
    "no carriage returns": request("POST", "/book", JSON, body=GOOD).replace(b"\r\n", b"\n"),
    "a method that nobody knows": request("BOOK", "/book", JSON, body=GOOD),
    "a method in lower case": request("post", "/book", JSON, body=GOOD),
    "a tunnel": request("CONNECT", "evil.example:80"),
    "a path without a slash": request("POST", "book", JSON, body=GOOD),
    "a path with a space": request("POST", "/bo ok", JSON, body=GOOD),
    "a path beyond ASCII": request("POST", "/book/\xe9", JSON, body=GOOD),
    "no Host": SMUGGLED.replace(HOST, b""),
    "no Host, but an absolute address": request(
        "POST", "http://localhost/book", JSON, body=GOOD
    ).replace(HOST, b""),
    "two hosts": request("POST", "/book", JSON, "Host: localhost", body=GOOD),
    "two hosts in HTTP/1.0": request("POST", "/book", JSON, "Host: a", body=GOOD).replace(
        b"HTTP/1.1", b"HTTP/1.0"
    ),
    "chunks in HTTP/1.0": chunked("POST", "/book", GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two encodings": request("POST", "/book", JSON, CHUNKED, CHUNKED) + b"0\r\n\r\n",
    "two encodings, of which one is none": request(
        "POST", "/book", JSON, "Transfer-Encoding: identity", CHUNKED
    )
    + b"0\r\n\r\n",
    "a length in a list": request("POST", "/book", JSON, "Content-Length: 24, 24") + GOOD,
    "a vertical tab before chunked": chunked("POST", "/book", GOOD).replace(
        b": chunked", b": \x0bchunked"
    ),
    "an encoding on two lines": chunked("POST", "/book", GOOD).replace(
        b": chunked", b":\r\n chunked"
    ),
    "a control character in a header": request("POST", "/book", JSON, "X-A: a\x01b", body=GOOD),
    "a carriage return in a header": request("POST", "/book", JSON, "X-A: a\rb", body=GOOD),
    "a line feed in a header": request(
        "POST", "/book", JSON, "X-A: a\nContent-Length: 0", body=GOOD
    ),
    "NUL in a header's name": request("POST", "/book", JSON, "X\x00A: a", body=GOOD),
    "a header without a name": request("POST", "/book", JSON, ": a", body=GOOD),
    "NUL in the path": request("POST", "/book\x00", JSON, body=GOOD),
    "a chunk without its line end": request("POST", "/book", JSON, CHUNKED)
    + b"18\r\n%b0\r\n\r\n" % GOOD,
    "a line feed behind a chunk's size": request("POST", "/book", JSON, CHUNKED)
    + b"18\n%b\r\n0\r\n\r\n" % GOOD,
    "a space before a chunk's size": request("POST", "/book", JSON, CHUNKED)
    + b" 18\r\n%b\r\n0\r\n\r\n" % GOOD,
    "HTTP/2.0 in words": SMUGGLED.replace(b"/1.1", b"/2.0"),
    "HTTP/0.9": SMUGGLED.replace(b"/1.1", b"/0.9"),
    "no version": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.7": request("POST", "/book", JSON, body=GOOD).replace(b"/1.1", b"/3.7"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "noise": bytes(range(128, 256)) * 4,
}


@pytest.mark.parametrize("data", FRAMINGS.values(), ids=FRAMINGS)
def test_what_is_no_http_is_400_and_closed(raw: Connection, data: bytes) -> None:
    """Where one request ends is never guessed."""
    raw.send_until_refused(data)
    answer = raw.answer()
    assert_problem(answer, "invalid_http")
    assert answer.headers["connection"] == "close"
    assert raw.is_closed()


def test_strangers_cannot_fill_the_log(service: Service) -> None:
    """What is refused is worth a line only to somebody who asked for a line per request."""
    before = service.api.log.stat().st_size
    for data in FRAMINGS.values():
        with service.connect() as connection:
            connection.send_until_refused(data)
            assert connection.answer().status == 400
    assert service.api.log.stat().st_size == before


@pytest.mark.parametrize("data", FRAMINGS.values(), ids=FRAMINGS)
def test_nothing_behind_it_is_read(raw: Connection, data: bytes) -> None:
    """A request that rides behind an unsound one is not carried out, nor answered."""
    raw.send_until_refused(data + SMUGGLED * 3)
    assert_problem(raw.answer(), "invalid_http")
    assert raw.is_closed()
