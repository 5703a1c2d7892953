"""Who sends slowly, nothing, or takes no answer, is hung up on; everybody else is served meanwhile.

Most of it on a second API process beside the first, whose patience is short.
"""

import contextlib
import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.listener import bind
from service.patience import READ_S
from tests.http.conftest import LoggedRole, Service
from tests.http.raw import Connection, assert_problem, chunked, request
from tests.servers import wait_until

JSON = "Content-Type: application/json"
GOOD = b'{"eventId":1,"userId":1}'
IMPATIENT_S = 1.0
CROWD = 2_000
"""Slow connections at once."""

PARTS = {
    "a letter": b"G",
    "the first line": b"GET /livez HTTP/1.1\r\n",
    "a head but for its last line": request("GET", "/livez")[:-2],
    "a head that announces a body": request("POST", "/book", JSON, "Content-Length: 24"),
    "half a body": request("POST", "/book", JSON, body=GOOD)[:-12],
    "all but a byte": request("POST", "/book", JSON, body=GOOD)[:-1],
    "a chunk": chunked("POST", "/book", GOOD)[:-5],
    "a chunk's size": request("POST", "/book", JSON, "Transfer-Encoding: chunked") + b"18",
    "a trailer": chunked("POST", "/book", GOOD)[:-2] + b"X: y",
}

Sockets = list[socket.socket]


@pytest.fixture(scope="module")
def many_descriptors() -> Iterator[None]:
    """Thousands of sockets for the tests; the services are started with the usual 1,024."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def impatient(
    service: Service, tmp_path_factory: pytest.TempPathFactory, many_descriptors: None
) -> Iterator[Service]:
    """Another API process on the same stores, which waits for a second only."""
    directory = tmp_path_factory.mktemp("impatient")
    listener = bind("127.0.0.1", 0)
    environment = {
        "REDIS_URL": service.servers.redis_url,
        "DATABASE_URL": service.servers.postgresql_url,
        "ONSALE_DATA_DIR": str(directory / "data"),
        "ONSALE_METRICS_DIR": str(directory / "metrics"),
        "ONSALE_TEST_READ_S": str(IMPATIENT_S),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    api = LoggedRole("api", environment, directory / "api.log", "--fd", str(listener.fileno()))
    api.module = "tests.http.impatient"
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        stack.callback(api.stop)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        api.start(pass_fds=(listener.fileno(),))
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        running = replace(service, listener=listener, api=api)
        wait_until(running.is_ready, what="the second API process is ready")
        yield running


def send_slowly(connection: Connection, data: bytes) -> int:
    """Send byte by byte until there is an answer, or the end; return how many it were, up to 100.

    That many take five times the patience.
    """
    for sent in range(min(len(data), 100)):
        if connection.has_something(within_s=0.05):
            return sent
        connection.send(data[sent : sent + 1])
    return 100


def crowd_of(service: Service, data: list[bytes], size: int = CROWD) -> Sockets:
    """Open so many connections, of which each has sent one of these."""
    found = []
    for n in range(size):
        found.append(socket.create_connection(service.listener.getsockname()[:2]))
        found[-1].sendall(data[n % len(data)])
        found[-1].setblocking(False)
    return found


def are_open(crowd: Sockets) -> int:
    """Count those on which nothing was answered and that are not closed."""
    with selectors.DefaultSelector() as selector:
        for one in crowd:
            selector.register(one, selectors.EVENT_READ)
        return len(crowd) - len(selector.select(0))


def ends(crowd: Sockets) -> list[bytes]:
    """Read each to its end, and return what was answered."""
    answers = []
    for one in crowd:
        one.setblocking(True)
        one.settimeout(3 * READ_S)
        with one, one.makefile("rb") as file:
            answers.append(file.read())
    return answers


@pytest.mark.parametrize("data", PARTS.values(), ids=PARTS)
@pytest.mark.usefixtures("reaches_neither_store")
def test_who_does_not_end_a_request_is_told_so(impatient: Service, data: bytes) -> None:
    """A part of a request that stays one is 408, and the connection closed; nothing was done."""
    with impatient.connect() as connection:
        connection.send(data)
        answer = connection.answer()
        assert_problem(answer, "request_timeout")
        assert answer.headers["connection"] == "close"
        assert connection.is_closed()


@pytest.mark.parametrize(
    "data",
    [
        request("POST", "/book", JSON, "X: " + "y" * 9_000, body=GOOD),
        request("POST", "/book", JSON, body=GOOD.ljust(4_000)),
        chunked("POST", "/book", *[b" "] * 1_000),
        b"POST /" + b"a" * 2_000,
    ],
    ids=["head", "body", "chunks", "address"],
)
@pytest.mark.usefixtures("reaches_neither_store")
def test_who_sends_byte_by_byte_gains_no_time(impatient: Service, data: bytes) -> None:
    """The time is that of the request, and not of each byte of it."""
    with impatient.connect() as connection:
        head = data.find(b"\r\n\r\n") + 4
        begun = data[:head] if b"X: " not in data else b""
        connection.send(begun)
        assert send_slowly(connection, data[len(begun) :]) < 100
        assert_problem(connection.answer(), "request_timeout")
        assert connection.is_closed()


@pytest.mark.parametrize("noise", [b"", b"\r\n" * 100], ids=["silent", "line ends"])
def test_who_asks_nothing_is_told_nothing(impatient: Service, noise: bytes) -> None:
    """A connection on which no request begins is closed, and nothing is said."""
    with impatient.connect() as connection:
        send_slowly(connection, noise)
        assert connection.is_closed()


def test_a_part_behind_a_whole_request_is_late_by_itself(impatient: Service) -> None:
    """What came whole is answered; what did not, in its time, is 408 then."""
    with impatient.connect() as connection:
        connection.send(request("GET", "/livez") * 2 + b"GET")
        assert [connection.answer("GET").status for _ in range(3)] == [200, 200, 408]
        assert connection.is_closed()


def test_who_waits_between_requests_is_not_late(impatient: Service) -> None:
    """A connection that was used stays for the next request beyond that time."""
    with impatient.connect() as used, impatient.connect() as silent:
        assert used.serves()
        assert silent.is_closed()
        with impatient.connect() as another:
            assert another.is_closed()
        assert used.serves()


@pytest.mark.parametrize("there", [20, -5], ids=["a part of its head", "a part of its body"])
def test_who_waits_for_the_service_is_not_late(impatient: Service, there: int) -> None:
    """Half a request behind one that takes longer than that time is not held against anybody."""
    event_id = impatient.open_event()
    body = b'{"eventId":%d,"userId":1}' % event_id
    os.kill(impatient.writer.pid, signal.SIGSTOP)
    try:
        with impatient.connect() as connection:
            booking = request("POST", "/book", JSON, "Prefer: durability=recorded", body=body)
            again = request("POST", "/book", JSON, body=body)
            connection.send(booking + again[:there])
            first = connection.answer()
            connection.send(again[there:])
            assert (first.status, first.json()["status"]) == (202, "pending")
            assert connection.answer().status == 200
    finally:
        os.kill(impatient.writer.pid, signal.SIGCONT)


def test_who_takes_no_answer_is_dropped(impatient: Service) -> None:
    """Of 300 MB of answers none is taken: the connection goes, and what was kept for it."""
    before = impatient.memory_bytes()
    with impatient.connect() as connection:
        connection.send(request("GET", "/docs/swagger-ui-bundle.js") * 200)
        port = connection.port
        assert connection.has_something(within_s=15)
        wait_until(lambda: not impatient.knows_connection(port), what="it is hung up on")
    assert impatient.memory_bytes() < before + 20_000_000


def test_who_takes_an_answer_slowly_gets_all_of_it(impatient: Service) -> None:
    """As long as something of it is taken in that time, the connection stays."""
    began = time.monotonic()
    with impatient.connect() as connection:
        connection.send(request("GET", "/docs/swagger-ui-bundle.js") * 30)
        answers = [connection.answer("GET", pause_s=0.02) for _ in range(30)]
    assert [a.status for a in answers] == [200] * 30
    assert len({a.body for a in answers}) == 1
    assert time.monotonic() - began > 2 * IMPATIENT_S


def test_thousands_of_slow_clients_are_closed_while_others_are_served(
    service: Service, many_descriptors: None
) -> None:
    """With the patience of 10 s: all bookings meanwhile are made, and no slow client is left.

    The good ones are answered before the first slow one is hung up on.
    """
    parts = [b"", *PARTS.values()]
    began = time.monotonic()
    crowd = crowd_of(service, parts)
    event_id = service.open_event(200)
    with contextlib.ExitStack() as stack:
        good = [stack.enter_context(service.connect()) for _ in range(20)]
        for user in range(200):
            body = b'{"eventId":%d,"userId":%d}' % (event_id, user)
            assert good[user % len(good)].post("/book", body).status == 201
        assert are_open(crowd) == CROWD
        assert all(one.serves() for one in good)
    answers = ends(crowd)
    assert time.monotonic() - began >= READ_S
    silent, told = answers[:: len(parts)], [a for n, a in enumerate(answers) if n % len(parts)]
    assert set(silent) == {b""}
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in told)
    assert service.api.lives


def test_slow_clients_leave_memory_flat(impatient: Service) -> None:
    """After the first thousands, thousands more take no memory that is not given back.

    Each has sent 15 KB of a head. 8,000 of them are 120 MB; half of what a round has at once is
    left to the allocator.
    """
    head = request("GET", "/livez")[:-2] + b"X: " + b"y" * 15_000
    sizes = []
    for _ in range(5):
        assert {a.split()[1] for a in ends(crowd_of(impatient, [head]))} == {b"408"}
        sizes.append(impatient.memory_bytes())
    assert sizes[-1] < sizes[0] + 15_000_000


def test_a_process_takes_as_many_connections_as_the_system_allows(impatient: Service) -> None:
    """It was started with 256 descriptors, and may have more."""
    soft, hard = psutil.Process(impatient.api.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert soft == hard > 256
