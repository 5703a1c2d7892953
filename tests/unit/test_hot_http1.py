"""What the hot path is shown, and what the application gets as if there were none."""

import pytest

from service.http1 import Http1
from tests.unit.connection import EARLY, Line, Shown

BODY = b'{"eventId":1,"userId":"a"}'
HEAD = (
    b"%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%bContent-Length: 26\r\n"
)
WHOLE = HEAD % (b"POST /book", b"") + b"\r\n" + BODY
REST = b"content-length: 2\r\n\r\nok"

OTHERS = {
    "another path": HEAD % (b"POST /status", b"") + b"\r\n" + BODY,
    "a query": HEAD % (b"POST /book?now", b"") + b"\r\n" + BODY,
    "another method": HEAD % (b"PUT /book", b"") + b"\r\n" + BODY,
    "HTTP/1.0": (HEAD % (b"POST /book", b"")).replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + BODY,
    "an upgrade": HEAD % (b"POST /book", b"Connection: Upgrade\r\nUpgrade: h2c\r\n")
    + b"\r\n"
    + BODY,
}


@pytest.fixture
async def line() -> Line:
    """A connection whose hot path takes what it is shown."""
    return Line(hot=Shown(takes=True))


@pytest.mark.parametrize("path", [b"/book", b"/cancel"])
async def test_a_whole_request_is_shown_to_it_and_to_nobody_else(line: Line, path: bytes) -> None:
    """With its address, headers and body; the answer leaves in one piece, and the next may come."""
    for number in (1, 2):
        await line.send([HEAD % (b"POST " + path, b"") + b"\r\n" + BODY])
        headers = {b"host": b"localhost", b"content-type": b"application/json"}
        assert line.hot.taken == [(path, {**headers, b"content-length": b"26"}, BODY)] * number
        line.http.answer(line.hot.exchanges[-1], 201, REST)
    assert line.statuses == [201, 201]
    assert line.asked == []
    await line.hang_up()


async def test_one_that_comes_in_pieces_is_answered_once(line: Line) -> None:
    """By the application where the cut is behind the head, which gets the same body."""
    behind_head = len(WHOLE) - len(BODY)
    for at in range(1, len(WHOLE)):
        await line.send([WHOLE[:at], WHOLE[at:]])
        if at < behind_head:
            line.http.answer(line.hot.exchanges[-1], 201, REST)
    assert line.hot.taken == [line.hot.taken[0]] * (behind_head - 1)
    assert [asked.body for asked in line.asked] == [BODY] * len(BODY)
    assert line.statuses == [201] * (behind_head - 1) + [200] * len(BODY)
    await line.hang_up()


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
async def test_what_is_not_for_it_is_not_shown(line: Line, other: bytes) -> None:
    """The application alone has routes, methods and versions."""
    await line.send([other])
    assert line.hot.taken == []
    assert [asked.body for asked in line.asked] == [BODY]
    await line.hang_up()


async def test_what_it_declines_the_application_gets_whole() -> None:
    """As if it had not been shown."""
    line = Line(hot=Shown(takes=False))
    await line.send([WHOLE, WHOLE])
    (first, second) = line.asked
    assert (first.path, first.method, first.body) == ("/book", "POST", BODY)
    assert first == second
    await line.hang_up()


async def test_answers_come_in_the_order_of_requests(line: Line) -> None:
    """What is sent ahead waits for its turn, on either path."""
    await line.send([WHOLE + WHOLE])
    assert len(line.hot.taken) == 1
    assert line.asked == []
    line.http.answer(line.hot.exchanges[0], 201, REST)
    await line.send([])
    assert line.statuses[:2] == [201, 200]
    await line.send([WHOLE])
    line.http.answer(line.hot.exchanges[-1], 202, REST)
    assert line.statuses[-1] == 202
    assert len(line.statuses) == 3
    await line.hang_up()


async def test_noise_behind_a_request_is_answered_behind_it(line: Line) -> None:
    """And takes nothing away from it."""
    await line.send([WHOLE + b"\0\r\n\r\n"])
    assert line.written == b""
    line.http.answer(line.hot.exchanges[0], 201, REST)
    assert line.statuses == [201, 400]
    assert line.refused == ["invalid_http"]
    assert line.wire.closing


async def test_noise_within_a_request_is_the_applications(line: Line) -> None:
    """It has begun, hears that the client is gone, and nothing is asked of an engine."""
    await line.send([b"POST /book HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"])
    assert line.hot.taken == []
    assert line.statuses == [400]


async def test_who_asks_for_the_end_gets_it(line: Line) -> None:
    """`Connection: close` of the client, and a service that goes down meanwhile."""
    await line.send([HEAD % (b"POST /book", b"Connection: close\r\n") + b"\r\n" + BODY])
    exchange = line.hot.exchanges[0]
    assert not exchange.keep_alive
    line.http.answer(exchange, 201, REST)
    assert line.wire.closing

    other = Line(hot=Shown(takes=True))
    await other.send([WHOLE])
    other.http.shutdown()
    assert not other.wire.closing
    other.http.answer(other.hot.exchanges[0], 201, REST)
    assert other.statuses == [201]
    assert other.wire.closing


async def test_who_has_left_is_not_answered(line: Line) -> None:
    """What was asked goes on without him."""
    await line.send([WHOLE])
    await line.hang_up()
    await line.send([])
    assert line.hot.exchanges[0].disconnected


async def test_who_does_not_read_is_the_applications(line: Line) -> None:
    """It waits until its client takes what was answered; the hot path could not."""
    line.http.pause_writing()
    await line.send([WHOLE])
    assert line.hot.taken == []
    line.http.resume_writing()
    await line.send([])
    assert line.statuses == [200]
    await line.hang_up()


async def test_a_request_behind_an_early_answer_is_shown(line: Line) -> None:
    """The connection is free again."""
    await line.send([WHOLE.replace(b"/book", EARLY.encode())])
    await line.send([WHOLE])
    assert len(line.hot.taken) == 1
    line.http.answer(line.hot.exchanges[0], 201, REST)
    assert line.statuses == [200, 201]
    await line.hang_up()


async def test_nobody_is_hurried_while_the_service_works(line: Line) -> None:
    """The read time-out is for what the client owes."""
    await line.send([WHOLE])
    assert line.http._patience.until == float("inf")
    line.http.answer(line.hot.exchanges[0], 201, REST)
    assert line.http._patience.until < float("inf")
    assert isinstance(line.http, Http1)
    await line.hang_up()
