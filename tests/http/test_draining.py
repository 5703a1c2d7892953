"""SIGTERM behind a proxy: the process serves on, says so, and lets go of its connections."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service import health
from tests.http.api_process import api_process
from tests.http.conftest import Service
from tests.http.raw import Answer, Connection, assert_problem, request
from tests.running import Running
from tests.servers import Role, free_port, wait_until

LONG_S = "60"
"""Longer than any of these tests: a second signal ends the drain."""

_JSON = "Content-Type: application/json"


@contextlib.contextmanager
def draining(service: Service, *, seconds: str) -> Iterator[tuple[Role, int]]:
    """An API process to drain, and its port."""
    port = free_port()
    with api_process(service, port, ONSALE_DRAIN_SECONDS=seconds) as role:
        try:
            yield role, port
        finally:
            # In order, and without the rest of the drain.
            for _ in range(2):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(role.pid, signal.SIGTERM)


def connect(port: int) -> Connection:
    """Connect to a process of one's own."""
    return Connection(("127.0.0.1", port))


def readyz(port: int) -> Answer:
    """Ask `/readyz` on a new connection."""
    with connect(port) as connection:
        return connection.ask(request("GET", "/readyz"), "GET")


def drain(pid: int, port: int) -> None:
    """Tell a process to stop, and wait until it says that it does."""
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: _has_begun(readyz(port)), what="the process drains")


def _has_begun(answer: Answer) -> bool:
    return answer.status == 503 or closes(answer)


def booking(event: int, user: str) -> bytes:
    """Return the body of a booking."""
    return b'{"eventId":%d,"userId":"%s"}' % (event, user.encode())


def closes(answer: Answer) -> bool:
    """Whether an answer says that its connection ends."""
    return answer.headers.get("connection") == "close"


def listens(port: int) -> bool:
    """Whether a port accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_draining_process_serves_on_and_closes_what_it_answers(service: Service) -> None:
    """Hot path, application and problems alike, until a second signal ends it.

    `/readyz` is 503 `draining` from the first on, while `/livez` is 200; a balancer's check and
    `onsale health` read it.
    """
    event = service.open_event(5)
    with draining(service, seconds=LONG_S) as (role, port), contextlib.ExitStack() as stack:
        before = [stack.enter_context(connect(port)) for _ in range(8)]
        for connection in before:
            assert not closes(connection.ask(request("GET", "/livez"), "GET"))
        drain(role.pid, port)
        answer = readyz(port)
        assert_problem(answer, "draining")
        assert closes(answer)
        said = asyncio.run(health.ask(f"http://127.0.0.1:{port}", "/readyz"))
        assert (said.healthy, said.code) == (False, "draining")

        *asked, idle = before
        book, read, plain, older, keyed, missing, wrong = asked
        told = [
            book.post("/book", booking(event, "d1")),
            read.ask(request("GET", f"/status/{event}"), "GET"),
            plain.ask(request("GET", "/livez"), "GET"),
            older.ask(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET"),
            keyed.post("/book", booking(event, "d2"), "Idempotency-Key: d2"),
            missing.ask(request("GET", "/nothing"), "GET"),
            wrong.post("/cancel", booking(event, "stranger")),
        ]
        assert [each.status for each in told] == [201, 200, 200, 200, 201, 404, 404]
        assert all(closes(each) for each in told), told
        assert all(each.is_closed() for each in asked)
        with connect(port) as late:
            assert late.post("/book", booking(event, "d3")).status == 201
            assert late.is_closed()

        os.kill(role.pid, signal.SIGTERM)
        assert idle.is_closed()
        assert psutil.Process(role.pid).wait(60) in (0, -signal.SIGTERM)


def test_the_end_of_a_drain_leaves_no_request_unanswered(service: Service) -> None:
    """Whatever a proxy may have sent by then: the process is frozen while it comes, and the end.

    Requests on connections that wait in the system's queue; on one that was idle all the time,
    in the system's buffer; and the first on a connection, after the listener has closed.
    """
    event = service.open_event(9)
    with draining(service, seconds="1") as (role, port), contextlib.ExitStack() as stack:
        idle, fresh = (stack.enter_context(connect(port)) for _ in range(2))
        assert idle.serves()
        drain(role.pid, port)
        os.kill(role.pid, signal.SIGSTOP)
        waiting = [stack.enter_context(connect(port)) for _ in range(4)]
        wait_until(lambda: queued(port) == 4, what="the connections wait")
        for number, connection in enumerate((idle, *waiting)):
            body = booking(event, f"w{number}")
            connection.send(request("POST", "/book", _JSON, body=body))
        time.sleep(1.2)  # the drain's time passes
        process = psutil.Process(role.pid)
        process.resume()
        wait_until(lambda: not listens(port), what="the drain ends")
        late = fresh.post("/book", booking(event, "late"))
        answers = [connection.answer() for connection in (idle, *waiting)]
        assert [each.status for each in (late, *answers)] == [201] * 6
        assert all(closes(each) for each in (late, *answers))
        assert process.wait(60) in (0, -signal.SIGTERM)


def queued(port: int) -> int:
    """Return how many connections wait to be accepted at a port."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(f":{port:04X}") and words[3] == "0A":
            return int(words[4].split(":")[1], 16)
    return 0


def test_all_workers_of_one_listener_drain_before_the_stores_go(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM to `onsale up`: both workers take bookings meanwhile, and have the time for it."""
    up = Running(tmp_path / "data", ONSALE_DRAIN_SECONDS="3", WEB_CONCURRENCY="2")
    up.start()
    try:
        port = int(up.urls["http"].rpartition(":")[2])
        with connect(port) as connection:
            opened = connection.post("/initialize", b'{"name":"Event","totalTickets":5}')
            event = opened.json()["event"]["id"]
        process = psutil.Process(up.urls["pid"])
        drain(process.pid, port)
        with connect(port) as connection:
            assert connection.post("/book", booking(event, "up")).status == 201
        process.wait(60)  # a second signal would kill
    finally:
        up.stop()
    log = "".join(path.read_text() for path in (tmp_path / "data/log").glob("api*.log"))
    assert '"draining"' in log
    assert "role killed" not in capfd.readouterr().err
    assert "all that Redis held is on record" in (tmp_path / "data/log/writer.log").read_text()
