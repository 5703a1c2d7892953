"""The replay of one event: the reference model's history is lawful, and no other is."""

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.replay import Breach, EventReplay
from tests.model import PartitionModel

USERS = "abcdef"
STEPS = st.lists(st.tuples(st.sampled_from(["book", "cancel"]), st.sampled_from(USERS)))
KINDS = ["booked", "waiting", "promoted", "cancelled", "left"]
ROWS = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("abc")), max_size=8)

Rows = Sequence[tuple[str, str]]


def breaches_of(capacity: int, rows: Rows) -> list[Breach]:
    """Return all that is wrong with rows whose seqs are 1, 2, 3 and so on."""
    replay = EventReplay(capacity)
    found = [
        breach
        for seq, (kind, user) in enumerate(rows, start=1)
        for breach in replay.apply(seq, kind, user)
    ]
    return [*found, *replay.end()]


def is_of_the_model(capacity: int, rows: Rows) -> bool:
    """Whether requests could have led to these rows: each row's user asked, but the promoted."""
    model = PartitionModel()
    model.open(1, capacity)
    model.changes.clear()
    while len(model.changes) < len(rows):
        before = len(model.changes)
        kind, user = rows[before]
        (model.book if kind in ("booked", "waiting") else model.cancel)(1, user)
        made = [(change.kind, change.user) for change in model.changes[before:]]
        if not made or made != list(rows[before : before + len(made)]):
            return False
    return True


@given(capacity=st.integers(1, 3), steps=STEPS)
def test_a_replay_is_the_model(capacity: int, steps: list[tuple[str, str]]) -> None:
    """Every history that the model makes is lawful, and comes to the model's state."""
    model = PartitionModel()
    model.open(1, capacity)
    event = model.events[1]
    most = 0
    for operation, user in steps:
        getattr(model, operation)(1, user)
        most = max(most, event.sold)
    replay = EventReplay(capacity)
    for change in model.changes:
        if change.user is not None:
            assert replay.apply(change.seq, change.kind, change.user) == []
    assert replay.end() == []
    assert replay.states == event.states
    assert list(replay.line) == event.waiting_list
    assert (replay.sold, replay.most_sold) == (event.sold, most)
    assert replay.changes == len(model.changes) - 1


@given(capacity=st.integers(1, 2), rows=ROWS)
def test_what_the_model_cannot_have_made_is_a_breach(
    capacity: int, rows: list[tuple[str, str]]
) -> None:
    """And the reverse: there is a breach in exactly those rows that no requests lead to."""
    assert (breaches_of(capacity, rows) == []) == is_of_the_model(capacity, rows)


@given(capacity=st.integers(1, 3), steps=STEPS, data=st.data())
def test_one_row_changed_is_a_breach_unless_the_model_could_have_made_it(
    capacity: int, steps: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Around lawful histories, where a random journal seldom comes."""
    model = PartitionModel()
    model.open(1, capacity)
    for operation, user in steps:
        getattr(model, operation)(1, user)
    rows = [(change.kind, change.user) for change in model.changes if change.user is not None]
    place = data.draw(st.integers(0, len(rows)))
    row = data.draw(st.tuples(st.sampled_from(KINDS), st.sampled_from(USERS)))
    removed = data.draw(st.integers(0, 1))
    rows[place : place + removed] = data.draw(st.sampled_from([[row], []]))
    assert (breaches_of(capacity, rows) == []) == is_of_the_model(capacity, rows)


FULL = [("booked", "a"), ("waiting", "b"), ("waiting", "c")]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (
            [("booked", "a"), ("booked", "b")],
            [Breach("oversold", 2, "b", "2 of 1 tickets sold")],
        ),
        (
            [("booked", "a"), ("waiting", "a")],
            [Breach("unlawful", 2, "a", "waiting, who was booked")],
        ),
        ([("cancelled", "a")], [Breach("unlawful", 1, "a", "cancelled, who was a stranger")]),
        (
            [("booked", "a"), ("cancelled", "a"), ("left", "a")],
            [Breach("unlawful", 3, "a", "left, who was cancelled")],
        ),
        (
            [*FULL, ("left", "b"), ("left", "b")],
            [Breach("unlawful", 5, "b", "left, who was gone from the waiting list")],
        ),
        (
            [*FULL, ("cancelled", "a"), ("promoted", "c")],
            [Breach("out_of_order", 5, "c", "promoted before b")],
        ),
        (
            [*FULL, ("cancelled", "a"), ("booked", "d")],
            [
                Breach("out_of_order", 4, "b", "waited, and was not promoted"),
                Breach("out_of_order", 5, "d", "booked before b"),
            ],
        ),
        (
            [*FULL, ("cancelled", "a")],
            [Breach("out_of_order", 4, "b", "waited, and was not promoted")],
        ),
        ([("waiting", "a")], [Breach("out_of_order", 1, "a", "waits though a ticket is free")]),
        (
            [*FULL, ("promoted", "b")],
            [Breach("oversold", 4, "b", "2 of 1 tickets sold")],
        ),
    ],
)
def test_each_rule_names_its_change(rows: Rows, found: list[Breach]) -> None:
    """With seq and user, in words."""
    assert breaches_of(1, rows) == found


def test_a_promotion_that_does_not_follow_at_once_is_late() -> None:
    """Cancellation and promotion are one step: no seq of another event lies between."""
    replay = EventReplay(1)
    for seq, (kind, user) in enumerate([*FULL, ("cancelled", "a")], start=1):
        assert replay.apply(seq, kind, user) == []
    assert [breach.seq for breach in replay.apply(6, "promoted", "b")] == [4]


def test_a_breach_is_named_once() -> None:
    """What follows a breach is judged by what is on record, so that it does not cascade."""
    assert len(breaches_of(2, [("waiting", "a"), ("waiting", "b"), ("left", "a")])) == 1
    still_full = [("booked", "a"), ("booked", "b"), ("booked", "c"), ("cancelled", "a")]
    assert [breach.seq for breach in breaches_of(1, still_full)] == [2, 3]


def test_a_promotion_costs_the_same_however_many_were_promoted_before() -> None:
    """A hundred thousand of them take a few times what as many joinings take, not a hundred."""
    replay = EventReplay(1)
    number = 100_000
    began = time.process_time()
    replay.apply(1, "booked", "u0")
    for place in range(1, number):
        replay.apply(1 + place, "waiting", f"u{place}")
    joined = time.process_time()
    for place in range(1, number):
        seq = number + 2 * place
        assert replay.apply(seq - 1, "cancelled", f"u{place - 1}") == []
        assert replay.apply(seq, "promoted", f"u{place}") == []
    assert time.process_time() - joined < 15 * (joined - began)
