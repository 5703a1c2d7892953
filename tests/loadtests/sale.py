"""A small sale, told step by step: the reference model answers, one request after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from loadtests.answers import Answers, Sale, Told
from loadtests.checks import check_answers
from loadtests.replay import History, Row
from service.crowd import Operation
from tests.model import PartitionModel

EVENT = 7
FIRST_SEQ = 11


@dataclass
class SmallSale:
    """One event of the model, and what people were told about it."""

    tickets: int
    told: list[Told] = field(default_factory=list)
    _now: float = 100.0

    def __post_init__(self) -> None:
        """Open the event."""
        self.model = PartitionModel(FIRST_SEQ - 1)
        self.model.open(EVENT, self.tickets)
        self._event = self.model.events[EVENT]

    def book(self, *users: str) -> None:
        """Let users book, and tell them."""
        for user in users:
            outcome, seq, position = self.model.book(EVENT, user)
            assert isinstance(position, int)  # no key, no replay
            if outcome.endswith("WAITING"):
                self._tell("book", user, 202, seq, "waiting", position=position)
            else:
                status = 200 if outcome.startswith("ALREADY") else 201
                self._tell("book", user, status, seq, "booked")

    def cancel(self, user: str) -> None:
        """Let a user cancel, and tell the outcome."""
        outcome, seq, promoted = self.model.cancel(EVENT, user)
        if outcome == "NOT_BOOKED":
            self._tell("cancel", user, 404, code="not_booked")
        else:
            state = "left_waiting_list" if outcome == "LEFT" else "cancelled"
            self._tell("cancel", user, 200, seq, state, reassigned=bool(promoted))

    def poll(self, user: str) -> None:
        """Tell a user's state."""
        state, seq = self._event.state(user)
        position = self._event.position(user) or None
        self._tell("poll", user, 200, seq, state, position=position)

    def look(self, user: str) -> None:
        """Tell how the event stands."""
        waiting = len(self._event.waiting_list)
        self._tell("look", user, 200, remaining=self._event.available, waiting=waiting)

    def lose(self, operation: Operation, user: str) -> None:
        """Let an answer to a request be lost; whether it had an effect is the caller's to do."""
        self._tell(operation, user, 0)

    @property
    def rows(self) -> list[Row]:
        """The journal of the event, without its opening."""
        return [Row(c.seq, c.kind, c.user) for c in self.model.changes if c.user is not None]

    @property
    def answers(self) -> Answers:
        """The file of answers that a load test would have written."""
        people = len({one.user for one in self.told})
        sale = Sale(EVENT, self.tickets, people, "http://127.0.0.1:1")
        return Answers(sale, tuple(self.told), len(self.told), people, 0)

    def _tell(
        self,
        operation: Operation,
        user: str,
        status: int,
        seq: int | None = None,
        state: str | None = None,
        *,
        position: int | None = None,
        reassigned: bool | None = None,
        remaining: int | None = None,
        waiting: int | None = None,
        code: str | None = None,
    ) -> None:
        self._now += 2
        self.told.append(
            Told(
                operation=operation,
                user=user,
                status=status,
                sent=self._now - 1,
                answered=self._now,
                seq=seq,
                state=state,
                position=position,
                reassigned=reassigned,
                remaining=remaining,
                waiting=waiting,
                code=code,
            )
        )


def usual_sale() -> SmallSale:
    """Two tickets, five people: one cancels and a waiter moves up, another leaves the line."""
    sale = SmallSale(2)
    sale.look("ann")
    sale.book("ann", "bob", "cid", "dee", "eva", "ann")
    sale.look("eva")
    sale.poll("dee")
    sale.cancel("bob")
    sale.cancel("bob")
    sale.poll("cid")
    sale.poll("eva")
    sale.cancel("dee")
    sale.book("eva")
    sale.look("cid")
    return sale


def broken(answers: Answers, rows: Sequence[Row]) -> set[str]:
    """Return the names of the checks that do not hold."""
    history = History(FIRST_SEQ, answers.sale.tickets, rows)
    return {check.name for check in check_answers(answers, history) if check.wrong}


def with_told(answers: Answers, number: int, **changed: object) -> Answers:
    """Return the answers with one line changed."""
    told = list(answers.told)
    told[number] = replace(told[number], **changed)  # type: ignore[arg-type]  # by name, in a test
    return replace(answers, told=tuple(told))
