"""Each check of the verifier holds for a sound sale, and breaks for the fault that it is for."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from loadtests.answers import Answers, Told
from loadtests.checks import Check, check_answers
from loadtests.replay import History, Row
from loadtests.stores import OnRecord, check_record
from loadtests.verify import render
from tests.loadtests.sale import FIRST_SEQ, SmallSale, broken, usual_sale, with_told

Found = tuple[Answers, list[Row]]

WHOLE = "the file of answers is whole"
NEVER_OVERSOLD = "never more sold than there are tickets"
LAWFUL = "nobody holds two, every change is lawful"
IN_ORDER = "first come, first served"
BOOKED = "every 201 is on record, once"
WAITING = "every 202 is on record, with its position"
CANCELLED = "every cancellation is on record, once"
RECORDED = "whatever was answered `recorded` is on record"
BY_THE_CLOCK = "who was answered first comes first"
STATES = "repeats and polls tell the truth"
POSITIONS = "positions are those of the journal"
COUNTS = "what people saw at /status was so"
NOTHING_ELSE = "nothing on record that nobody asked for"


def line(answers: Answers, operation: str, user: str, nth: int = 0) -> int:
    """Return the number of somebody's line."""
    of = [n for n, one in enumerate(answers.told) if (one.operation, one.user) == (operation, user)]
    return of[nth]


def told_otherwise(
    operation: str, user: str, nth: int = 0, /, **changed: object
) -> Callable[[Found], Found]:
    """Return a fault: an answer that was other than the sale's."""
    return lambda found: (
        with_told(found[0], line(found[0], operation, user, nth), **changed),
        found[1],
    )


def recorded_otherwise(user: str, kind: str, /, **changed: object) -> Callable[[Found], Found]:
    """Return a fault: a row of the journal that is other than the sale's."""

    def fault(found: Found) -> Found:
        rows = [
            replace(row, **changed) if (row.user, row.kind) == (user, kind) else row  # type: ignore[arg-type]  # by name, in a test
            for row in found[1]
        ]
        assert rows != found[1]
        return found[0], rows

    return fault


def one_more_row(kind: str, user: str) -> Callable[[Found], Found]:
    """Return a fault: a row at the end of the journal that nobody caused."""
    return lambda found: (found[0], [*found[1], Row(found[1][-1].seq + 1, kind, user)])


def one_more_line(operation: str, user: str, nth: int = 0) -> Callable[[Found], Found]:
    """Return a fault: an answer that is there twice."""

    def fault(found: Found) -> Found:
        again = found[0].told[line(found[0], operation, user, nth)]
        return replace(found[0], told=(*found[0].told, again)), found[1]

    return fault


def without_rows_of(user: str) -> Callable[[Found], Found]:
    """Return a fault: changes that were answered and are not on record."""
    return lambda found: (found[0], [row for row in found[1] if row.user != user])


def both(first: Callable[[Found], Found], second: Callable[[Found], Found]) -> Callable[..., Found]:
    """Return a fault that is two at once."""
    return lambda found: second(first(found))


FAULTS: tuple[tuple[str, str, Callable[[Found], Found]], ...] = (
    (WHOLE, "cut off", lambda found: (replace(found[0], lines=None), found[1])),
    (WHOLE, "a line more", one_more_line("look", "ann")),
    (WHOLE, "somebody still there", lambda found: (replace(found[0], people=4), found[1])),
    (NEVER_OVERSOLD, "a ticket by hand", one_more_row("booked", "eve")),
    (LAWFUL, "a second ticket", one_more_row("booked", "ann")),
    (LAWFUL, "cancelled without a ticket", one_more_row("cancelled", "bob")),
    (LAWFUL, "promoted without waiting", one_more_row("promoted", "zoe")),
    (LAWFUL, "left without waiting", one_more_row("left", "ann")),
    (IN_ORDER, "another promoted", recorded_otherwise("cid", "promoted", user="eva")),
    (IN_ORDER, "nobody promoted", recorded_otherwise("cid", "promoted", kind="left")),
    (IN_ORDER, "booked past the line", recorded_otherwise("eva", "waiting", kind="booked")),
    (IN_ORDER, "waits beside a free ticket", recorded_otherwise("bob", "booked", kind="waiting")),
    (BOOKED, "lost", without_rows_of("ann")),
    (BOOKED, "another seq", told_otherwise("book", "ann", seq=FIRST_SEQ + 2)),
    (BOOKED, "only waiting", recorded_otherwise("bob", "booked", kind="waiting")),
    (BOOKED, "twice", one_more_line("book", "ann")),
    (WAITING, "lost", without_rows_of("eva")),
    (WAITING, "another position", told_otherwise("book", "dee", position=1)),
    (CANCELLED, "lost", without_rows_of("bob")),
    (CANCELLED, "not reassigned", told_otherwise("cancel", "bob", reassigned=False)),
    (CANCELLED, "reassigned", told_otherwise("cancel", "dee", reassigned=True)),
    (CANCELLED, "twice", one_more_line("cancel", "dee")),
    (
        RECORDED,
        "lost",
        both(told_otherwise("book", "ann", durability="recorded"), without_rows_of("ann")),
    ),
    (
        RECORDED,
        "of somebody else",
        told_otherwise("book", "ann", durability="recorded", seq=FIRST_SEQ + 2),
    ),
    (RECORDED, "another state", told_otherwise("poll", "cid", durability="recorded", state="left")),
    (
        BY_THE_CLOCK,
        "answered before it was so",
        told_otherwise("book", "bob", sent=1.0, answered=2.0),
    ),
    (BY_THE_CLOCK, "overtaken", told_otherwise("book", "bob", sent=900.0, answered=901.0)),
    (STATES, "waits, says the record", told_otherwise("poll", "dee", state="booked")),
    (STATES, "an old state", told_otherwise("poll", "cid", state="waiting", seq=FIRST_SEQ + 3)),
    (STATES, "of somebody else", told_otherwise("poll", "dee", seq=FIRST_SEQ + 5)),
    (STATES, "nothing to cancel", told_otherwise("cancel", "bob", 1, user="ann")),
    (POSITIONS, "too far back", told_otherwise("poll", "eva", position=3)),
    (POSITIONS, "too far in front", told_otherwise("poll", "dee", position=1)),
    (COUNTS, "a ticket more", told_otherwise("look", "eva", remaining=1)),
    (COUNTS, "of another time", told_otherwise("look", "cid", waiting=3)),
    (NOTHING_ELSE, "nobody asked", one_more_row("waiting", "eve")),
    (
        NOTHING_ELSE,
        "nobody was told",
        lambda found: (replace(found[0], told=found[0].told[:-6]), found[1]),
    ),
)


def test_a_sound_sale_breaks_nothing() -> None:
    """No check finds anything in a sale that the reference model held."""
    sale = usual_sale()
    assert broken(sale.answers, sale.rows) == set()


@pytest.mark.parametrize(
    ("name", "fault"), [pytest.param(n, f, id=f"{n}-{w}") for n, w, f in FAULTS]
)
def test_a_fault_breaks_its_check(name: str, fault: Callable[[Found], Found]) -> None:
    """The check that is there for a fault finds it."""
    sale = usual_sale()
    assert name in broken(*fault((sale.answers, sale.rows)))


def test_every_check_has_a_fault() -> None:
    """No check of the answers is without a broken variant here."""
    sale = usual_sale()
    history = History(FIRST_SEQ, 2, sale.rows)
    assert {check.name for check in check_answers(sale.answers, history)} == {
        n for n, _, _ in FAULTS
    }


def test_what_is_recorded_and_what_is_pending_breaks_nothing() -> None:
    """Each `recorded` has its row; a pending answer says no state, position or outcome yet."""
    sale = usual_sale()
    told = [
        replace(one, durability="recorded" if one.status in (200, 201, 202) and one.seq else None)
        for one in sale.told
    ]
    first = line(sale.answers, "book", "ann"), line(sale.answers, "book", "dee")
    for number in (*first, line(sale.answers, "cancel", "dee")):
        told[number] = replace(
            told[number], status=202, state="pending", position=None, durability="none"
        )
    assert broken(replace(sale.answers, told=tuple(told)), sale.rows) == set()


def test_a_lost_answer_explains_one_change() -> None:
    """A booking whose answer was lost is no fault; a second change of that user is one."""
    sale = SmallSale(2)
    sale.book("ann")
    sale.lose("book", "bob")
    sale.model.book(7, "bob")
    assert broken(sale.answers, sale.rows) == set()
    sale.model.cancel(7, "bob")
    assert broken(sale.answers, sale.rows) == {NOTHING_ELSE}


def test_a_lost_answer_that_did_nothing_is_no_fault() -> None:
    """A request that never arrived leaves no row, and a repeat is answered as a first booking."""
    sale = SmallSale(1)
    sale.lose("book", "ann")
    sale.book("ann", "bob")
    sale.lose("cancel", "bob")
    assert broken(sale.answers, sale.rows) == set()


def test_at_the_same_time_either_may_be_first() -> None:
    """Of two requests that overlap no order is expected, whoever was answered first."""
    sale = SmallSale(2)
    sale.book("ann", "bob")
    ann, bob = sale.told
    overlapping: list[Told] = [
        replace(bob, sent=100.5, answered=101.5),
        replace(ann, sent=101.0, answered=102.0),
    ]
    sale.told[:] = overlapping
    assert broken(sale.answers, sale.rows) == set()
    sale.told[1] = replace(ann, sent=101.6, answered=102.0)
    assert BY_THE_CLOCK in broken(sale.answers, sale.rows)


def on_record(sale: SmallSale) -> OnRecord:
    """Return the record as it should be after a sale."""
    history = History(FIRST_SEQ, sale.tickets, sale.rows)
    return OnRecord(
        opened=FIRST_SEQ,
        rows=sale.rows,
        capacity_opened=sale.tickets,
        capacity=sale.tickets,
        sold=history.sold,
        waiting=history.waiting,
        states={user: (stay.state, stay.since) for user, stay in history.states.items()},
        journal=Check("journal"),
    )


@pytest.mark.parametrize(
    ("changed", "table"),
    [
        ({}, None),
        ({"capacity": 3}, "events"),
        ({"capacity_opened": 3}, "events"),
        ({"sold": 1}, "events"),
        ({"waiting": 2}, "events"),
        ({"states": {}}, "bookings"),
        ({"states": "a row more"}, "bookings"),
        ({"states": "another seq"}, "bookings"),
    ],
)
def test_the_tables_are_held_against_the_journal(
    changed: dict[str, object], table: str | None
) -> None:
    """A counter, a row more, a row less and a row that differs are each found."""
    sale = usual_sale()
    found = on_record(sale)
    if changed.get("states") == "a row more":
        changed = {"states": {**found.states, "eve": ("booked", 99)}}
    elif changed.get("states") == "another seq":
        changed = {"states": {**found.states, "ann": ("booked", 99)}}
    found = replace(found, **changed)  # type: ignore[arg-type]  # by name, in a test
    checks = check_record(found, History(FIRST_SEQ, 2, sale.rows), 2)
    wrong = [check.name for check in checks if check.wrong]
    assert wrong == ([f"the table {table} is the replayed journal"] if table else [])


def test_the_report_names_the_first_cases() -> None:
    """A broken promise stands with its first cases and the number of the others; else one line."""
    sale = usual_sale().answers.sale
    text = render(sale, [Check("a", 9), Check("b", 9, [f"case {n}" for n in range(7)])], "")
    assert "BROKEN: b\n  case 0\n" in text
    assert "case 5" not in text
    assert text.endswith("  and 2 more")
    assert "BROKEN: a" not in text
    assert render(sale, [Check("a", 9)], "").endswith("Every check holds.")
    assert render(sale, [Check("a", 9)], "busy").endswith("agree: busy")
