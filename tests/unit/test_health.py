"""`onsale health`: what it makes of answers, and of none. The answers here are canned."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner, Result

from service.cli import main
from service.errors import PROBLEMS
from service.health import Health, ask, local_url
from service.listener import bind, http_url

ANSWER = b"HTTP/1.1 %s\r\nConnection: close\r\n\r\n%s"


def refusal(code: str, detail: str) -> bytes:
    """Return the answer that carries a problem."""
    body = {"code": code, "detail": detail, "status": PROBLEMS[code].status}
    return ANSWER % (b"503 Service Unavailable", json.dumps(body).encode())


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answer so many connections, in order; yield the address and what was asked."""
    asked: list[bytes] = []

    def serve() -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096))
                connection.sendall(answer)

    with bind("127.0.0.1", 0) as listener:
        server = threading.Thread(target=serve)
        server.start()
        yield http_url(listener), asked
        server.join(timeout=5)


def onsale_health(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["health", *arguments])


@pytest.mark.parametrize(
    ("options", "path", "word"), [((), "/readyz", "ready"), (("--live",), "/livez", "live")]
)
def test_a_healthy_service_is_one_word_and_exit_0(
    options: tuple[str, ...], path: str, word: str
) -> None:
    """It asks the path that the option names, and no more than once."""
    with answering(ANSWER % (b"200 OK", b"{}")) as (url, asked):
        result = onsale_health("--url", url, *options)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{word}\n", "")
    assert [request.split()[:2] for request in asked] == [[b"GET", path.encode()]]


@pytest.mark.parametrize("code", ["closed", "unavailable"])
def test_a_refusal_is_exit_1_with_the_reason(code: str) -> None:
    """The problem's code and detail, on one line of stderr, whatever the detail holds."""
    with answering(refusal(code, "PostgreSQL went\nback: \x1b[1m5")) as (url, _):
        result = onsale_health("--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"onsale: not ready: {code}: PostgreSQL went back: [1m5\n"


def test_where_nothing_listens_it_is_exit_1() -> None:
    """Nobody is there: the address and the system's word for it."""
    with bind("127.0.0.1", 0) as listener:
        url = http_url(listener)
    result = onsale_health("--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"onsale: not ready: {url}: Connection refused\n"


@pytest.mark.parametrize(
    "answer",
    [b"", b"\x00\xff", b"SSH-2.0-x\r\n", ANSWER % (b"502 Bad Gateway", b"<html>"), b"HTTP/1.1"],
)
def test_what_is_no_answer_of_onsale_is_not_healthy(answer: bytes) -> None:
    """Another server behind the address, or half an answer, is never taken for a service."""
    with answering(answer) as (url, _):
        assert asyncio.run(ask(url, "/readyz")) == Health(
            healthy=False, detail="the answer is not one of Onsale's"
        )


def test_a_service_that_does_not_answer_is_given_up() -> None:
    """A worker that hangs takes its connection and says nothing."""
    with bind("127.0.0.1", 0) as listener:
        found = asyncio.run(ask(http_url(listener), "/readyz", seconds=0.05))
    assert found == Health(healthy=False, detail="no answer within 0.05 s")


def test_a_path_in_front_is_kept() -> None:
    """A balancer may have the service below a path of its own."""
    with answering(ANSWER % (b"200 OK", b"{}")) as (url, asked):
        assert asyncio.run(ask(f"{url}/sale/", "/readyz")).healthy
    assert asked[0].startswith(b"GET /sale/readyz ")


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", 3000, "http://127.0.0.1:3000"),
        ("0.0.0.0", 80, "http://127.0.0.1:80"),
        ("::", 3000, "http://[::1]:3000"),
        ("sale.example", 3000, "http://sale.example:3000"),
    ],
)
def test_the_service_of_this_machine_is_where_host_and_port_say(
    host: str, port: int, url: str
) -> None:
    """Where it listens on every address, it is asked on its own machine's."""
    assert local_url(host, port) == url


@pytest.mark.parametrize(
    "run",
    [
        lambda: onsale_health("--url", "ftp://127.0.0.1"),
        lambda: onsale_health("--url", "http://user:secret@127.0.0.1"),
        lambda: onsale_health("--url", "127.0.0.1:3000"),
        lambda: onsale_health("--url", "http://127.0.0.1:99999"),
        lambda: CliRunner().invoke(main, ["health"], env={"PORT": "0"}),
    ],
)
def test_an_address_that_is_none_is_exit_2(run: Callable[[], Result]) -> None:
    """It is refused before anything is asked, and never repeated: it may hold a password."""
    result = run()
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr
