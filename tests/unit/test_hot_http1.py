"""What the hot path is shown, and what the application gets as if there were none."""

import asyncio

import pytest

from service.admission import CANCEL
from service.bodies import RETRY_AFTER_S, problem_answer
from service.errors import Problem
from service.heads import header_lines
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
    """What is sent ahead waits for its turn, and is for the hot path then."""
    await line.send([WHOLE + WHOLE])
    assert len(line.hot.taken) == 1
    line.http.answer(line.hot.exchanges[0], 201, REST)
    assert len(line.hot.taken) == 2
    line.http.answer(line.hot.exchanges[1], 200, REST)
    assert line.asked == []
    assert line.statuses == [201, 200]
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


@pytest.fixture
def crowded(line: Line, monkeypatch: pytest.MonkeyPatch) -> Line:
    """The same, while bookings and reads are refused; the hot path itself lets all in."""
    monkeypatch.setattr(line.hot.admission, "sheds", True)
    monkeypatch.setattr(line.hot.admission, "refuses", lambda kind: kind != CANCEL)
    return line


GET = b"GET /status/7 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def learn(line: Line, request: bytes = WHOLE) -> None:
    """Have its header fields read once."""
    taken = len(line.hot.taken)
    await line.send([request])
    assert len(line.hot.taken) == taken + 1
    line.http.answer(line.hot.exchanges[-1], 503, REST)


async def test_who_is_refused_is_not_read_twice(crowded: Line) -> None:
    """The second time its bytes are enough; its answer is the handlers', and the next may come."""
    await learn(crowded)
    for _ in RETRY_AFTER_S:
        await crowded.send([WHOLE])
    assert crowded.statuses == [503] * 4
    assert len(crowded.hot.taken) == 1
    answered = [behind_date(head, body) for head, body in crowded.answers()[1:]]
    assert sorted(answered) == sorted(
        behind_date(b"HTTP/1.1 503 \r\n" + header_lines(told.raw_headers)[:-2], bytes(told.body))
        for told in (problem_answer(Problem("overloaded"), retry_after_s=s) for s in RETRY_AFTER_S)
    )
    await crowded.hang_up()


def behind_date(head: bytes, body: bytes) -> tuple[list[bytes], bytes]:
    """Return the header fields of an answer in their order, and its body."""
    lines = head.split(b"\r\n")[1:]
    return [line for line in lines if not line.startswith(b"date: ")], body


async def test_other_lines_over_the_same_fields_are_known(crowded: Line) -> None:
    """Another body, another user, a read: it is the fields that were read. Not a cancellation."""
    await learn(crowded)
    await crowded.send([WHOLE.replace(b'"a"', b'"b"')])
    assert crowded.statuses == [503, 503]
    await crowded.send([WHOLE.replace(b"/book", b"/cancel")])
    assert crowded.hot.taken[-1][0] == b"/cancel"
    crowded.http.answer(crowded.hot.exchanges[-1], 200, REST)
    await learn(crowded, GET + b"\r\n")
    for path in (b"/status/1", b"/events/1/users/a"):
        await crowded.send([(GET + b"\r\n").replace(b"/status/7", path)])
    assert crowded.statuses == [503, 503, 200, 503, 503, 503]
    assert crowded.asked == []
    crowded.hot.metrics.flush()
    counted = crowded.hot.metrics.problems.labels("overloaded")
    assert counted._value.get() == 3
    await crowded.hang_up()


UNLIKE = {
    "the first half": [WHOLE[:-5], WHOLE[-5:]],
    "two at once": [WHOLE + WHOLE],
    "one and a half": [WHOLE + WHOLE[:20], WHOLE[20:]],
    "other fields": [WHOLE.replace(b"localhost", b"127.0.0.1")],
    "the end of it": [WHOLE.replace(b"Host:", b"Connection: close\r\nHost:")],
    "another version": [WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")],
    "another path": [WHOLE.replace(b"/book", b"/readyz")],
    "an escaped path": [WHOLE.replace(b"/book", b"/%62ook")],
}


@pytest.mark.parametrize("segments", UNLIKE.values(), ids=UNLIKE)
async def test_what_is_not_known_to_the_byte_is_read(crowded: Line, segments: list[bytes]) -> None:
    """And goes the way that it would have gone: the hot path's, or the application's."""
    await learn(crowded)
    await crowded.send(segments)
    read = len(crowded.hot.taken) - 1 + len(crowded.asked)
    assert read == 1
    while len(crowded.statuses) < 1 + len(b"".join(segments)) // len(WHOLE):
        if not crowded.hot.exchanges[-1].response_complete:
            crowded.http.answer(crowded.hot.exchanges[-1], 201, REST)
        await crowded.send([])
    assert 503 not in crowded.statuses[1:]
    await crowded.hang_up()


LAST = {
    "asks for the end": b"Connection: close\r\n",
    "waits to be told to go on": b"Expect: 100-continue\r\n",
}


@pytest.mark.parametrize("field", LAST.values(), ids=LAST)
async def test_fields_that_change_the_connection_are_read_each_time(
    crowded: Line, field: bytes
) -> None:
    """They are never taken as known."""
    request = HEAD % (b"POST /book", field) + b"\r\n" + BODY
    for number in (1, 2):
        line = crowded if number == 1 else Line(hot=crowded.hot)
        await line.send([request])
        assert len(line.hot.taken) == number
        line.http.answer(line.hot.exchanges[-1], 503, REST)
        await line.hang_up()


async def test_who_is_owed_an_answer_gets_that_first(crowded: Line) -> None:
    """A request sent ahead is refused in its turn, if at all."""
    await learn(crowded)
    await crowded.send([WHOLE.replace(b"/book", b"/cancel")])
    await crowded.send([WHOLE])
    assert crowded.statuses == [503]
    crowded.http.answer(crowded.hot.exchanges[0], 200, REST)
    crowded.http.answer(crowded.hot.exchanges[1], 200, REST)
    assert crowded.statuses == [503, 200, 200]
    await crowded.hang_up()


async def test_who_was_refused_has_its_time_for_the_next(crowded: Line) -> None:
    """The connection is kept as behind any answer."""
    await learn(crowded)
    crowded.http._patience.until = 0.0
    await crowded.send([WHOLE])
    assert crowded.http._patience.until > asyncio.get_running_loop().time() + 1
    await crowded.hang_up()
