"""What a person does, and which answers the contract allows."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest

from service.crowd import (
    PAUSE_MAX_S,
    TRIES_MAX,
    Answer,
    Click,
    Habits,
    Operation,
    Person,
    arrival,
    visit,
)

EVENT = 7
BOOKING = {
    "message": "-",
    "eventId": EVENT,
    "userId": "ann",
    "quantity": 1,
    "durability": "fsync",
    "epoch": 1,
    "seq": 5,
}
BOOKED = {**BOOKING, "status": "booked"}
WAITING = {**BOOKING, "status": "waiting", "position": 3}
CANCELLED = {**BOOKING, "status": "cancelled", "reassigned": True}
LEFT = {**CANCELLED, "status": "left_waiting_list", "reassigned": False}
STATE = {
    "eventId": EVENT,
    "userId": "ann",
    "status": "waiting",
    "quantity": 1,
    "durability": "fsync",
    "seq": 5,
}
PENDING = {**BOOKING, "status": "pending", "durability": "none"}
STATUS = {
    "eventId": EVENT,
    "name": "n",
    "totalTickets": 9,
    "remainingTickets": 9,
    "waitingListCount": 0,
    "createdAt": "-",
    "updatedAt": "-",
}


def problem(code: str, status: int) -> dict[str, object]:
    """Return a problem's body."""
    words = dict.fromkeys(("type", "title", "detail", "message"), "-")
    return {**words, "status": status, "code": code}


def told(status: int, body: Mapping[str, Any], retry_after: float | None = None) -> Answer:
    """Return an answer."""
    return Answer(status, body, retry_after, 1.0, 2.0)


ALLOWED: tuple[tuple[Operation, int, Mapping[str, Any], str], ...] = (
    ("look", 200, STATUS, "looked"),
    ("book", 201, BOOKED, "booked"),
    ("book", 202, WAITING, "waiting"),
    ("book", 202, PENDING, "pending"),
    ("poll", 200, STATE, "polled"),
    ("cancel", 200, CANCELLED, "cancelled"),
    ("cancel", 200, LEFT, "left"),
    ("cancel", 202, PENDING, "pending"),
    ("book", 0, {}, "no answer"),
)


@pytest.mark.parametrize(("operation", "status", "body", "outcome"), ALLOWED)
def test_the_contract_is_allowed(
    operation: Operation, status: int, body: Mapping[str, Any], outcome: str
) -> None:
    """Every answer to a first request has its name, sold-out ones and lost ones too."""
    ann = Person(EVENT, "ann")
    ann.request(operation)
    assert ann.judge(operation, told(status, body)) == (outcome, "")


OUTSIDE: tuple[tuple[Operation, int, Mapping[str, Any], str], ...] = (
    ("look", 404, problem("event_not_found", 404), "404"),
    ("look", 200, {**STATUS, "remainingTickets": 10}, "more tickets"),
    ("look", 200, {**STATUS, "remainingTickets": -1}, "remainingTickets"),
    ("look", 200, {**STATUS, "eventId": 8}, "event 8"),
    ("look", 307, {}, "307"),
    ("book", 201, WAITING, "201 waiting"),
    ("book", 202, BOOKED, "202 booked"),
    ("book", 202, {**PENDING, "userId": "bob"}, "about bob"),
    ("book", 202, {**PENDING, "durability": "fsync"}, "durability"),
    ("book", 201, PENDING, "status"),
    ("book", 201, {**BOOKED, "durability": "none"}, "durability"),
    ("cancel", 200, PENDING, "status"),
    ("book", 202, {**WAITING, "position": 0}, "position"),
    ("book", 202, {**BOOKING, "status": "waiting"}, "position None"),
    ("book", 200, BOOKED, "somebody else's"),
    ("book", 201, {**BOOKED, "userId": "bob"}, "about bob"),
    ("book", 201, {}, "message"),
    ("book", 409, problem("not_booked", 409), "409"),
    ("book", 500, problem("internal_error", 500), "500"),
    ("book", 503, problem("overloaded", 503), "Retry-After"),
    ("cancel", 404, problem("not_booked", 404), "to a first cancellation"),
    ("poll", 404, problem("not_booked", 404), "404"),
)


@pytest.mark.parametrize(("operation", "status", "body", "reason"), OUTSIDE)
def test_what_the_contract_does_not_allow_is_outside(
    operation: Operation, status: int, body: Mapping[str, Any], reason: str
) -> None:
    """It is named with a reason."""
    ann = Person(EVENT, "ann")
    ann.request(operation)
    outcome, why = ann.judge(operation, told(status, body))
    assert outcome == "outside"
    assert reason in why


def test_a_repeat_may_be_answered_as_such() -> None:
    """200 to a second booking, 404 to a second cancellation, 503 with a delay; no second 201."""
    ann = Person(EVENT, "ann")
    for operation in ("book", "book", "cancel", "cancel"):
        ann.request(operation)
    assert ann.judge("book", told(201, BOOKED))[0] == "booked"
    assert ann.judge("book", told(200, BOOKED))[0] == "repeated"
    assert ann.judge("book", told(503, problem("overloaded", 503), 1.0))[0] == "busy"
    assert ann.judge("book", told(201, BOOKED)) == ("outside", "201 a second time")
    assert ann.judge("cancel", told(200, CANCELLED))[0] == "cancelled"
    assert ann.judge("cancel", told(404, problem("not_booked", 404)))[0] == "cancelled before"
    assert ann.judge("cancel", told(404, problem("event_not_found", 404)))[0] == "outside"


def test_a_level_that_was_asked_for_is_given_or_pending() -> None:
    """Less than that under another name is outside; whoever asked for nothing takes what comes."""
    ann, bob = Person(EVENT, "ann", "recorded"), Person(EVENT, "bob")
    for operation in ("book", "cancel"):
        ann.request(operation)
    recorded = {"durability": "recorded"}
    assert ann.judge("book", told(202, PENDING))[0] == "pending"
    assert ann.judge("book", told(200, {**BOOKED, **recorded}))[0] == "outside"
    ann.request("book")
    assert ann.judge("book", told(200, {**BOOKED, **recorded}))[0] == "repeated"
    assert ann.judge("cancel", told(200, {**CANCELLED, **recorded}))[0] == "cancelled"
    less = ("outside", "fsync where recorded was asked for")
    assert ann.judge("book", told(201, BOOKED)) == less
    assert ann.judge("cancel", told(200, CANCELLED)) == less
    bob.request("book")
    assert bob.judge("book", told(201, {**BOOKED, **recorded, "userId": "bob"}))[0] == "booked"


def walk(
    habits: Habits, answer: Callable[[Click], Answer], seed: int = 1
) -> tuple[list[Click], list[float], bool]:
    """Be one person; return the clicks, the pauses, and whether all were answered."""
    way = visit(habits, Random(seed))
    clicks: list[Click] = []
    pauses: list[float] = []
    step = next(way)
    try:
        while True:
            if isinstance(step, Click):
                clicks.append(step)
                step = way.send([answer(step)] * (2 if step.twice else 1))
            else:
                pauses.append(step)
                step = next(way)
    except StopIteration as end:
        return clicks, pauses, bool(end.value)


def usual(click: Click) -> Answer:
    """Answer as a sold-out sale does."""
    return told(202, WAITING) if click.operation == "book" else told(200, STATE)


def test_people_look_book_poll_and_cancel() -> None:
    """Of a thousand waiters all look, book and poll; the shares cancel and repeat."""
    habits = Habits(cancel=0.3, double_click=0.2, reload=0.1)
    ways = [walk(habits, usual, seed)[0] for seed in range(1000)]
    assert all([click.operation for click in way[:2]] == ["look", "book"] for way in ways)
    assert all(1 <= sum(click.operation == "poll" for click in way) <= 3 for way in ways)
    cancelled = sum(any(click.operation == "cancel" for click in way) for way in ways)
    assert 250 < cancelled < 350
    assert 150 < sum(way[1].twice for way in ways) < 250
    reloaded = sum(sum(click.operation == "book" for click in way) == 2 for way in ways)
    assert 60 < reloaded < 140


def test_who_holds_a_ticket_polls_nothing() -> None:
    """A holder has no position; and a waiter who was promoted asks no more."""
    habits = Habits(cancel=0, double_click=0, reload=0)
    booked = {"book": told(201, BOOKED)}
    clicks, _, _ = walk(habits, lambda click: booked.get(click.operation, told(200, STATUS)))
    assert [click.operation for click in clicks] == ["look", "book"]
    promoted = {"book": told(202, WAITING), "poll": told(200, {**STATE, "status": "booked"})}
    for seed in range(20):
        clicks, _, _ = walk(
            habits, lambda click: promoted.get(click.operation, told(200, STATUS)), seed
        )
        assert [click.operation for click in clicks] == ["look", "book", "poll"]


def test_a_busy_service_is_asked_again_after_its_delay() -> None:
    """The same click, not before Retry-After and not long after; nobody waits for ever."""
    answers = iter([told(503, {}, 2.0), told(0, {}), told(503, {}, 3600.0), told(200, STATUS)])
    clicks, pauses, answered = walk(
        Habits(cancel=0, double_click=0, reload=0, look_s=0, think_s=0, polls_max=1),
        lambda click: next(answers) if click.operation == "look" else usual(click),
    )
    assert answered
    assert [click.operation for click in clicks] == ["look"] * 4 + ["book", "poll"]
    assert 2.0 <= pauses[1] <= 3.0
    assert 1.0 <= pauses[2] <= 1.5
    assert PAUSE_MAX_S <= pauses[3] <= PAUSE_MAX_S * 1.5


def test_a_service_that_never_answers_is_given_up() -> None:
    """After so many tries, and the visit says so."""
    clicks, _, answered = walk(Habits(), lambda _: told(0, {}))
    assert not answered
    assert len(clicks) == TRIES_MAX


def test_half_come_in_the_first_eighth() -> None:
    """A spike at the opening and a tail to the end, in order."""
    times = [arrival(share / 1000) for share in range(1000)]
    assert times == sorted(times)
    assert times[0] == 0
    assert times[500] == pytest.approx(0.125, abs=0.005)
    assert 0.85 < times[999] < 1
