"""The hot path and the handlers answer alike, on the running service, whatever a request comes to.

A media type with a parameter is the handlers'; without one it is the hot path's.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from service.keys import event_keys
from service.metrics import Metrics
from service.tallies import observe_many
from tests.http.conftest import Service
from tests.http.raw import Answer, Connection, request
from tests.servers import wait_until

HOT = "Content-Type: application/json"
HANDLERS = "Content-Type: application/json; charset=utf-8"
RECORDED = "Prefer: durability=recorded"

Steps = list[tuple[str, str, tuple[str, ...]]]

SALE: Steps = [
    ("/book", "a", ()),
    ("/book", "a", ()),
    ("/book", "b|~@:+=-._", ()),
    ("/book", "c", ()),
    ("/book", "c", ()),
    ("/cancel", "c", ()),
    ("/cancel", "c", ()),
    ("/cancel", "nobody", ()),
    ("/cancel", "a", ()),
    ("/cancel", "b|~@:+=-._", ()),
    ("/book", "d", (RECORDED,)),
    ("/book", "e", (RECORDED,)),
    ("/cancel", "e", (RECORDED,)),
    ("/book", "e", ("Connection: close",)),
]
"""One ticket: booked, again, waiting, again, left, gone, unknown, reassigned, given back."""

_PASSING = re.compile(r'"seq":\d+|"eventId":\d+|/events/\d+/')


def told(answer: Answer) -> tuple[int, list[tuple[str, str]], str]:
    """Return what an answer says, apart from where and when."""
    headers = [
        (name, _PASSING.sub("", value))
        for name, value in answer.headers.items()
        if name not in ("content-length", "date", "retry-after")
    ]
    return answer.status, headers, _PASSING.sub("", answer.body.decode())


def held(service: Service, media_type: str) -> list[tuple[int, list[tuple[str, str]], str]]:
    """Hold the sale at an event of its own; return what was told."""
    event_id = service.open_event(1)
    found = []
    line = service.connect()
    for path, user, headers in SALE:
        body = b'{"eventId":%d,"userId":"%b"}' % (event_id, user.encode())
        found.append(told(line.ask(request("POST", path, media_type, *headers, body=body))))
        if "Connection: close" in headers:
            assert line.is_closed()
            line.close()
            line = service.connect()
    line.close()
    return found


def test_a_sale_is_answered_alike(service: Service) -> None:
    """Status, headers in their order and words, step by step."""
    hot = held(service, HOT)
    assert hot == held(service, HANDLERS)
    assert [status for status, _, _ in hot] == [
        *(201, 200, 202, 202, 202, 200, 404, 404, 200, 200, 201, 202, 200, 202)
    ]


POLLS = ("/events/%d/users/a", "/events/%d/users/b~@:+=-._", "/events/%d/users/c", "/status/%d")
"""Has a ticket, waits, is not known; and the event."""


def test_polls_are_answered_alike(service: Service) -> None:
    """Status, headers and words; the ETag changes with the event, and 304 is told to who knows it.

    A method with a body is the handlers'.
    """
    event_id = service.open_event(1)
    with service.connect() as line:
        for user in ("a", "b~@:+=-._"):
            line.post("/book", b'{"eventId":%d,"userId":"%b"}' % (event_id, user.encode()))
        for path in (*(poll % event_id for poll in POLLS), "/status/99999", "/status/0"):
            hot = line.ask(request("GET", path), "GET")
            assert told(hot) == told(line.ask(request("GET", path, body=b""), "GET"))
        tag = line.ask(request("GET", f"/status/{event_id}"), "GET").headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*", '"other"', tag[1:-1]):
            asked = f"If-None-Match: {known}"
            line.send(request("GET", f"/status/{event_id}", asked))
            hot = line.answer("HEAD")
            if hot.status == 200:
                assert known in ('"other"', tag[1:-1])
                line.skip(int(hot.headers["content-length"]))
            else:
                assert (hot.status, hot.headers["etag"]) == (304, tag)
            line.send(request("GET", f"/status/{event_id}", asked, body=b""))
            handled = line.answer("HEAD")
            assert told(handled)[:2] == told(hot)[:2]
            line.skip(int(handled.headers.get("content-length", 0)))
        line.post("/cancel", b'{"eventId":%d,"userId":"a"}' % event_id)
        line.send(request("GET", f"/status/{event_id}", f"If-None-Match: {tag}"))
        changed = line.answer("GET")
        assert changed.status == 200
        assert changed.headers["etag"] != tag
        assert changed.json()["waitingListCount"] == 0


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"eventId":9007199254740991,"userId":1}', b'{"eventId":0,"userId":1}', b"{", b""),
        *(b'{"eventId":1,"userId":"' + b"a" * 5_000 + b'"}', b'{"eventId":1,"userId":1,"x":1}'),
    ],
)
@pytest.mark.parametrize("path", ["/book", "/cancel"])
def test_what_is_refused_is_refused_alike(service: Service, path: str, body: bytes) -> None:
    """An event that is not there, and bodies that are none."""
    found = []
    for media_type in (HOT, HANDLERS):
        with service.connect() as line:
            found.append(told(line.ask(request("POST", path, media_type, body=body))))
    assert found[0] == found[1]
    assert found[0][0] >= 400


def test_what_is_answered_is_noted(service: Service) -> None:
    """H hears of a booking that took the hot path, within a second or so."""
    event_id = service.open_event(1)
    with service.connect() as line:
        body = b'{"eventId":%d,"userId":1}' % event_id
        seq = line.post("/book", body).json()["seq"]
    directory = Path(service.api.environment["ONSALE_DATA_DIR"])

    def is_noted() -> bool:
        found = [json.loads(path.read_text()) for path in directory.rglob("answered/*.json")]
        return any(at >= seq for held in found for _, at in held["answered"].get("0", ()))

    wait_until(is_noted, what="the booking is noted")


def test_an_event_that_redis_misses_is_loaded(service: Service) -> None:
    """By whoever asks first, and answered as if it had been there."""
    event_id = service.open_event(1)
    with service.connect() as line:
        ask = b'{"eventId":%d,"userId":%d}'
        assert line.post("/book", ask % (event_id, 1)).status == 201
        service.stores.reached()
        with redis.Redis.from_url(service.servers.redis_url) as client:
            client.delete(*event_keys(0, event_id))
        assert line.post("/book", ask % (event_id, 1)).status == 200
        assert line.post("/book", ask % (event_id, 2)).json()["position"] == 1


def scraped(line: Connection, path: str) -> dict[str, float]:
    """Return how many requests of a path were answered, by status."""
    text = line.ask(request("GET", "/metrics"), "GET").body.decode()
    counted = rf'onsale_request_duration_seconds_count{{route="{path}",status="(\d+)"}} (\S+)'
    return {status: float(count) for status, count in re.findall(counted, text)}


def test_each_is_counted_once(service: Service) -> None:
    """On either path, in the same numbers, at once."""
    event_id = service.open_event(1)
    with service.connect() as line:
        before = scraped(line, "/book")
        for user, media_type in ((1, HOT), (1, HOT), (2, HANDLERS), (3, HOT)):
            body = b'{"eventId":%d,"userId":%d}' % (event_id, user)
            line.ask(request("POST", "/book", media_type, body=body))
        after = scraped(line, "/book")
    more = {status: after[status] - before.get(status, 0) for status in ("200", "201", "202")}
    assert more == {"200": 1, "201": 1, "202": 2}


@pytest.mark.parametrize("observe", [True, False])
def test_many_numbers_are_the_sum_of_each(observe: bool) -> None:
    """What is handed on together comes to what each alone would."""
    metrics = Metrics()
    child = metrics.calls.labels("book")
    many: Callable[[], None] = lambda: observe_many(child, [2, 0, 1, *[0] * 10], 0.0014)  # noqa: E731  # as each below
    if observe:
        for seconds in (0.0002, 0.0002, 0.001):
            child.observe(seconds)
    else:
        many()
    samples = {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in metrics.registry().collect()
        for sample in family.samples
        if sample.name.startswith("onsale_call_duration_seconds") and "created" not in sample.name
    }
    assert samples["onsale_call_duration_seconds_count", ""] == 3
    assert samples["onsale_call_duration_seconds_bucket", "0.0002"] == 2
    assert samples["onsale_call_duration_seconds_bucket", "0.0005"] == 2
    assert samples["onsale_call_duration_seconds_bucket", "0.001"] == 3
    assert samples["onsale_call_duration_seconds_sum", ""] == pytest.approx(0.0014)


WHOLE = b'{"eventId":%d,"userId":"x"}'
ODD: dict[str, tuple[tuple[str, ...], bytes]] = {
    "two media types": ((HOT,), WHOLE),
    "another media type first": (("Content-Type: text/plain",), WHOLE),
    "gzip": (("Content-Encoding: gzip",), WHOLE),
    "identity": (("Content-Encoding: identity",), WHOLE),
    "two codings": (("Content-Encoding: identity", "Content-Encoding: br"), WHOLE),
    "two preferences": ((RECORDED, RECORDED), WHOLE),
    "two keys": (("Idempotency-Key: a", "Idempotency-Key: b"), WHOLE),
    "a field twice": ((), b'{"eventId":%d,"userId":"x","userId":"y"}'),
    "an id twice": ((), b'{"eventId":99,"eventId":%d,"userId":"x"}'),
    "a field twice, once escaped": ((), b'{"eventId":%d,"userId":"x","\\u0075serId":"y"}'),
    "a colon hidden": ((), b'{"eventId":%d,"userId":"x","userId":"y\\u003a"}'),
    "a colon": ((), b'{"eventId":%d,"userId":"x:y"}'),
    "an escape": ((), b'{"eventId":%d,"userId":"\\u0078"}'),
    "a dot": ((), b'{"eventId":%d,"userId":"."}'),
    "two dots": ((), b'{"eventId":%d,"userId":".."}'),
    "three dots": ((), b'{"eventId":%d,"userId":"..."}'),
    "white space": ((), b' { "eventId" : %d , "userId" : "x" } '),
    "behind it": ((), WHOLE + b"x"),
    "a mark of order": ((), b"\xef\xbb\xbf" + WHOLE),
    "a float": ((), b'{"eventId":%d,"userId":1.0}'),
    "minus zero": ((), b'{"eventId":%d,"userId":-0}'),
    "a power": ((), b'{"eventId":%d,"userId":1e0}'),
    "a large number": ((), b'{"eventId":%d,"userId":9007199254740992}'),
    "a quantity": ((), b'{"eventId":%d,"userId":"x","quantity":1}'),
}
"""More headers, and a body: what is unusual about it, or wrong with it."""


@pytest.mark.parametrize("path", ["/book", "/cancel"])
@pytest.mark.parametrize("name", ODD)
def test_segments_change_no_answer(service: Service, name: str, path: str) -> None:
    """In one segment a request is shown to the hot path, in two it is the handlers'.

    So is one of HTTP/1.0, which is kept alive where it asks for that.
    """
    headers, body = ODD[name]
    found = []
    for way in ("whole", "in two", "HTTP/1.0"):
        event_id = service.open_event(2)
        asked = request("POST", path, *headers, HOT, body=body % event_id)
        with service.connect() as line:
            if way == "HTTP/1.0":
                asked = asked.replace(b"HTTP/1.1", b"HTTP/1.0\r\nConnection: keep-alive", 1)
            if way == "in two":
                line.send(asked[:-3])
                line.has_something(0.02)  # a refusal may come before the rest
                asked = asked[-3:]
            status, lines, text = told(line.ask(asked))
            lines = [line for line in lines if line != ("connection", "keep-alive")]
            found.append((status, lines, text))
            assert line.serves()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("name", ["a field twice", "two media types", "gzip", "two dots"])
def test_what_two_readers_take_differently_is_refused(service: Service, name: str) -> None:
    """Nothing is booked, and the answer names what is wrong."""
    headers, body = ODD[name]
    event_id = service.open_event(1)
    with service.connect() as line:
        answer = line.ask(request("POST", "/book", *headers, HOT, body=body % event_id))
        assert answer.status == (415 if headers else 422)
        status = line.ask(request("GET", f"/status/{event_id}"), "GET")
        assert status.json()["remainingTickets"] == 1


def test_http_1_0_is_kept_alive_where_it_asks(service: Service) -> None:
    """On the connection of `ab -k`; without the header the connection ends, as it always did."""
    kept = b"GET /livez HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    with service.connect() as line:
        for asked in (kept, kept.replace(b"/livez", b"/nowhere"), kept):
            assert line.ask(asked, "GET").headers["connection"] == "keep-alive"
        assert line.ask(b"GET /livez HTTP/1.0\r\n\r\n", "GET").headers["connection"] == "close"
        assert line.is_closed()
