"""What a person does at a sale, and which answers the contract allows: no socket, no clock.

`onsale demo` and the load test send the same people, each with a client of its own. A visit is a
generator: it yields a pause in seconds or a click, and is sent what the click was answered. An
answer that `models` and `PROBLEMS` do not allow at that point is `outside`, whatever its status; a
sold-out sale, a busy service and a lost connection are part of the contract.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from random import Random
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from service.errors import PROBLEMS
from service.models import (
    BookAnswer,
    CancelAnswer,
    PendingAnswer,
    ProblemAnswer,
    StatusAnswer,
    UserAnswer,
)

Operation = Literal["look", "book", "poll", "cancel"]

_Model = TypeVar("_Model", bound=BaseModel)

TRIES_MAX = 30
"""So often a click is repeated while the service is busy or away; then the person gives up."""

PAUSE_MAX_S = 10.0
"""The longest `Retry-After` that a person honours."""

_STEEP = 5.5
"""Of the arrivals: how many times fewer come, as a logarithm, at the end than at the opening."""

OUTCOMES = (
    "looked",
    "booked",
    "waiting",
    "pending",
    "repeated",
    "polled",
    "cancelled",
    "left",
    "cancelled before",
    "busy",
    "no answer",
    "outside",
)
"""What an answer can mean to the person; see `Person.judge`."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How people behave: shares are from 0 to 1, times in seconds."""

    cancel: float = 0.1
    """Of those who hold a ticket or wait."""

    double_click: float = 0.05
    """Of all clicks on book and cancel: sent twice at once."""

    reload: float = 0.05
    """Of those who booked: the same again, after the answer."""

    polls_max: int = 3
    """A waiter asks for the position 1 to so many times."""

    look_s: float = 1.0
    think_s: float = 2.0


class Click(NamedTuple):
    """One request, or two at once."""

    operation: Operation
    twice: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; status 0: none came, and whether the request had an effect is not known.

    `retry_after` is None without the header; `sent` and `answered` are in seconds of one clock.
    """

    status: int
    body: Mapping[str, Any]
    retry_after: float | None
    sent: float
    answered: float

    @property
    def is_final(self) -> bool:
        """Whether the same request need not be sent again."""
        return self.status not in (0, 500, 503)


Visit = Generator[Click | float, Sequence[Answer], bool]
"""Returns whether the person had an answer to every click in the end."""


def visit(habits: Habits, chance: Random) -> Visit:
    """One person's way through the sale: look, book, perhaps repeat, wait, perhaps cancel."""

    def think() -> float:
        return chance.expovariate(1 / habits.think_s) if habits.think_s else 0.0

    yield chance.uniform(0, habits.look_s)
    if (yield from _until_answered(Click("look"), chance)) is None:
        return False
    yield think() / 4
    booking = Click("book", twice=chance.random() < habits.double_click)
    booked = yield from _until_answered(booking, chance)
    if booked is None:
        return False
    if chance.random() < habits.reload:
        yield think() / 2
        if (yield from _until_answered(Click("book"), chance)) is None:
            return False
    waiting = booked.body.get("status") == "waiting"
    for _ in range(chance.randint(1, habits.polls_max) if waiting else 0):
        yield think()
        found = yield from _until_answered(Click("poll"), chance)
        if found is None:
            return False
        if found.body.get("status") != "waiting":
            break
    if chance.random() < habits.cancel:
        yield think()
        cancelling = Click("cancel", twice=chance.random() < habits.double_click)
        return (yield from _until_answered(cancelling, chance)) is not None
    return True


def _until_answered(
    click: Click, chance: Random
) -> Generator[Click | float, Sequence[Answer], Answer | None]:
    """Click, and repeat after a time-out or a 503, not before `Retry-After`; None: gave up."""
    for _ in range(TRIES_MAX):
        answers = yield click
        final = next((answer for answer in answers if answer.is_final), None)
        if final is not None:
            return final
        asked = max(answer.retry_after or 1.0 for answer in answers)
        # Not all at the same moment again.
        yield min(asked, PAUSE_MAX_S) * chance.uniform(1.0, 1.5)
        click = Click(click.operation)
    return None


def arrival(share_of_people: float) -> float:
    """Return the share of the time after which that share of the people has come, below 1 each.

    A spike at the opening and a long tail: half have come after an eighth of the time.
    """
    return -log(1 - share_of_people * (1 - exp(-_STEEP))) / _STEEP


@dataclass(slots=True)
class Person:
    """Somebody under a user id that was never used before: requests, and what answers mean.

    `prefer` is the durability that book and cancel ask for, empty for the deployment's.
    """

    event_id: int
    user_id: str
    prefer: str = ""
    _sends: dict[Operation, int] = field(default_factory=dict)
    _booked: bool = False
    _tickets: int = 0

    def request(self, operation: Operation) -> tuple[str, str, dict[str, object] | None]:
        """Return method, path and body of a request that is about to be sent."""
        self._sends[operation] = self._sends.get(operation, 0) + 1
        match operation:
            case "look":
                return "GET", f"/status/{self.event_id}", None
            case "poll":
                return "GET", f"/events/{self.event_id}/users/{self.user_id}", None
            case _:
                body: dict[str, object] = {"eventId": self.event_id, "userId": self.user_id}
                return "POST", f"/{operation}", body

    def judge(self, operation: Operation, answer: Answer) -> tuple[str, str]:
        """Return what an answer means, one of OUTCOMES, and for `outside` the reason."""
        try:
            return self._meaning(operation, answer), ""
        except ValidationError as error:
            first = error.errors()[0]
            where = "/".join(str(part) for part in first["loc"])
            return "outside", f"{answer.status} {where or 'body'}: {first['msg']}"
        except _OutsideError as error:
            return "outside", str(error)

    def _meaning(self, operation: Operation, answer: Answer) -> str:
        if answer.status == 0:
            return "no answer"
        if answer.status == 503:
            _problem(answer)
            if answer.retry_after is None:
                _outside("503 without Retry-After")
            return "busy"
        match operation:
            case "look":
                looked = self._own(StatusAnswer, answer, 200)
                if looked.remainingTickets > looked.totalTickets:
                    _outside("more tickets remain than there are")
                return "looked"
            case "book":
                return self._book(answer)
            case "poll":
                self._own(UserAnswer, answer, 200)
                return "polled"
            case "cancel":
                return self._cancel(answer)

    def _book(self, answer: Answer) -> str:
        if self._is_pending(answer):
            self._booked = True
            return "pending"
        booking = self._own(BookAnswer, answer, 200, 201, 202)
        self._as_preferred(booking.durability)
        if (booking.status == "waiting") != (answer.status == 202):
            _outside(f"{answer.status} {booking.status}")
        if (booking.position is None) != (booking.status == "booked"):
            _outside(f"{booking.status} with position {booking.position}")
        if answer.status == 200 and self._sends["book"] == 1:
            _outside("200 to a first booking: somebody else's")
        self._tickets += answer.status == 201
        if self._tickets > 1:
            _outside("201 a second time")
        again = self._booked or answer.status == 200
        self._booked = True
        return "repeated" if again and answer.status != 201 else booking.status

    def _cancel(self, answer: Answer) -> str:
        if answer.status == 404:
            if _problem(answer) != "not_booked" or self._sends["cancel"] == 1:
                _outside(f"404 {answer.body['code']} to a first cancellation")
            return "cancelled before"
        if self._is_pending(answer):
            return "pending"
        done = self._own(CancelAnswer, answer, 200)
        self._as_preferred(done.durability)
        return "left" if done.status == "left_waiting_list" else "cancelled"

    def _is_pending(self, answer: Answer) -> bool:
        """Whether a change was made and is not known to be on record."""
        if answer.status != 202 or answer.body.get("status") != "pending":
            return False
        self._own(PendingAnswer, answer, 202)
        return True

    def _as_preferred(self, durability: str) -> None:
        if self.prefer and durability != self.prefer:
            _outside(f"{durability} where {self.prefer} was asked for")

    def _own(self, model: type[_Model], answer: Answer, *statuses: int) -> _Model:
        """Return the body as the contract has it; of this event and this person."""
        if answer.status not in statuses:
            raise _OutsideError(f"{answer.status} {answer.body.get('code', '')}".rstrip())
        held = model.model_validate(answer.body)
        if answer.body["eventId"] != self.event_id:
            _outside(f"an answer about event {answer.body['eventId']}")
        if answer.body.get("userId", self.user_id) != self.user_id:
            _outside(f"an answer about {answer.body['userId']}")
        return held


class _OutsideError(Exception):
    """An answer that the contract does not allow here."""


def _outside(reason: str) -> NoReturn:
    raise _OutsideError(reason)


def _problem(answer: Answer) -> str:
    """Return the code of a problem that is as it should be."""
    problem = ProblemAnswer.model_validate(answer.body)
    known = PROBLEMS.get(problem.code)
    if known is None or known.status != answer.status:
        _outside(f"{answer.status} with the code {problem.code}")
    return problem.code
