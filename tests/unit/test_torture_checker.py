"""The fault suite's checker: what is right is passed, and each way of being wrong found."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from service.outbox import Change
from tests.model import PartitionModel
from tests.torture.checker import LATE_S, check
from tests.torture.history import Kind, Operation, Row

EVENT = 7
DIGEST = "d" * 16


class Sale:
    """One ticket: a has it, b and c wait, a cancels and b gets it; c looks and asks in between.

    Every operation takes a second, and begins when the one before has ended.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.rows: list[Row] = []
        self._model = PartitionModel()
        self._model.seq = 1
        self._put(Change(1, 1, 0, "epoch_began", None, None, "{}"), "")
        self._model.open(EVENT, 1)
        self._put(Change(2, 1, 0, "opened", EVENT, None, '{"totalTickets":1}'), "")
        self.book("a", 201, "booked")
        self.book("b", 202, "waiting", position=1)
        self.book("c", 202, "waiting", position=2)
        self.ask("look", "", 200, remainingTickets=0, waitingListCount=2)
        self.cancel("a", 200, "cancelled", reassigned=True)
        self.ask("poll", "c", 200, status="waiting", seq=5, position=1)
        self.ask("poll", "d", 404, code="not_booked")
        self.cancel("d", 404, "", code="not_booked")
        self.book("b", 200, "booked", seq=7)

    def book(self, user: str, status: int, state: str, **more: Any) -> None:
        key = f"k{len(self.operations)}"
        self._model.book(EVENT, user, f"{key}/{DIGEST}")
        self._note("book", user, key, status, {"status": state, **more})

    def cancel(self, user: str, status: int, state: str, **more: Any) -> None:
        key = f"k{len(self.operations)}"
        self._model.cancel(EVENT, user, f"{key}/{DIGEST}")
        self._note("cancel", user, key, status, {"status": state or status, **more})

    def ask(self, kind: Kind, user: str, code: int, /, **body: Any) -> None:
        self._note(kind, user, "", code, body)

    def _note(self, kind: Kind, user: str, key: str, status: int, body: dict[str, Any]) -> None:
        begins = float(len(self.operations))
        made = [one for one in self._model.changes if one.seq > self.rows[-1].change.seq]
        for one in made:
            found = json.loads(one.details).get("key", "") if one.details else ""
            self._put(Change(one.seq, 1, 0, one.kind, one.event, one.user, one.details), found)
        seq = {"seq": made[0].seq, "epoch": 1} if made else {}
        told = Operation(kind, EVENT, user, key, begins, begins + 0.9, status, {**seq, **body}, 1)
        self.operations.append(told)

    def _put(self, change: Change, key: str) -> None:
        self.rows.append(Row(0, change, key))

    def told(self, at: int, **body: Any) -> None:
        """Have an operation told something else."""
        self.operations[at].body |= body


def test_a_history_that_is_right_is_passed() -> None:
    """What the model says of each operation, in an order that the times allow, is no fault."""
    sale = Sale()
    assert [row.change.kind for row in sale.rows] == [
        *("epoch_began", "opened", "booked", "waiting", "waiting", "cancelled", "promoted"),
    ]
    assert check(sale.operations, sale.rows) == []


def test_a_replay_tells_of_a_change_of_an_earlier_epoch() -> None:
    """The answer to a repeat is told in the epoch in which it is asked."""
    sale = Sale()
    sale.told(0, epoch=4, current={"status": "booked", "seq": 3})
    sale.operations[0].sends = 2
    assert check(sale.operations, sale.rows) == []


def test_who_asks_once_is_not_answered_as_a_repeat() -> None:
    """A call that was carried out again would be, under its key."""
    sale = Sale()
    sale.told(0, epoch=1, current={"status": "booked", "seq": 3})
    (wrong,) = check(sale.operations, sale.rows)
    assert "sent once" in wrong


def swap(sale: Sale) -> None:
    """Have b's joining on record before a's booking."""
    rows = sale.rows
    a, b = rows[2], rows[3]
    rows[2] = Row(0, b.change._replace(seq=3, kind="booked"), b.key)
    rows[3] = Row(0, a.change._replace(seq=4, kind="waiting"), a.key)


def row_of(sale: Sale, seq: int, **words: Any) -> None:
    """Put something else on record."""
    row = sale.rows[seq - 1]
    sale.rows[seq - 1] = Row(0, row.change._replace(**words), row.key)


def twice(sale: Sale) -> None:
    """Have a's cancellation carried out a second time, after b has cancelled."""
    sale.rows.append(Row(0, sale.rows[5].change._replace(seq=8), sale.rows[5].key))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda s: s.rows.pop(), "not promoted"),
        (lambda s: s.rows.pop(2), "2"),
        (lambda s: s.rows.__delitem__(slice(4, None)), "on record"),
        (swap, "seq"),
        (twice, "k4 has 2 changes"),
        (lambda s: row_of(s, 7, user_id="c"), "the model makes"),
        (lambda s: row_of(s, 4, kind="booked"), "the model"),
        (lambda s: row_of(s, 6, details=f'{{"key":"k4","digest":"{DIGEST}"}}'), "details"),
        (lambda s: s.operations.pop(2), "nobody asked for it"),
        (lambda s: s.told(0, seq=4), "its change is 1-3"),
        (lambda s: s.told(0, epoch=2), "its change is 1-3"),
        (lambda s: s.told(0, userId="b"), "the answer is about {'userId': 'b'}"),
        (lambda s: s.told(3, eventId=EVENT + 1), "the answer is about {'eventId': 8}"),
        (lambda s: s.told(0, status="waiting"), "its change is booked"),
        (lambda s: s.told(2, position=1), "the model says position 2"),
        (lambda s: s.told(3, waitingListCount=1), "never so"),
        (lambda s: s.told(4, reassigned=False), "the model says reassigned True"),
        (lambda s: s.told(5, position=2), "position 2 is not in 1 to 1"),
        (lambda s: s.told(5, status="booked"), "was not booked since seq 5"),
        (lambda s: s.told(8, seq=4, status="waiting", position=1), "not within"),
        (lambda s: setattr(s.operations[7], "user", "b"), "to cancel all the time"),
        (lambda s: setattr(s.operations[6], "user", "b"), "known since"),
        (lambda s: setattr(s.operations[8], "completed", None), "no end"),
        (lambda s: setattr(s.operations[0], "status", 500), "its change is booked"),
        (lambda s: setattr(s.operations[8], "status", 422), "no such answer"),
        (lambda s: setattr(s.operations[0], "invoked", 1.95), "is not in"),
    ],
)
def test_what_is_wrong_is_found(wrong: Callable[[Sale], object], says: str) -> None:
    """A lost, doubled, reordered or invented change; an answer that the model does not give."""
    sale = Sale()
    wrong(sale)
    assert says in "\n".join(check(sale.operations, sale.rows))


POLLS = (
    ("poll", "a", 200, {"status": "booked", "seq": 3}),
    ("poll", "a", 404, {"code": "not_booked"}),
)
LOOKS = (
    ("look", "", 200, {"remainingTickets": 0, "waitingListCount": 0}),
    ("look", "", 200, {"remainingTickets": 1, "waitingListCount": 0}),
)


@pytest.mark.parametrize("seen", [POLLS, LOOKS], ids=["polls", "looks"])
def test_who_looks_later_sees_no_less(seen: Any) -> None:
    """While a booking is under way two look, one after the other: it is made once, or not yet."""
    found = []
    for order in (seen, seen[::-1]):
        sale = Sale()
        for begins, (kind, user, status, body) in zip((0.1, 0.3), order, strict=True):
            looked = Operation(kind, EVENT, user, "", begins, begins + 0.1, status, body, 1)
            sale.operations.append(looked)
        found.append(check(sale.operations, sale.rows))
    assert found[0]
    assert found[1] == []


def test_who_changes_something_later_has_the_greater_seq() -> None:
    """What was seen of a change that is under way is before whatever begins later."""
    sale = Sale()
    b = sale.operations[1]
    b.completed = 2.9
    seen = {"status": "waiting", "seq": 4, "position": 1}
    sale.operations.append(Operation("poll", EVENT, "b", "", 0.1, 0.2, 200, seen, 1))
    sale.operations[0].invoked, b.invoked = 0.3, 0.0
    assert "seq 3 is not in 5" in "\n".join(check(sale.operations, sale.rows))


def late(user: str = "d", *, sends: int = 2) -> Sale:
    """Have who was told that there is nothing to cancel book, and the cancellation come again."""
    sale = Sale()
    told = sale.operations[7]
    told.user, told.sends = user, sends
    sale.book("d", 202, "waiting", position=2)
    last = sale.rows[-1].change.seq
    sale._model.cancel(EVENT, user, f"{told.key}/{DIGEST}")
    for made in sale._model.changes:
        if made.seq > last:
            key = told.key if made.details else ""
            about = (made.kind, made.event, made.user, made.details)
            sale._put(Change(made.seq, 1, 0, *about), key)
    return sale


@pytest.mark.parametrize("answered", [7.9, 9.95], ids=["before", "while somebody books"])
def test_what_changed_nothing_may_be_carried_out_late(answered: float) -> None:
    """It was sent twice; the sending that was given up arrives when there is something to do."""
    sale = late()
    sale.operations[7].completed = answered
    assert sale.rows[-1].change.kind == "left"
    assert check(sale.operations, sale.rows) == []


def elsewhere(sale: Sale) -> None:
    """Have the late change made of somebody else's request."""
    sale.operations[7].kind = "book"


def much_later(sale: Sale) -> None:
    """Have whatever comes behind the cancellation begin when nothing can be on its way any more."""
    for one in sale.operations[8:]:
        assert one.completed is not None
        one.invoked, one.completed = one.invoked + LATE_S, one.completed + LATE_S


@pytest.mark.parametrize(
    ("sale", "wrong", "says"),
    [
        (lambda: late(sends=1), lambda _: None, "is not in"),
        (lambda: late("b"), lambda _: None, "seq 9 is not in"),
        (late, elsewhere, "its change is left"),
        (late, much_later, "seq 9 is not in"),
    ],
    ids=["sent once", "there was something", "it was no cancellation", "nothing is held so long"],
)
def test_what_comes_late_excuses_nothing_else(
    sale: Callable[[], Sale], wrong: Callable[[Sale], object], says: str
) -> None:
    """The answer was true before the change, which was asked for, and comes soon after it."""
    made = sale()
    wrong(made)
    assert says in "\n".join(check(made.operations, made.rows))


def test_one_without_an_end_says_nothing_of_the_others() -> None:
    """That it has none is wrong; when the others were carried out it does not tell."""
    sale = Sale()
    sale.operations[4].completed = None
    (wrong,) = check(sale.operations, sale.rows)
    assert "it has no end" in wrong
