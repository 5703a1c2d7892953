"""More than the service can do: who is refused, who is not, and how many it holds.

Valkey stands still, so that those who wait grow older: what makes them wait does not matter.
"""

import os
import re
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.http.conftest import Service
from tests.http.raw import Answer, Connection, assert_problem, request
from tests.servers import wait_until

JSON = "Content-Type: application/json"
KEYED = "Idempotency-Key: k"
CROWD = 140
"""More than fit into one call (ONSALE_BATCH_ITEMS_MAX)."""

CONNECTIONS = 10_000
_SPARE = 200
_PART = 50
_BYTES_MAX = 16 << 10
"""Of the API process, for a connection that has asked: 7.6 KiB were measured."""


def change(path: str, event_id: int, user: str, *headers: str) -> bytes:
    """Return a booking or a cancellation."""
    body = b'{"eventId":%d,"userId":"%b"}' % (event_id, user.encode())
    return request("POST", path, JSON, *headers, body=body)


def user_read(event_id: int, user: str) -> bytes:
    """Return a question for a user's state."""
    return request("GET", f"/events/{event_id}/users/{user}")


@contextmanager
def standing_still(service: Service) -> Iterator[None]:
    """Have Valkey do nothing for a moment."""
    os.kill(service.servers.pid("valkey"), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(service.servers.pid("valkey"), signal.SIGCONT)


class Crowd:
    """Many who wait, each on a connection of its own, and more who come."""

    def __init__(self, service: Service, stack: ExitStack, of: Callable[[str], bytes]) -> None:
        self._service = service
        self._stack = stack
        self._of = of
        self.waiting: list[Connection] = []

    def send(self, data: bytes) -> Connection:
        """Send a request on a connection of its own."""
        line = self._stack.enter_context(self._service.connect())
        line.send(data)
        return line

    def stands(self) -> None:
        """Wait until one who comes is refused; all before are let in."""
        self.waiting += [self.send(self._of(f"c{number}")) for number in range(CROWD)]
        wait_until(self._refuses_one, what="somebody is refused", seconds=2.5)

    def _refuses_one(self) -> bool:
        line = self.send(self._of(f"c{len(self.waiting)}"))
        if line.has_something(0.02):
            assert_overloaded(line.answer())
            return True
        self.waiting.append(line)
        return False


def assert_overloaded(answer: Answer) -> None:
    """Hold that an answer is the refusal, and says when to come again."""
    assert_problem(answer, "overloaded")
    assert answer.headers["retry-after"] in ("1", "2", "3")


def refusals(service: Service) -> float:
    """Return how many were refused because there are too many."""
    text = httpx.get(f"{service.url}/metrics", trust_env=False, timeout=30).text
    found = re.search(r'^onsale_problems_total\{code="overloaded"\} (\S+)$', text, re.MULTILINE)
    assert found, text
    return float(found[1])


@pytest.mark.parametrize("headers", [(), (KEYED,)], ids=["hot path", "handlers"])
def test_a_cancellation_is_let_in_where_a_booking_is_not(
    service: Service, headers: tuple[str, ...]
) -> None:
    """Nor is a read. Whoever was let in gets what it came for, and who was refused has nothing."""
    event_id = service.open_event(1_000)
    with ExitStack() as stack:
        crowd = Crowd(service, stack, lambda user: change("/book", event_id, user))
        assert crowd.send(change("/book", event_id, "early")).answer().status == 201
        with standing_still(service):
            crowd.stands()
            for _ in range(3):
                refused = crowd.send(change("/book", event_id, "late", *headers))
                assert_overloaded(refused.answer())
                assert refused.serves()
            assert_overloaded(crowd.send(user_read(event_id, "early")).answer("GET"))
            opening = request("POST", "/initialize", JSON, body=b'{"name":"a","totalTickets":1}')
            assert_overloaded(crowd.send(opening).answer())
            leaving = crowd.send(change("/cancel", event_id, "early", *headers))
            assert not leaving.has_something(0.05)
        assert leaving.answer().json()["status"] == "cancelled"
        assert {line.answer().status for line in crowd.waiting} == {201}
        wait_until(lambda: crowd.send(user_read(event_id, "late")).answer("GET").status == 404)


def test_a_booking_is_let_in_where_a_read_is_not(service: Service) -> None:
    """Many who ask are in nobody's way but their own."""
    event_id = service.open_event(1_000)
    with ExitStack() as stack:
        crowd = Crowd(service, stack, lambda user: user_read(event_id, user))
        with standing_still(service):
            crowd.stands()
            booking = crowd.send(change("/book", event_id, "a"))
            assert not booking.has_something(0.05)
        assert booking.answer().status == 201
        assert {line.answer("GET").status for line in crowd.waiting} == {404}


def test_who_looks_after_the_service_is_let_in_and_sees_it(service: Service) -> None:
    """`/livez` and `/metrics` answer; every refusal is counted, once."""
    event_id = service.open_event(1_000)
    before = refusals(service)
    with ExitStack() as stack:
        crowd = Crowd(service, stack, lambda user: change("/book", event_id, user))
        with standing_still(service):
            crowd.stands()
            lines = [crowd.send(change("/book", event_id, f"l{number}")) for number in range(20)]
            for line in lines:
                assert_overloaded(line.answer())
                line.send(change("/book", event_id, "again"))
                assert_overloaded(line.answer())
            assert lines[0].serves()
        assert {line.answer().status for line in crowd.waiting} == {201}
        after = refusals(service)
    assert after - before == 1 + 2 * len(lines)


def test_ten_thousand_connections_are_held(service: Service) -> None:
    """All ask, some book, all ask again. What a connection costs is bounded."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= CONNECTIONS + _SPARE, "this machine allows a process too few files"
    address = service.listener.getsockname()[:2]
    event_id = service.open_event(CONNECTIONS)
    before = service.memory_bytes()
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        lines: list[socket.socket] = []
        while len(lines) < CONNECTIONS:
            part = [stack.enter_context(socket.create_connection(address)) for _ in range(_PART)]
            all_are_answered(part, request("GET", f"/status/{event_id}"), 200)
            lines += part
        for number in range(0, CONNECTIONS, _PART):
            all_are_answered(
                lines[number : number + 1], change("/book", event_id, f"{number}"), 201
            )
        for number in range(0, CONNECTIONS, _PART):
            part = lines[number : number + _PART]
            all_are_answered(part, request("GET", f"/status/{event_id}"), 200)
        grown = service.memory_bytes() - before
    assert grown / CONNECTIONS < _BYTES_MAX


def all_are_answered(lines: list[socket.socket], asked: bytes, status: int) -> None:
    """Ask on all of these together; in parts, since it is the connections that are many here."""
    for line in lines:
        line.sendall(asked)
    for line in lines:
        assert line.recv(4 << 10).startswith(b"HTTP/1.1 %d " % status)
