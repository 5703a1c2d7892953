"""What nobody should send: each has its one answer, reaches neither store, and fails nothing.

On the running service, byte by byte. The event exists, so that nothing but the refusal stands
between the request and a booking.
"""

import pytest

from tests.http.conftest import Service
from tests.http.raw import Answer, Connection, assert_problem, chunked, request
from tests.servers import wait_until

pytestmark = pytest.mark.usefixtures("reaches_neither_store")

BODY_MAX = 4096
INITIALIZE_BODY_MAX = 65536
POSTS = {"/initialize": INITIALIZE_BODY_MAX, "/book": BODY_MAX, "/cancel": BODY_MAX}
GETS = ("/status/1", "/events/1/users/1", "/livez", "/readyz", "/", "/docs", "/openapi.json",
        "/docs/swagger-ui.css", "/problems/not_found")  # fmt: skip
JSON = "Content-Type: application/json"

GOOD = b'{"eventId":1,"userId":1}'
NO_JSON = {
    "empty": b"",
    "blank": b" \r\n\t",
    "one brace": b"{",
    "cut": GOOD[:-1],
    "junk behind": GOOD + b"x",
    "NUL behind": GOOD + b"\x00",
    "two documents": GOOD + GOOD,
    "trailing comma": b'{"eventId":1,"userId":1,}',
    "single quotes": b"{'eventId':1,'userId':1}",
    "bare key": b'{eventId:1,"userId":1}',
    "comment": b'{"eventId":1,"userId":1/**/}',
    "form": b"eventId=1&userId=1",
    "BOM": b"\xef\xbb\xbf" + GOOD,
    "UTF-16 with BOM": GOOD.decode().encode("utf-16"),
    "UTF-16": GOOD.decode().encode("utf-16-be"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "no UTF-8": b'{"eventId":1,"userId":"\xff"}',
    "no UTF-8 in a key": b'{"eventId":1,"userId":1,"\xff":1}',
    "Latin-1": '{"eventId":1,"userId":"é"}'.encode("latin-1"),
    "overlong NUL": b'{"eventId":1,"userId":"\xc0\x80"}',
    "surrogate in UTF-8": b'{"eventId":1,"userId":"\xed\xa0\x80"}',
    "lone leading surrogate": rb'{"eventId":1,"userId":"\ud800"}',
    "lone trailing surrogate": rb'{"eventId":1,"userId":"\udc00"}',
    "surrogates reversed": rb'{"eventId":1,"userId":"\udc00\ud800"}',
    "raw NUL in a string": b'{"eventId":1,"userId":"\x00"}',
    "raw newline in a string": b'{"eventId":1,"userId":"a\n"}',
    "leading zero": b'{"eventId":01,"userId":1}',
    "leading plus": b'{"eventId":+1,"userId":1}',
    "no digit behind the point": b'{"eventId":1.,"userId":1}',
    "no digit before the point": b'{"eventId":.1,"userId":1}',
    "hexadecimal": b'{"eventId":0x1,"userId":1}',
    "brackets": b"[" * BODY_MAX,
    "braces": b'{"a":' * 800,
    "closed brackets": b'{"eventId":1,"userId":' + b"[" * 2000 + b"]" * 2000 + b"}",
}

COUNTS = {
    "null": b"null",
    "true": b"true",
    "a string": b'"1"',
    "an empty string": b'""',
    "a list": b"[1]",
    "an object": b"{}",
    "1.0": b"1.0",
    "1e0": b"1e0",
    "1.5": b"1.5",
    "0": b"0",
    "-0": b"-0",
    "-1": b"-1",
    "2^53": b"9007199254740992",
    "2^63": b"9223372036854775808",
    "2^64": b"18446744073709551616",
    "20 digits": b"9" * 20,
    "2000 digits": b"9" * 2000,
    "1e400": b"1e400",
    "-1e400": b"-1e400",
    "NaN": b"NaN",
    "Infinity": b"Infinity",
}
"""What is no count and no event id. NaN is no JSON either; that it is no integer is said first."""

USER_IDS = {
    "null": b"null",
    "true": b"true",
    "a list": b"[1]",
    "an object": b"{}",
    "nested": b"[" * 100 + b"]" * 100,
    "1.0": b"1.0",
    "1e0": b"1e0",
    "-1": b"-1",
    "2^53": b"9007199254740992",
    "2^63": b"9223372036854775808",
    "20 digits": b"9" * 20,
    "2000 digits": b"9" * 2000,
    "1e400": b"1e400",
    "NaN": b"NaN",
    "empty": b'""',
    "65 characters": b'"' + b"a" * 65 + b'"',
    "a space": b'"a b"',
    "a newline at the end": rb'"a\n"',
    "U+0000": rb'"\u0000"',
    "U+0000 at the end": rb'"a\u0000"',
    "a slash": b'"a/b"',
    "a brace": b'"{p00}"',
    "a colon's neighbour": b'"a;b"',
    "a percent sign": b'"%31"',
    "a quote": rb'"a\"b"',
    "a letter beyond ASCII": '"é"'.encode(),
    "an Arabic digit": '"٣"'.encode(),
    "a fullwidth digit": rb'"\uff11"',
    "an emoji": rb'"\ud83d\ude00"',
}

NAMES = {
    "null": b"null",
    "a number": b"1",
    "true": b"true",
    "a list": b'["a"]',
    "empty": b'""',
    "201 characters": b'"' + b"a" * 201 + b'"',
    "201 characters beyond ASCII": '"{}"'.format("é" * 201).encode(),
    "U+0000": rb'"\u0000"',
    "U+0000 in the middle": rb'"a\u0000b"',
}

INVALID = {
    **{
        f"{path} {what} for eventId": (path, b'{"eventId":%b,"userId":1}' % value, ["/eventId"])
        for path in ("/book", "/cancel")
        for what, value in COUNTS.items()
    },
    **{
        f"{path} {what} for userId": (path, b'{"eventId":1,"userId":%b}' % value, ["/userId"])
        for path in ("/book", "/cancel")
        for what, value in USER_IDS.items()
    },
    **{
        f"/book {what} for quantity": (
            "/book",
            b'{"eventId":1,"userId":1,"quantity":%b}' % value,
            ["/quantity"],
        )
        for what, value in {**COUNTS, "2": b"2"}.items()
    },
    **{
        f"/initialize {what} for totalTickets": (
            "/initialize",
            b'{"name":"a","totalTickets":%b}' % value,
            ["/totalTickets"],
        )
        for what, value in {**COUNTS, "10,000,001": b"10000001"}.items()
    },
    **{
        f"/initialize {what} for name": (
            "/initialize",
            b'{"name":%b,"totalTickets":1}' % value,
            ["/name"],
        )
        for what, value in NAMES.items()
    },
    **{
        f"{path} {what}": (path, body, [""])
        for path in POSTS
        for what, body in {
            "null": b"null",
            "a list": b"[]",
            "a list around it": b"[" + GOOD + b"]",
            "a string": b'"{}"',
            "a number": b"1",
            "true": b"true",
        }.items()
    },
    "/book nothing": ("/book", b"{}", ["/eventId", "/userId"]),
    "/cancel nothing": ("/cancel", b"{}", ["/eventId", "/userId"]),
    "/initialize nothing": ("/initialize", b"{}", ["/name", "/totalTickets"]),
    "/book without eventId": ("/book", b'{"userId":1}', ["/eventId"]),
    "/book in another case": (
        "/book",
        b'{"eventid":1,"userId":1}',
        ["/eventId", "/eventid"],
    ),
    "/book an unknown field": ("/book", b'{"eventId":1,"userId":1,"vip":true}', ["/vip"]),
    "/book __proto__": ("/book", b'{"eventId":1,"userId":1,"__proto__":{}}', ["/__proto__"]),
    "/book an empty field": ("/book", b'{"eventId":1,"userId":1,"":1}', ["/"]),
    "/book a field with pointer signs": (
        "/book",
        b'{"eventId":1,"userId":1,"a/b~c":1}',
        ["/a~1b~0c"],
    ),
    "/book a field U+0000": ("/book", rb'{"eventId":1,"userId":1,"\u0000":1}', ["/\u0000"]),
    "/book a long field": (
        "/book",
        b'{"eventId":1,"userId":1,"%b":1}' % (b"a" * 3000),
        ["/" + "a" * 64],
    ),
    "/book all at once": (
        "/book",
        b'{"eventId":"1","userId":null,"quantity":2,"vip":1}',
        ["/eventId", "/quantity", "/userId", "/vip"],
    ),
    "/cancel a quantity": ("/cancel", b'{"eventId":1,"userId":1,"quantity":1}', ["/quantity"]),
    "/book a duplicate whose last is bad": (
        "/book",
        b'{"eventId":1,"userId":1,"eventId":0}',
        ["/eventId"],
    ),
    "/initialize the answer's fields": (
        "/initialize",
        b'{"name":"a","totalTickets":1,"id":7,"remainingTickets":1}',
        ["/id", "/remainingTickets"],
    ),
}

MEDIA_TYPES = (
    "", "json", "text/plain", "text/json", "application/jsonx", "application/problem+json",
    "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "*/*", "application/*",
    "application/json, text/plain", "x; application/json",
)  # fmt: skip

EVENT_PATHS = {
    "0": "event_not_found",
    "01": "event_not_found",
    "-1": "event_not_found",
    "+1": "event_not_found",
    "1.0": "event_not_found",
    "1e0": "event_not_found",
    "0x1": "event_not_found",
    "1_0": "event_not_found",
    "%D9%A3": "event_not_found",
    "%EF%BC%91": "event_not_found",
    "9007199254740992": "event_not_found",
    "9223372036854775808": "event_not_found",
    "9" * 23: "event_not_found",
    "9" * 2000: "event_not_found",
    "a" * 65: "event_not_found",
    "%00": "event_not_found",
    "1%00": "event_not_found",
    "1%0A": "event_not_found",
    "%201": "event_not_found",
    "%0D%0ASet-Cookie:x": "event_not_found",
    "{p00}": "event_not_found",
    "1;a": "event_not_found",
    "%": "event_not_found",
    "%zz": "event_not_found",
    "%ff": "event_not_found",
    "%C3%A9": "event_not_found",
    "..": "event_not_found",
    "%2531": "event_not_found",
    "a%2Fb": "not_found",
    "..%2f": "not_found",
    "1%2f": "not_found",
    "1/": "not_found",
    "/1": "not_found",
    "": "not_found",
}
USER_PATHS = {
    "a" * 65: "not_booked",
    "a" * 2000: "not_booked",
    "%00": "not_booked",
    "a%00": "not_booked",
    "a%0A": "not_booked",
    "%20": "not_booked",
    "%0D%0ASet-Cookie:x": "not_booked",
    "{p00}": "not_booked",
    "a;b": "not_booked",
    "%D9%A3": "not_booked",
    "%ff": "not_booked",
    "%C3%A9": "not_booked",
    "%": "not_booked",
    "%2531": "not_booked",
    "a%2Fb": "not_found",
    "..%2f": "not_found",
    "a/": "not_found",
    "/a": "not_found",
    "": "not_found",
}
PATHS = (
    "/bok", "/Book", "/book/", "/book//", "//book", "/./book", "/x/../book", "/book%0A",
    "/book%20", "/book%00", "/book%2F", "/book;x", "/book\\", "/initialize/", "/cancel/",
    "//evil.example/book", "/api/book", "/events", "/events/1", "/events/1/users", "/status",
    "/status/1/users/1", "/.env", "/.git/config", "/docs/", "/docs/..%2fopenapi.json",
    "/docs/index.html", "/docs/%2e%2e%2fmodels.py", "/problems/", "/problems/nothing",
    "/problems/NOT_FOUND", "/problems/not_found%0A", "/%62ok", "*",
)  # fmt: skip


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_400(raw: Connection, path: str, body: bytes) -> None:
    """A body that is no JSON text in UTF-8 is `invalid_json`, and the connection goes on."""
    assert_problem(raw.post(path, body), "invalid_json")
    assert raw.serves()


def test_brackets_to_the_bound_are_400(raw: Connection) -> None:
    """65,000 nested brackets end in an answer, not in a deep recursion."""
    assert_problem(raw.post("/initialize", b"[" * 65_000), "invalid_json")
    assert raw.serves()


@pytest.mark.parametrize("digits", [b"9" * 4_400, b"-" + b"9" * 60_000])
def test_numbers_longer_than_any_are_400(raw: Connection, digits: bytes) -> None:
    """An integer that no parser should convert is not converted; 5000 digits among them."""
    body = b'{"name":"a","totalTickets":%b}' % digits
    assert_problem(raw.post("/initialize", body), "invalid_json")
    assert raw.serves()


@pytest.mark.parametrize(("path", "body", "pointers"), INVALID.values(), ids=INVALID)
def test_what_is_not_valid_is_422(
    raw: Connection, path: str, body: bytes, pointers: list[str]
) -> None:
    """All invalid, missing and unknown fields are named at once, by JSON pointers."""
    problem = assert_problem(raw.post(path, body), "invalid_request")
    assert sorted(e["pointer"] for e in problem["errors"]) == pointers
    assert all(e.keys() == {"pointer", "detail"} and e["detail"] for e in problem["errors"])
    assert raw.serves()


def test_thousands_of_unknown_fields_make_no_large_answer(raw: Connection) -> None:
    """A body of 60 KB is not answered with a megabyte of errors."""
    fields = b",".join(b'"%d":1' % n for n in range(6_000))
    answer = raw.post("/initialize", b'{"name":"a","totalTickets":1,%b}' % fields)
    assert len(assert_problem(answer, "invalid_request")["errors"]) == 20
    assert len(answer.body) < 4_096


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_another_media_type_is_415(raw: Connection, path: str, media_type: str) -> None:
    """A body that is not said to be JSON is not read."""
    answer = raw.ask(request("POST", path, f"Content-Type: {media_type}", body=GOOD))
    assert_problem(answer, "unsupported_media_type")
    assert raw.serves()


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [GOOD, b""])
def test_a_missing_media_type_is_415(raw: Connection, path: str, body: bytes) -> None:
    """Without a content type nothing is guessed."""
    assert_problem(raw.ask(request("POST", path, body=body)), "unsupported_media_type")
    assert raw.serves()


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/json;charset=x",
        " application/json ",
    ],
)
def test_json_under_its_other_names_is_read(raw: Connection, media_type: str) -> None:
    """Case and parameters of the media type do not matter: the body is looked at."""
    answer = raw.ask(request("POST", "/book", f"Content-Type: {media_type}", body=b"{}"))
    assert_problem(answer, "invalid_request")


@pytest.mark.parametrize(("path", "bytes_max"), POSTS.items())
def test_a_body_of_just_the_bound_is_read(raw: Connection, path: str, bytes_max: int) -> None:
    """4 KiB, 64 KiB for initialize, are not too large, with a length or in chunks."""
    body = b"{}".ljust(bytes_max)
    assert_problem(raw.post(path, body), "invalid_request")
    assert_problem(raw.ask(chunked("POST", path, body[:100], body[100:])), "invalid_request")
    assert raw.serves()


@pytest.mark.parametrize(("path", "bytes_max"), POSTS.items())
def test_one_byte_more_is_413_by_length(raw: Connection, path: str, bytes_max: int) -> None:
    """What is announced too large is refused, and the connection closed."""
    assert_problem(raw.post(path, b"{}".ljust(bytes_max + 1)), "body_too_large")
    assert raw.is_closed()


@pytest.mark.parametrize(("path", "bytes_max"), POSTS.items())
def test_one_byte_more_is_413_in_chunks(raw: Connection, path: str, bytes_max: int) -> None:
    """What was not announced is counted, and the connection closed."""
    assert_problem(raw.ask(chunked("POST", path, b"{}", b" " * (bytes_max - 1))), "body_too_large")
    assert raw.is_closed()


def test_a_length_too_large_is_answered_before_the_body(raw: Connection) -> None:
    """Nothing of the body needs to be sent to be refused, and 100 is not answered first."""
    head = request("POST", "/book", JSON, "Expect: 100-continue", "Content-Length: 5000")
    answer = raw.ask(head)
    assert_problem(answer, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert raw.is_closed()


def test_chunks_of_one_byte_are_counted(raw: Connection) -> None:
    """A body is as large as what it carries, however it is cut."""
    raw.send_until_refused(chunked("POST", "/book", *[b" "] * 5_000))
    assert_problem(raw.answer(), "body_too_large")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("size", [100_000, 1_000_000, 20_000_000])
@pytest.mark.parametrize("in_chunks", [False, True], ids=["length", "chunks"])
def test_a_large_body_leaves_memory_flat(
    service: Service, path: str, size: int, in_chunks: bool
) -> None:
    """20 MB are not taken in: 413, the connection closed, and no memory grown by it."""
    if in_chunks:
        data = chunked("POST", path, *[b" " * 10_000] * (size // 10_000))
    else:
        data = request("POST", path, JSON, body=b" " * size)
    before = service.memory_bytes()
    for _ in range(3):
        with service.connect() as connection:
            connection.send_until_refused(data)
            answer = connection.answer()
            assert_problem(answer, "body_too_large")
            assert answer.headers["connection"] == "close"
            assert connection.is_closed()
    assert service.memory_bytes() < before + 4_000_000


@pytest.mark.parametrize(
    ("path", "code"), [("/bok", "not_found"), ("/status/1", "method_not_allowed")]
)
def test_a_large_body_that_nobody_asked_for_is_passed_over(
    raw: Connection, service: Service, path: str, code: str
) -> None:
    """20 MB to an address that takes none are read and forgotten; the connection goes on."""
    before = service.memory_bytes()
    raw.send(request("POST", path, JSON, body=b" " * 20_000_000))
    assert_problem(raw.answer(), code)
    assert raw.serves()
    assert service.memory_bytes() < before + 4_000_000


@pytest.mark.parametrize(("name", "code"), EVENT_PATHS.items())
def test_what_is_no_event_id_is_404(raw: Connection, name: str, code: str) -> None:
    """No path but a plain positive integer below 2^53 is looked up."""
    assert_problem(raw.ask(request("GET", f"/status/{name}"), "GET"), code)
    of_user = "not_found" if code == "not_found" else "event_not_found"
    assert_problem(raw.ask(request("GET", f"/events/{name}/users/1"), "GET"), of_user)
    assert raw.serves()


@pytest.mark.parametrize(("name", "code"), USER_PATHS.items())
def test_what_is_no_user_id_is_404(raw: Connection, name: str, code: str) -> None:
    """Who cannot have booked is not looked up."""
    assert_problem(raw.ask(request("GET", f"/events/1/users/{name}"), "GET"), code)
    assert raw.serves()


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_address_is_404(raw: Connection, path: str, method: str) -> None:
    """Addresses are exact: no other case, no slash more, no redirect, no way out of /docs."""
    body = GOOD if method == "POST" else None
    answer = raw.ask(request(method, path, JSON, body=body), method)
    if answer.status == 405:  # under /docs/ and /problems/ there is something, but no POST
        assert path.startswith(("/docs/", "/problems/"))
        assert method == "POST"
    else:
        assert_problem(answer, "not_found")
    assert raw.serves()


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", POSTS)
def test_another_method_than_post_is_405(raw: Connection, path: str, method: str) -> None:
    """A route that takes POST alone says so."""
    answer = raw.ask(request(method, path, JSON, body=GOOD), method)
    assert_problem(answer, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert raw.serves()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", GETS)
def test_another_method_than_get_is_405(raw: Connection, path: str, method: str) -> None:
    """A route that reads says that it takes GET and HEAD."""
    answer = raw.ask(request(method, path, JSON, body=GOOD), method)
    assert_problem(answer, "method_not_allowed")
    assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD"]
    assert raw.serves()


@pytest.mark.parametrize("path", POSTS)
def test_head_of_a_post_is_405_without_a_body(raw: Connection, path: str) -> None:
    """HEAD is refused like GET, in the headers alone."""
    answer = raw.ask(request("HEAD", path), "HEAD")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert raw.serves()


@pytest.mark.parametrize("path", POSTS)
def test_no_body_at_all_is_400(raw: Connection, path: str) -> None:
    """A request without length and chunks has an empty body, which is no JSON."""
    assert_problem(raw.ask(request("POST", path, JSON)), "invalid_json")
    assert raw.serves()


def test_a_bad_request_does_not_spoil_the_next(raw: Connection) -> None:
    """Refusals of every kind follow each other on one connection, each under its own code."""
    requests = {
        request("POST", "/book", JSON, body=b"x"): "invalid_json",
        request("POST", "/cancel", JSON, body=b"{}"): "invalid_request",
        request("POST", "/book", body=GOOD): "unsupported_media_type",
        request("PUT", "/book", body=GOOD): "method_not_allowed",
        request("POST", "/nothing", JSON, body=GOOD): "not_found",
        request("GET", "/status/0"): "event_not_found",
        request("POST", "/book", JSON, body=b" " * 5_000): "body_too_large",
    }
    raw.send(b"".join(requests))
    for code in requests.values():
        assert_problem(raw.answer(), code)
    assert raw.is_closed()


@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/book", JSON, "Content-Length: 25") + GOOD,
        request("POST", "/book", JSON, "Transfer-Encoding: chunked") + b"18\r\n" + GOOD,
        request("POST", "/book", JSON, "Transfer-Encoding: chunked") + b"18\r\n" + GOOD + b"\r\n",
        request("POST", "/book", JSON, "Content-Length: 24"),
        request("POST", "/book", JSON, body=GOOD)[:60],
    ],
    ids=["a byte short", "in a chunk", "before the last chunk", "before the body", "in the head"],
)
def test_a_client_that_hangs_up_in_the_middle_has_asked_nothing(
    service: Service, data: bytes
) -> None:
    """What came of a request is not acted upon until all of it came; and it is no failure."""
    with service.connect() as connection:
        port = connection.port
        connection.send(data)
        with service.connect() as other:  # what came before this answer was read, too
            assert other.serves()
    wait_until(lambda: not service.knows_connection(port), what="the API has seen it go")


def test_nothing_of_a_secret_kind_is_in_an_answer(raw: Connection) -> None:
    """Refusals name no module, no version and no store."""
    answers: list[Answer] = [
        raw.post("/book", b"x"),
        raw.post("/book", b'{"eventId":{},"userId":{}}'),
        raw.ask(request("GET", "/nothing"), "GET"),
    ]
    for answer in answers:
        assert "server" not in answer.headers
        text = answer.body.lower()
        assert not any(
            word in text for word in (b"pydantic", b"python", b"valkey", b"redis", b"sql")
        )
