"""How requests follow each other on a connection, and what of HTTP/1.1 is taken as it comes."""

import contextlib
import json
from dataclasses import fields

import pytest

from tests.http.conftest import Service
from tests.http.raw import Connection, assert_problem, chunked, request
from tests.servers import wait_until

JSON = "Content-Type: application/json"


def book(event_id: int, user_id: int) -> bytes:
    """Return the body of a booking."""
    return json.dumps({"eventId": event_id, "userId": user_id}).encode()


def test_a_booking_reaches_both_stores(service: Service) -> None:
    """What the bad inputs are held against would show a good one."""
    event_id = service.open_event()
    before = service.stores.reached()
    with service.connect() as connection:
        assert connection.post("/book", book(event_id, 1)).status == 201
    assert service.stores.reached().beyond(before) >= {"script_calls", "changes"}


def test_an_opening_reaches_both_stores(service: Service) -> None:
    """What the bad inputs are held against would show an event, drawn or open."""
    before = service.stores.reached()
    service.open_event()
    everything = {field.name for field in fields(before)}
    assert service.stores.reached().beyond(before) == everything


def test_pipelined_requests_are_answered_in_order(service: Service, raw: Connection) -> None:
    """Hundreds of bookings in one write are decided and answered in that order."""
    event_id = service.open_event(100)
    users = range(300)
    raw.send(b"".join(request("POST", "/book", JSON, body=book(event_id, u)) for u in users))
    answers = [raw.answer() for _ in users]
    assert [a.json()["userId"] for a in answers] == [str(u) for u in users]
    assert [a.json().get("position", 0) for a in answers] == [0] * 100 + [*range(1, 201)]


def test_pipelined_requests_of_all_kinds_keep_their_answers(
    service: Service, raw: Connection
) -> None:
    """Reads, bookings and refusals in one write: each answer stands in its request's place."""
    event_id = service.open_event()
    raw.send(
        request("POST", "/book", JSON, body=book(event_id, 1))
        + request("GET", f"/status/{event_id}")
        + request("POST", "/book", JSON, body=b"{")
        + chunked("POST", "/book", book(event_id, 2))
        + request("HEAD", f"/status/{event_id}")
        + request("GET", "/nothing")
        + request("POST", "/cancel", JSON, body=book(event_id, 1))
    )
    assert raw.answer().status == 201
    assert raw.answer("GET").json()["remainingTickets"] == 0
    assert_problem(raw.answer(), "invalid_json")
    assert raw.answer().json()["position"] == 1
    assert raw.answer("HEAD").status == 200
    assert_problem(raw.answer("GET"), "not_found")
    assert raw.answer().json()["reassigned"] is True


def test_a_request_may_come_byte_by_byte(service: Service, raw: Connection) -> None:
    """However TCP cuts a request, it is the same request."""
    event_id = service.open_event()
    for byte in request("POST", "/book", JSON, body=book(event_id, 1)):
        raw.send(bytes([byte]))
    assert raw.answer().status == 201


def test_a_body_in_chunks_is_one_body(service: Service, raw: Connection) -> None:
    """Chunks are put together, extensions and trailers passed over."""
    event_id = service.open_event()
    body = b'{"eventId":%d,"userId":1}' % event_id
    assert raw.ask(chunked("POST", "/book", body[:7], body[7:])).status == 201
    assert raw.ask(chunked("POST", "/book", *(bytes([b]) for b in body))).status == 200
    head = request("POST", "/book", JSON, "Transfer-Encoding: chunked", "Trailer: X-A")
    assert raw.ask(head + b"%x;a=b\r\n%b\r\n0\r\nX-A: 1\r\n\r\n" % (len(body), body)).status == 200
    assert raw.serves()


def test_100_continue_is_answered_where_the_body_is_wanted(
    service: Service, raw: Connection
) -> None:
    """A client that asks before it sends is told to go on, then answered."""
    body = book(service.open_event(), 1)
    raw.send(request("POST", "/book", JSON, "Expect: 100-continue", f"Content-Length: {len(body)}"))
    assert raw.answer().status == 100
    raw.send(body)
    assert raw.answer().status == 201
    assert raw.serves()


@pytest.mark.usefixtures("reaches_neither_store")
def test_100_continue_is_not_answered_where_the_body_is_not_wanted(raw: Connection) -> None:
    """A client that asks before it sends is refused at once."""
    answer = raw.ask(request("POST", "/book", "Expect: 100-continue", "Content-Length: 30"))
    assert_problem(answer, "unsupported_media_type")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/status/1", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/docs", 200),
        ("/docs/swagger-ui.css", 200),
        ("/openapi.json", 200),
        ("/problems/closed", 200),
        ("/events/1/users/nobody", 404),
    ],
)
def test_head_is_get_without_a_body(raw: Connection, path: str, status: int, method: str) -> None:
    """HEAD answers with GET's status and headers, its length among them."""
    answer = raw.ask(request(method, path), method)
    other = raw.ask(request("GET", path), "GET")
    assert answer.status == other.status == status
    moving = {"date"}
    assert {k: v for k, v in answer.headers.items() if k not in moving} == {
        k: v for k, v in other.headers.items() if k not in moving
    }
    assert raw.serves()


@pytest.mark.parametrize("offer", ["h2c", "websocket", "TLS/1.0"])
@pytest.mark.parametrize("header", ["Upgrade", "upgrade", "UPGRADE", "uPGRADE"])
def test_an_offered_upgrade_is_not_taken_and_harms_nothing(
    service: Service, raw: Connection, offer: str, header: str
) -> None:
    """The request is answered in HTTP/1.1, its body read, and the connection goes on."""
    body = book(service.open_event(), 1)
    offers = ("Connection: Upgrade, HTTP2-Settings", f"{header}: {offer}", "HTTP2-Settings: AAMA")
    assert raw.post("/book", body, *offers).status == 201
    assert raw.ask(request("GET", "/livez", *offers), "GET").status == 200
    assert raw.serves()


def test_http_1_0_is_answered_and_closed(service: Service, raw: Connection) -> None:
    """A client of HTTP/1.0 is served one request."""
    data = request("POST", "/book", JSON, body=book(service.open_event(), 1))
    answer = raw.ask(data.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert raw.is_closed()


def test_connection_close_is_honoured(service: Service, raw: Connection) -> None:
    """Who asks for the connection to be closed sees it closed behind the answer."""
    answer = raw.post("/book", book(service.open_event(), 1), "Connection: close")
    assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert raw.is_closed()


@pytest.mark.parametrize("host", ["evil.example", "", "[::1]:3000", "a" * 1_000])
def test_which_host_does_not_matter(service: Service, raw: Connection, host: str) -> None:
    """There must be one; nothing is decided or built by it."""
    data = request("POST", "/book", JSON, body=book(service.open_event(), 1))
    answer = raw.ask(data.replace(b"localhost", host.encode()))
    assert answer.status == 201
    assert answer.headers["location"].startswith("/events/")


@pytest.mark.parametrize("path", ["/book?eventId=7", "http://evil.example/book", "/%62ook"])
def test_the_same_address_in_other_words(service: Service, raw: Connection, path: str) -> None:
    """A query is ignored, an absolute address is its path, and what is escaped is unescaped."""
    assert raw.post(path, book(service.open_event(), 1)).status == 201


def test_a_client_that_leaves_before_the_answer_is_no_failure(service: Service) -> None:
    """A booking whose client has gone stands, and nothing is logged as a failure."""
    event_id = service.open_event()
    failures = service.failures()
    with service.connect() as connection:
        connection.send(request("POST", "/book", JSON, body=book(event_id, 1)))
        port = connection.port
        with service.connect() as other:
            assert other.serves()
    wait_until(lambda: not service.knows_connection(port), what="the API has seen it go")
    with service.connect() as connection:
        assert (
            connection.ask(request("GET", f"/status/{event_id}"), "GET").json()["remainingTickets"]
            == 0
        )
    assert service.failures() == failures


@pytest.mark.parametrize("prefer", ["", "Prefer: durability=recorded"])
def test_who_has_nothing_more_to_ask_is_answered(
    service: Service, raw: Connection, prefer: str
) -> None:
    """A client that ends its side behind its request (`nc -N`) hears what came of it.

    The answer says that the connection ends where it was not out before the end came.
    """
    event_id = service.open_event()
    headers = [JSON, *filter(None, [prefer])]
    raw.send(request("POST", "/book", *headers, body=book(event_id, 1)))
    raw.end()
    answer = raw.answer()
    assert answer.status == 201
    assert answer.headers.get("connection", "close") == "close"
    assert raw.is_closed()


def test_who_has_nothing_more_to_ask_is_answered_all(service: Service, raw: Connection) -> None:
    """Whatever was asked in one breath, of all kinds, more of it than is parsed at once."""
    event_id = service.open_event(10)
    users = range(300)
    raw.send(
        b"".join(request("POST", "/book", JSON, body=book(event_id, user)) for user in users)
        + request("GET", "/nothing")
        + request("GET", f"/status/{event_id}")
    )
    raw.end()
    assert [raw.answer().status for _ in users] == [201] * 10 + [202] * 290
    assert_problem(raw.answer("GET"), "not_found")
    assert raw.answer("GET").json()["waitingListCount"] == 290
    assert raw.is_closed()


def test_what_came_whole_is_answered_before_a_part(service: Service, raw: Connection) -> None:
    """Of a booking and half a head, the booking has its answer, and the rest is no request.

    That is said only where the end was seen before the answer went out.
    """
    raw.send(request("POST", "/book", JSON, body=book(service.open_event(), 1)) + b"GET /st")
    raw.end()
    assert raw.answer().status == 201
    with contextlib.suppress(EOFError):
        assert_problem(raw.answer(), "invalid_http")
    assert raw.is_closed()


def test_a_request_that_ends_in_the_middle_ends_the_connection(service: Service) -> None:
    """It is not carried out, and nobody waits for the rest of it."""
    event_id = service.open_event()
    whole = request("POST", "/book", JSON, body=book(event_id, 1))
    for length in (10, whole.index(b"{"), len(whole) - 1):
        with service.connect() as connection:
            connection.send(whole[:length])
            connection.end()
            assert connection.is_closed()
    with service.connect() as connection:
        path = f"/status/{event_id}"
        assert connection.ask(request("GET", path), "GET").json()["remainingTickets"] == 1


def test_a_client_that_leaves_amid_its_requests_is_no_failure(service: Service) -> None:
    """Of several on the way the one at work is told, not only the one that came last."""
    failures = service.failures()
    path = f"/status/{service.open_event()}"
    for _ in range(20):
        with service.connect() as connection:
            connection.send(request("GET", path) * 30)
            assert connection.answer("GET").status == 200
            connection.reset()
    with service.connect() as connection:
        assert connection.ask(request("GET", path), "GET").status == 200
    assert service.failures() == failures


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("noise", [b"\x00", b"noise\r\n\r\n", b"GET / HTTP/1.1\r\nX : a\r\n\r\n"])
def test_noise_behind_a_booking_does_not_take_its_answer_away(
    service: Service, raw: Connection, noise: bytes, ends: bool
) -> None:
    """What came whole is answered as what it is; then comes the 400, and the end."""
    event_id = service.open_event(2)
    bookings = [request("POST", "/book", JSON, body=book(event_id, user)) for user in (1, 2)]
    raw.send(b"".join(bookings) + noise)
    if ends:
        raw.end()
    assert [raw.answer().status, raw.answer().status] == [201, 201]
    assert_problem(raw.answer(), "invalid_http")
    assert raw.is_closed()


def test_noise_behind_an_answer_is_400(service: Service, raw: Connection) -> None:
    """Where nothing awaits an answer, noise is refused under its own status."""
    assert raw.serves()
    raw.send(b"noise\r\n\r\n")
    assert_problem(raw.answer(), "invalid_http")
    assert raw.is_closed()
