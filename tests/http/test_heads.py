"""Heads beyond the bounds: 431, 414, and the connection closed; within them the service is as ever.

On the running service, a table of inputs and answers. How the bounds hold in whatever segments the
bytes come, `tests/unit/test_http1.py` says without a socket.
"""

import random
import threading
from collections.abc import Callable

import pytest

from tests.http.conftest import Service
from tests.http.raw import Connection, assert_problem, chunked, request

pytestmark = pytest.mark.usefixtures("reaches_neither_store")

JSON = "Content-Type: application/json"
GOOD = b'{"eventId":1,"userId":1}'
URL_MAX, HEADERS_MAX, FIELDS_MAX = 2 << 10, 16 << 10, 64
MB = 1_000_000


def padded(method: str, path: str, header_bytes: int, body: bytes | None = None) -> bytes:
    """Return a request whose fields take so many bytes."""
    bare = request(method, path, JSON, body=body)
    fields = bare.partition(b"\r\n\r\n")[0].partition(b"\r\n")[2] + b"\r\n"
    value = "y" * (header_bytes - len(fields) - len("X: \r\n"))
    return request(method, path, JSON, f"X: {value}", body=body)


def with_fields(method: str, path: str, fields: int) -> bytes:
    """Return a request without a body that has so many fields."""
    return request(method, path, *[f"X-{n}: y" for n in range(fields - 1)])


# Made by the test that sends it: a process that collects would keep all of them, 140 MB.
TOO_LARGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "16 KiB and a byte of fields": (
        lambda: padded("GET", "/livez", HEADERS_MAX + 1),
        "head_too_large",
    ),
    "the same with a body": (
        lambda: padded("POST", "/book", HEADERS_MAX + 1, GOOD),
        "head_too_large",
    ),
    "the same where nothing is": (lambda: padded("GET", "/bok", HEADERS_MAX + 1), "head_too_large"),
    "65 fields": (lambda: with_fields("GET", "/livez", FIELDS_MAX + 1), "head_too_large"),
    "65 fields, one 65 times": (
        lambda: request("GET", "/livez", *["X: y"] * FIELDS_MAX),
        "head_too_large",
    ),
    "20 MB of a field": (lambda: request("GET", "/livez", "X: " + "y" * 20 * MB), "head_too_large"),
    "20 MB of fields": (lambda: request("GET", "/livez", *["X: y"] * 3_500_000), "head_too_large"),
    "20 MB of a field's name": (lambda: request("GET", "/livez", "x" * 20 * MB), "head_too_large"),
    "20 MB of a trailer": (
        lambda: chunked("GET", "/livez", b"a")[:-2] + b"X: " + b"y" * 20 * MB,
        "head_too_large",
    ),
    "20 MB of a cookie": (
        lambda: request("GET", "/livez", "Cookie: a=" + "b" * 20 * MB),
        "head_too_large",
    ),
    "2 KiB and a byte of address": (
        lambda: request("GET", "/".ljust(URL_MAX + 1, "a")),
        "uri_too_long",
    ),
    "the same in a query": (
        lambda: request("GET", "/livez?".ljust(URL_MAX + 1, "a")),
        "uri_too_long",
    ),
    "the same for POST": (
        lambda: request("POST", "/book?".ljust(URL_MAX + 1, "a"), JSON, body=GOOD),
        "uri_too_long",
    ),
    "5,000 digits of an event": (lambda: request("GET", "/status/" + "9" * 5_000), "uri_too_long"),
    "5,000 letters of a user": (
        lambda: request("GET", "/events/1/users/" + "a" * 5_000),
        "uri_too_long",
    ),
    "20 MB of address": (lambda: request("GET", "/" + "a" * 20 * MB), "uri_too_long"),
}


@pytest.mark.parametrize(("made", "code"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_head_beyond_its_bounds_is_refused_and_closed(
    service: Service, made: Callable[[], bytes], code: str
) -> None:
    """Whatever is asked for: the code, the connection closed, and no memory grown by it."""
    data = made()
    before = service.memory_bytes()
    for _ in range(3):
        with service.connect() as connection:
            connection.send_until_refused(data)
            answer = connection.answer("GET")
            assert_problem(answer, code)
            assert answer.headers["connection"] == "close"
            assert connection.is_closed()
    assert service.memory_bytes() < before + 4 * MB


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (padded("GET", "/livez", HEADERS_MAX), 200),
        (with_fields("GET", "/livez", FIELDS_MAX), 200),
        (request("GET", "/".ljust(URL_MAX, "a")), 404),
        (padded("PUT", "/book", HEADERS_MAX, GOOD), 405),
    ],
)
def test_a_head_of_just_the_bounds_is_served(raw: Connection, data: bytes, status: int) -> None:
    """The bounds themselves are allowed, for each request of a connection."""
    raw.send(data * 3)
    assert [raw.answer("GET").status for _ in range(3)] == [status] * 3
    assert raw.serves()


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (padded("GET", "/livez", HEADERS_MAX + 1), "head_too_large"),
        (request("GET", "/".ljust(URL_MAX + 1, "a")), "uri_too_long"),
        (request("GET", "/livez").replace(b"Host: localhost\r\n", b""), "invalid_http"),
        (chunked("POST", "/bok", b"a").replace(b"\r\n1\r\n", b"\r\nzz\r\n"), "invalid_http"),
    ],
)
def test_a_refusal_stands_in_its_place(raw: Connection, bad: bytes, code: str) -> None:
    """What came before is answered first; what comes behind is not read."""
    sound = request("GET", "/livez") + request("PUT", "/book", JSON, body=GOOD)
    raw.send(sound + bad + request("POST", "/book", JSON, body=GOOD))
    assert [raw.answer("GET").status for _ in range(2)] == [200, 405]
    assert_problem(raw.answer("GET"), code)
    assert raw.is_closed()


KINDS = {
    request("GET", "/livez"): 200,
    request("GET", "/status/0"): 404,
    request("PUT", "/book", JSON, body=GOOD): 405,
    request("POST", "/book", body=GOOD): 415,
    request("POST", "/book", JSON, body=b"{}"): 422,
    request("POST", "/cancel", JSON, body=b"{"): 400,
    chunked("POST", "/book", b"{", b'"a":1', b"}"): 422,
    request("POST", "/book", JSON, "Connection: Upgrade", "Upgrade: h2c", body=b"{}"): 422,
}


def test_ten_thousand_requests_of_one_connection_are_answered_in_order(raw: Connection) -> None:
    """Sent without waiting, whatever they are, each is answered in its place."""
    chance = random.Random(5)
    asked = chance.choices(list(KINDS), k=10_000)
    sender = threading.Thread(target=raw.send, args=(b"".join(asked),))
    sender.start()
    assert [raw.answer().status for _ in asked] == [KINDS[one] for one in asked]
    sender.join()
    assert raw.serves()


@pytest.mark.parametrize(
    ("ahead", "connections"), [(16 << 10, 300), (4 << 20, 16)], ids=["16 KiB", "4 MiB"]
)
def test_requests_sent_ahead_and_not_read_leave_memory_flat(
    service: Service, ahead: int, connections: int
) -> None:
    """Connections that send requests and take no answer: 64 KiB each.

    Each keeps what came at once as bytes, one request, and few answers that were not taken.
    """
    one = request("GET", "/livez")
    data = one * (ahead // len(one))
    before = service.memory_bytes()
    opened = [service.connect() for _ in range(connections)]
    for connection in opened:
        connection.send_as_much_as_is_taken(data, still_s=0.01)
    with service.connect() as other:
        assert other.serves()
    grown = service.memory_bytes() - before
    for connection in opened:
        connection.close()
    assert grown < connections * (64 << 10)
