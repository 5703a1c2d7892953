"""What everybody polls in a sale, on the hot path: how an event stands, and how a user stands.

Polls of the same moment share one question of the same call, and of an event also the encoded
answer. Nothing is remembered beyond that: an answer is of a call that was sent after its request
came.
"""

import re
from collections.abc import Coroutine
from typing import Any

from service.answers import is_known, status_answer, user_answer
from service.errors import Problem
from service.heads import Headers, header_lines
from service.hot_exchange import Connection, Exchange, Surroundings
from service.models import ID_MAX
from service.results import EventState, UserState

BEGINNINGS = (b"/status/", b"/events/")
_URL = re.compile(
    rb"/status/([1-9][0-9]{0,15})|/events/([1-9][0-9]{0,15})/users/([A-Za-z0-9._~@:+=-]{1,64})"
)


class Read(Exchange):
    """A question about an event, and maybe a user."""

    __slots__ = ("_event_id",)

    method = "GET"


class _Encoded:
    """The last event that was encoded: those who shared a question come one after the other."""

    def __init__(self) -> None:
        self.of: object = None
        self.tag = ""
        self.found = self.unchanged = b""

    def encode(self, event: EventState) -> None:
        """Encode an event, unless it is the one that was encoded last."""
        if event is self.of:
            return
        self.of = event
        response = status_answer(event, "")
        self.tag = response.headers["etag"]
        self.found = _bytes(response)
        self.unchanged = _bytes(status_answer(event, self.tag))


def _bytes(response: Any) -> bytes:
    """Return an answer behind what every answer has; it is followed by others."""
    return header_lines(response.raw_headers) + b"\r\n" + bytes(response.body)


_encoded = _Encoded()


class StatusRead(Read):
    """`GET /status/{eventId}`."""

    __slots__ = ("_known",)

    route = "/status/{event_id}"

    def __init__(
        self, hot: Surroundings, connection: Connection, event_id: int, known: str
    ) -> None:
        """`known` is If-None-Match, empty where there is none."""
        super().__init__(hot, connection)
        self._event_id = event_id
        self._known = known

    def _submit(self) -> bool:
        self._hot.engine.submit_look(self._event_id, "", self._settle)
        return True

    def _ask_in_full(self) -> Coroutine[Any, Any, Any]:
        return self._hot.engine.event(self._event_id)

    def _answer(self, result: tuple[EventState, UserState | None]) -> None:
        self._answer_in_full(result[0])

    def _answer_in_full(self, result: EventState) -> None:
        if not self.keep_alive:
            self._write_response(status_answer(result, self._known))
            return
        _encoded.encode(result)
        if self._known and is_known(_encoded.tag, self._known):
            self._write(304, _encoded.unchanged)
        else:
            self._write(200, _encoded.found)


class UserRead(Read):
    """`GET /events/{eventId}/users/{userId}`, without a wait for the record."""

    __slots__ = ("_user_id",)

    route = "/events/{event_id}/users/{user_id}"

    def __init__(
        self, hot: Surroundings, connection: Connection, event_id: int, user_id: str
    ) -> None:
        """Ask for one user."""
        super().__init__(hot, connection)
        self._event_id = event_id
        self._user_id = user_id

    def _submit(self) -> bool:
        engine = self._hot.engine
        if engine.awaits(""):
            return False
        engine.submit_look(self._event_id, self._user_id, self._settle)
        return True

    def _ask_in_full(self) -> Coroutine[Any, Any, Any]:
        return self._hot.engine.user(self._event_id, self._user_id)

    def _answer(self, result: tuple[EventState, UserState | None]) -> None:
        state = result[1]
        if state is None:
            raise Problem("not_booked")
        reached = self._hot.engine.given(self._event_id, state.at)
        self._answer_in_full(state.reaching(reached))

    def _answer_in_full(self, result: UserState) -> None:
        self._write_response(user_answer(self._event_id, self._user_id, result, ""))


def read_of(url: bytes, headers: Headers, hot: Surroundings, connection: Connection) -> Read | None:
    """Return the read that a request asks for; None where it is for the handlers."""
    found = _URL.fullmatch(url)
    if found is None:
        return None
    known = ""
    for name, value in headers:
        if name == b"if-none-match":
            if known:
                return None
            known = value.decode("latin-1")
        elif name in (b"prefer", b"expect", b"content-length", b"transfer-encoding"):
            return None
    event_id = int(found[1] or found[2])
    if event_id > ID_MAX:
        return None
    if found[1]:
        return StatusRead(hot, connection, event_id, known)
    return UserRead(hot, connection, event_id, found[3].decode())
