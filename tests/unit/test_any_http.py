"""Whatever bytes come over a connection: requests, or a refusal of the list; nothing else.

`ONSALE_TEST_EXAMPLES` says how many byte strings the parser is given, 5,000 unless set; the fault
suite gives it 50,000. `ONSALE_TEST_SEED` begins elsewhere than at 0. Each byte string has a seed of
its own, which a failure names.
"""

import asyncio
import logging
import os
import random
import re

import pytest

from service.errors import PROBLEMS
from service.heads import FIELDS_MAX, HEADER_BYTES_MAX, URL_BYTES_MAX
from service.http1 import PIECE_BYTES
from tests.unit.connection import Asked, Line

EXAMPLES = int(os.environ.get("ONSALE_TEST_EXAMPLES") or 5_000)
FIRST = int(os.environ.get("ONSALE_TEST_SEED") or 0)
REFUSALS = {"invalid_http", "uri_too_long", "head_too_large"}

BODY = b'{"eventId":1,"userId":1}'
HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
POST = b"POST /book HTTP/1.1\r\n" + HOST + JSON
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SOUND = (
    POST + b"Content-Length: 24\r\n\r\n" + BODY,
    CHUNKED + b"5\r\n" + BODY[:5] + b"\r\n13\r\n" + BODY[5:] + b"\r\n0\r\n\r\n",
    CHUNKED + b"18;a=b\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n",
    POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 24\r\n\r\n" + BODY,
    POST + b"Expect: 100-continue\r\nContent-Length: 24\r\n\r\n" + BODY,
    b"GET /status/1?a=b HTTP/1.1\r\n" + HOST + b"Accept: */*\r\nUser-Agent: x\r\n\r\n",
    b"HEAD /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    b"GET /livez HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
)
WORDS = (
    b"\r\n", b"\r", b"\n", b"\r\n\r\n", b":", b" ", b"\t", b"\x00", b"\xff", b"0\r\n\r\n",
    b"-1", b"+", b"1e23", b"Content-Length: 24\r\n", b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Host: evil\r\n",
    b"Upgrade: websocket\r\n", b"Connection: ", b"upgrade, close", b"keep-alive", b" HTTP/1.1",
    b"HTTP/2.0", b"HTTP/0.9", b"CONNECT ", b"PRI * ", b"http://a/b", b"/%00", b"%", b"#", b"?",
    b"//", b"f" * 17, b"9" * 24, b"a" * 3_000, b"X: y\r\n" * 70, b"X: " + b"y" * 20_000 + b"\r\n",
)  # fmt: skip

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


def bytes_of(chance: random.Random) -> bytes:
    """Return noise, or requests of which some bytes are not as they were."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(200))
    data = bytearray(b"".join(chance.choices(SOUND, k=chance.randint(1, 4))))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        cut = chance.choice((0, 0, 1, 2, 8))
        word = chance.choice(WORDS) if chance.random() < 0.7 else chance.randbytes(1)
        data[at : at + cut] = word
    return bytes(data)


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """Return the bytes in segments."""
    if chance.random() < 0.2 and len(data) < 500:
        return [data[at : at + 1] for at in range(len(data))]
    ends = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


def is_sound(asked: Asked) -> bool:
    """Whether this is a request that leaves nothing to guess, as another reader would see it."""
    names = [name for name, _ in asked.headers]
    values = dict(asked.headers)
    length = values[b"content-length"].strip(b" \t") if b"content-length" in values else None
    chunked = b"transfer-encoding" in values
    return (
        asked.version in ("1.0", "1.1")
        and asked.method != "CONNECT"
        and names.count(b"host") == 1 - (asked.version == "1.0" and b"host" not in names)
        and all(map(_NAME.fullmatch, names))
        and all(map(_VALUE.fullmatch, values.values()))
        and len(names) <= FIELDS_MAX
        and sum(len(n) + len(v) + 4 for n, v in asked.headers) <= HEADER_BYTES_MAX
        and len(asked.path) <= URL_BYTES_MAX
        and names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        and (length is None or (length.isdigit() and int(length) == len(asked.body)))
        and (not chunked or values[b"transfer-encoding"].strip().lower() == b"chunked")
        and (length is not None or chunked or not asked.body)
    )


async def given(data: list[bytes]) -> Line:
    """Send segments over a connection of their own, look at its state, and leave."""
    line = Line()
    await line.send(data)
    http = line.http
    assert line.queued_max <= PIECE_BYTES // 16
    assert not http.pipeline
    if http.parser is not None:
        assert len(http.headers or ()) <= HEADER_BYTES_MAX // 3
    await line.hang_up()
    return line


async def test_any_bytes_are_requests_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    """What is carried out is sound; the rest is one refusal, the last answer; nothing is raised.

    Cut into other segments, the same bytes are the same requests, and refused where these are.
    """
    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: raised.append(what))
    seen: set[str] = set()
    for seed in range(FIRST, FIRST + EXAMPLES):
        chance = random.Random(seed)
        data = bytes_of(chance)
        line = await given(cut(chance, data))
        codes = [PROBLEMS[code].status for code in line.refused]
        assert set(line.refused) <= REFUSALS, seed
        assert all(map(is_sound, line.asked)), seed
        assert line.statuses == [200] * len(line.asked) + codes, seed
        assert len(codes) <= 1, seed
        whole = await given([data])
        assert whole.asked == line.asked, seed
        assert len(whole.refused) == len(line.refused), seed  # with two faults, either of them
        seen.update(line.refused, ["carried out"] * bool(line.asked))
    assert raised == []
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert seen == {"carried out", *REFUSALS}
