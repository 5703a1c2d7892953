"""A connection, in whatever segments its bytes come: bounds, order, offers, and what waits."""

import asyncio

import pytest

from service.heads import FIELDS_MAX, HEAD_BYTES_MAX, HEADER_BYTES_MAX, URL_BYTES_MAX
from service.http1 import BLIND_BYTES
from tests.unit.connection import EARLY, Line

HOST = b"Host: localhost\r\n"
POST = b"POST /book HTTP/1.1\r\n" + HOST
GET = b"GET /%d HTTP/1.1\r\n" + HOST + b"\r\n"
SEGMENTS = (1, 7, 1_000, 1 << 20)
OFFERS = {
    "with a length": POST + b"Content-Length: 5\r\n%b\r\nabcde",
    "in chunks": POST + b"Transfer-Encoding: chunked\r\n%b\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n",
}
OFFERED = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n",
    b"uPGRADE: websocket\r\nconnection: keep-alive, upgrade\r\n",
)

in_segments = pytest.mark.parametrize("size", SEGMENTS)


def cut(data: bytes, size: int) -> list[bytes]:
    """Return the bytes in segments of this size."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def with_fields(header_bytes: int, fields: int, request_line: bytes = b"GET / HTTP/1.1") -> bytes:
    """Return a request with so many fields, which take so many bytes."""
    short = HOST + b"".join(b"X-%03d: 1\r\n" % n for n in range(fields - 2))
    value = b"y" * (header_bytes - len(short) - len(b"X: \r\n"))
    return b"%b\r\n%bX: %b\r\n\r\n" % (request_line, short, value)


def with_url(size: int) -> bytes:
    """Return a request whose address has this size."""
    return b"GET /%b HTTP/1.1\r\n%b\r\n" % (b"a" * (size - 1), HOST)


LARGEST = {
    "fields of 16 KiB": with_fields(HEADER_BYTES_MAX, 3),
    "64 fields": with_fields(2_000, FIELDS_MAX),
    "both": with_fields(HEADER_BYTES_MAX, FIELDS_MAX),
    "an address of 2 KiB": with_url(URL_BYTES_MAX),
    "all three": with_fields(
        HEADER_BYTES_MAX, FIELDS_MAX, with_url(URL_BYTES_MAX).split(b"\r\n")[0]
    ),
}
TOO_LARGE = {
    "a byte more than 16 KiB": (with_fields(HEADER_BYTES_MAX + 1, 3), "head_too_large"),
    "many small fields": (with_fields(HEADER_BYTES_MAX + 1, FIELDS_MAX), "head_too_large"),
    "65 fields": (with_fields(2_000, FIELDS_MAX + 1), "head_too_large"),
    "a byte more than 2 KiB of address": (with_url(URL_BYTES_MAX + 1), "uri_too_long"),
    "a long query": (b"GET /?" + b"a" * URL_BYTES_MAX + b" HTTP/1.1\r\n\r\n", "uri_too_long"),
}
ENDLESS = {
    "a value": (POST + b"X: ", b"a", "head_too_large"),
    "a name": (POST, b"a", "head_too_large"),
    "blanks": (POST + b"X:", b" ", "head_too_large"),
    "fields": (POST, b"a:b\r\n", "head_too_large"),
    "an address": (b"GET /", b"a", "uri_too_long"),
    "a trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a", "head_too_large"),
    "trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a:b\r\n", "head_too_large"),
    "a chunk's extension": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n5;",
        b"a",
        "head_too_large",
    ),
    "line ends": (b"", b"\r\n", "head_too_large"),
}


@in_segments
@pytest.mark.parametrize("data", LARGEST.values(), ids=LARGEST)
async def test_the_largest_head_is_taken(data: bytes, size: int) -> None:
    """What is within each bound is a request, alone and behind others, in whatever segments."""
    for requests in (1, 5):
        line = Line()
        await line.send(cut(data * requests, size))
        assert line.statuses == [200] * requests
        await line.hang_up()


@in_segments
@pytest.mark.parametrize(("data", "code"), TOO_LARGE.values(), ids=TOO_LARGE)
async def test_a_larger_head_is_refused_in_its_place(data: bytes, code: str, size: int) -> None:
    """Behind three sound requests their answers come first; nothing behind it is read."""
    for before in (0, 3):
        line = Line()
        await line.send(cut(GET % 1 * before + data + GET % 2 * 3, size))
        assert (len(line.asked), line.refused) == (before, [code])
        assert line.statuses == [200] * before + [431 if code == "head_too_large" else 414]
        assert line.wire.is_closing()


@pytest.mark.parametrize("size", [1, 100, 250_000])
@pytest.mark.parametrize(("begin", "more", "code"), ENDLESS.values(), ids=ENDLESS)
async def test_what_never_ends_is_refused_soon(
    begin: bytes, more: bytes, code: str, size: int
) -> None:
    """Not more than a head's bound and two segments of it are read, whatever goes on there."""
    line, sent = Line(), 0
    segment = more * (size // len(more) or 1)
    await line.send([begin])
    while not line.wire.is_closing():
        await line.send([segment])
        sent += len(segment)
        assert sent <= HEAD_BYTES_MAX + 2 * len(segment)
    assert (line.asked, line.refused) == ([], [code])


async def test_trailers_are_no_headers() -> None:
    """What stands behind the body was not there when the head was judged, and is passed over."""
    line = Line()
    data = POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nIdempotency-Key: x\r\n\r\n"
    await line.send([data, data])
    assert [(dict(a.headers).get(b"idempotency-key"), a.body) for a in line.asked] == [
        (None, b"a")
    ] * 2
    await line.hang_up()


@pytest.mark.parametrize("offered", OFFERED)
@pytest.mark.parametrize("request_", OFFERS.values(), ids=OFFERS)
async def test_an_offer_may_be_cut_anywhere(request_: bytes, offered: bytes) -> None:
    """An offered upgrade, its body and what follows are read, wherever the segments end."""
    data = request_ % offered
    for at in range(1, len(data)):
        line = Line()
        await line.send([data[:at], data[at:] + data + GET % 7])
        assert [a.body for a in line.asked] == [b"abcde", b"abcde", b""], at
        assert line.statuses == [200] * 3, at
        await line.hang_up()


@in_segments
async def test_offers_follow_each_other(size: int) -> None:
    """A thousand requests that each offer an upgrade are a thousand requests, in order."""
    line = Line()
    numbers = [b"%04d" % n for n in range(1_000)]
    head = POST + OFFERED[0] + b"Content-Length: 4\r\n\r\n"
    await line.send(cut(b"".join(head + n for n in numbers), size))
    assert [a.body for a in line.asked] == numbers
    await line.hang_up()


@pytest.mark.parametrize(
    "body",
    [b"\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", b"Upgrade: h2c\r\n" * 2_000],
    ids=["short", "long"],
)
@in_segments
async def test_a_body_is_what_was_sent(body: bytes, size: int) -> None:
    """Words of HTTP in a body are bytes like others."""
    line = Line()
    await line.send(cut(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body, size))
    assert [a.body for a in line.asked] == [body]
    await line.hang_up()


async def test_requests_sent_ahead_wait_as_bytes() -> None:
    """Of 10,000 requests in one segment one is parsed at a time; all are answered."""
    line = Line()
    await line.send([b"".join(GET % n for n in range(10_000))])
    assert line.queued_max == 0
    assert [a.path for a in line.asked] == [f"/{n}" for n in range(10_000)]
    assert line.statuses == [200] * 10_000
    await line.hang_up()


@pytest.mark.parametrize("size", [1, 2, 3, 97, 1 << 20])
async def test_requests_of_all_framings_are_read_one_by_one(size: int) -> None:
    """With a length, in chunks, without a body, behind blank lines: each is read in its turn.

    Where the end of a body is not known beforehand, few requests are read with it.
    """
    line = Line()
    body = b'{"a": "\r\n\r\n"}'
    length, chunks = (
        b"Content-Length: %d\r\n\r\n" % len(body),
        b"Transfer-Encoding: chunked\r\n\r\n",
    )
    each = [POST + length + body, POST + chunks + b"d\r\n" + body + b"\r\n0\r\n\r\n", GET % 0]
    assert len(body) == 0xD
    await line.send(cut(b"".join(each) * 50 + b"\r\n\r\n" + GET % 1, size))
    assert [a.body for a in line.asked] == [body, body, b""] * 50 + [b""]
    assert line.queued_max <= BLIND_BYTES // len(GET)
    assert line.statuses == [200] * 151
    await line.hang_up()


async def test_nothing_is_read_while_requests_wait() -> None:
    """An answer given does not let in more than it makes room for."""
    line = Line()
    line.http.data_received(b"".join(GET % n for n in range(1_000)))
    assert not line.wire.reading
    line.http.flow.resume_reading()  # as a handler that reads its body has it
    assert not line.wire.reading
    await line.send([])
    assert line.wire.reading
    assert len(line.asked) == 1_000
    await line.hang_up()


async def test_what_ends_the_connection_ends_what_is_read() -> None:
    """A request behind one that has the connection closed is not carried out."""
    line = Line()
    last = b"GET /last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    await line.send([GET % 1 + last + GET % 2, GET % 3])
    assert [a.path for a in line.asked] == ["/1", "/last"]
    assert line.statuses == [200, 200]
    assert line.wire.is_closing()


async def test_who_was_answered_early_may_not_stay_for_ever() -> None:
    """A body that comes behind its answer is followed by another request, or by the end."""
    line = Line(read_s=0.05)
    line.http.timeout_keep_alive = 0
    await line.send(
        [b"POST %b HTTP/1.1\r\n" % EARLY.encode() + HOST + b"Content-Length: 5\r\n\r\n"]
    )
    assert line.statuses == [200]
    await line.send([b"abcde" + GET % 1])
    assert line.statuses == [200, 200]
    await line.hang_up()
    line = Line(read_s=0.05)
    line.http.timeout_keep_alive = 0
    await line.send(
        [b"POST %b HTTP/1.1\r\n" % EARLY.encode() + HOST + b"Content-Length: 5\r\n\r\n"]
    )
    await line.send([b"abcde"])
    async with asyncio.timeout(5):
        while not line.wire.closing:
            await asyncio.sleep(0.01)
    assert line.refused == []


async def test_a_broken_body_does_not_take_earlier_answers_away() -> None:
    """What came whole before it is answered first; it is not carried out itself."""
    line = Line()
    broken = POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\nzz\r\n"
    await line.send([GET % 1 + GET % 2 + broken + GET % 3])
    assert [a.path for a in line.asked] == ["/1", "/2"]
    assert line.statuses == [200, 200, 400]
    assert line.wire.is_closing()


@pytest.mark.parametrize(
    ("data", "body"), [(b"HEAD / HTTP/1.1\r\n\r\n", False), (b"GET / HTTP/1.1\r\n\r\n", True)]
)
async def test_the_refusal_of_a_head_has_no_body(data: bytes, body: bool) -> None:
    """HEAD is refused in the headers alone, as it is answered."""
    line = Line()
    await line.send([data])
    ((_, told),) = line.answers()
    assert bool(told) == body
    assert line.refused == ["invalid_http"]
