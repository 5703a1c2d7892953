"""HTTP/1.1 by hand: bytes as a test wrote them, and answers read one by one."""

import json
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from service.errors import PROBLEMS

_ANSWER_S = 60.0


@dataclass(frozen=True)
class Answer:
    """One answer. Names of headers are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Decode the body."""
        return json.loads(self.body)


class Connection:
    """A TCP connection to the service, on which several requests may follow each other."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect."""
        self._socket = socket.create_connection(address, timeout=_ANSWER_S)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        """Be closed at the end."""
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @property
    def port(self) -> int:
        """The port that this end has."""
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def reset(self) -> None:
        """Hang up so that the other side is told at once that nobody reads any more."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises OSError when the other side has hung up."""
        self._socket.sendall(data)

    def end(self) -> None:
        """Say that nothing more will be sent; answers may still come."""
        self._socket.shutdown(socket.SHUT_WR)

    def send_until_refused(self, data: bytes) -> None:
        """Send bytes as they are, or as many as the other side takes."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def send_as_much_as_is_taken(self, data: bytes, *, still_s: float = 0.05) -> None:
        """Send until the other side, and the system for it, takes no more for a moment."""
        view = memoryview(data)
        while view and select.select([], [self._socket], [], still_s)[1]:
            view = view[self._socket.send(view[: 64 << 10], socket.MSG_DONTWAIT) :]

    def has_something(self, within_s: float) -> bool:
        """Whether there is something to read, or the end, now or soon."""
        return bool(select.select([self._socket], [], [], within_s)[0])

    def answer(self, method: str = "POST", *, pause_s: float = 0.0) -> Answer:
        """Read one answer to a request with this method. Raises EOFError where none comes.

        With a pause the body is read in parts of 256 KiB, and a pause made before each.
        """
        words = self._line().split(b" ", 2)
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        status = int(words[1])
        if status < 200 or method == "HEAD":
            return Answer(status, headers, b"")
        length = int(headers["content-length"])
        body = b"".join(self._parts(length, pause_s))
        assert len(body) == length
        return Answer(status, headers, body)

    def ask(self, data: bytes, method: str = "POST") -> Answer:
        """Send a request and read its answer."""
        self.send(data)
        return self.answer(method)

    def post(self, path: str, body: bytes, *headers: str) -> Answer:
        """Send a body as JSON, with its length, and read the answer."""
        return self.ask(
            request("POST", path, "Content-Type: application/json", *headers, body=body)
        )

    def skip(self, count: int) -> None:
        """Read a body of which nothing is asked."""
        assert len(self._file.read(count)) == count

    def is_closed(self) -> bool:
        """Whether the service has hung up; waits for it."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def serves(self) -> bool:
        """Whether another request on this connection is answered."""
        return self.ask(request("GET", "/livez"), "GET").status == 200

    def _parts(self, length: int, pause_s: float) -> Iterator[bytes]:
        part = 256 << 10 if pause_s else length
        for begin in range(0, length, part or 1):
            time.sleep(pause_s)
            yield self._file.read(min(part, length - begin))

    def _line(self) -> bytes:
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError
        return line[:-2]


def request(method: str, path: str, *headers: str, body: bytes | None = None) -> bytes:
    """Return a request; with a body also its length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + (body or b"")


def chunked(method: str, path: str, *chunks: bytes) -> bytes:
    """Return a request whose JSON body comes in chunks, without a length."""
    head = request(method, path, "Content-Type: application/json", "Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (*chunks, b""))


def assert_problem(answer: Answer, code: str) -> dict[str, Any]:
    """Hold that an answer is this problem, whole and as RFC 9457 wants it; return its body."""
    assert (answer.status, answer.headers["content-type"]) == (
        PROBLEMS[code].status,
        "application/problem+json",
    ), answer.body
    body = answer.json()
    assert body.keys() - {"errors"} == {"type", "title", "status", "detail", "code", "message"}
    assert body["code"] == code
    assert body["type"] == f"/problems/{code}"
    assert body["status"] == answer.status
    assert body["title"] == body["message"] == PROBLEMS[code].title
    assert body["detail"].endswith(".") or body["errors"]
    assert ("errors" in body) == (code == "invalid_request")
    return dict(body)
