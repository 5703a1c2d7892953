"""Saying `overloaded` for a fraction of what a booking costs.

Who is to be refused, `admission` decides. The answers are the handlers', encoded once. Of a
request whose header fields were read before, to the byte, the parser has nothing new to say: it is
refused by its first line and its length, and is not read at all.
"""

import re
from itertools import cycle

from service.admission import BOOK, CANCEL, READ, Admission
from service.bodies import RETRY_AFTER_S, problem_answer
from service.errors import Problem
from service.heads import Headers, header_lines
from service.metrics import Metrics

_PROBLEM = "overloaded"
_END = b"\r\n\r\n"
_LINES = {b"POST /book HTTP/1.1": (BOOK, "/book")}
_GET = re.compile(
    rb"GET /(?:status/[1-9][0-9]{0,15}|(events)/[1-9][0-9]{0,15}/users/[A-Za-z0-9._~@:+=-]{1,64})"
    rb" HTTP/1\.1"
).fullmatch
_STATUS, _USER = (READ, "/status/{event_id}"), (READ, "/events/{event_id}/users/{user_id}")
_KINDS = {b"/book": BOOK, b"/cancel": CANCEL}
_TELLING = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
_FIELDS_BYTES_MAX = 2 << 10
_KNOWN_MAX = 256


def kind_of(url: bytes) -> int:
    """Return what is asked for at an address of the hot path."""
    return _KINDS.get(url, READ)


class Shedding:
    """What the connections of one worker share."""

    def __init__(self, admission: Admission, metrics: Metrics, root: str = "") -> None:
        """`metrics` counts the refusals; `root` is the path prefix of links."""
        self.admission = admission
        self._durations = metrics.request_durations
        self._problems = metrics.problem_counts
        self._rests = tuple(_encoded(seconds, root) for seconds in RETRY_AFTER_S)
        # In turn, not at random: the refused come back evenly, and it costs a tenth.
        self._next_rest = cycle(self._rests)
        self._lengths: dict[bytes, int] = {}

    def rest(self, route: str) -> bytes:
        """Return what follows the headers that every answer has, and count the refusal."""
        self._durations.note((route, 503), 0.0)
        self._problems.note(_PROBLEM)
        return next(self._next_rest)

    def refused(self, data: bytes) -> bytes | None:
        """Return `rest` for a segment that is one whole request and is refused.

        Empty for one that is let in; None for what has to be read to be told.
        """
        end = data.find(_END)
        line, _, fields = data[:end].partition(b"\r\n")
        length = self._lengths.get(fields)
        if length is None or len(data) != end + len(_END) + length:
            return None
        found = _LINES.get(line)
        if found is None:
            read = _GET(line)
            if read is None:
                return None
            found = _USER if read[1] else _STATUS
        return self.rest(found[1]) if self.admission.refuses(found[0]) else b""

    def learn(self, data: bytes, headers: Headers, length: int) -> None:
        """Remember the fields of a request that the parser took, on a connection that goes on.

        `data` is the segment in which it came whole; `length` is its body's.
        """
        end = data.find(_END)
        fields = data[:end].partition(b"\r\n")[2]
        # Where the lengths add up, the head that was read ends where this one does.
        if len(data) != end + len(_END) + length or len(fields) > _FIELDS_BYTES_MAX:
            return
        if any(name in _TELLING for name, _ in headers):
            return
        if len(self._lengths) >= _KNOWN_MAX:
            self._lengths.clear()
        self._lengths[fields] = length


def _encoded(seconds: int, root: str) -> bytes:
    response = problem_answer(Problem(_PROBLEM), retry_after_s=seconds, root=root)
    return header_lines(response.raw_headers) + b"\r\n" + bytes(response.body)
