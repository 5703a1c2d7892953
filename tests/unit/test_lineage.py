"""Lineage: which positions count, after rebuilds that went back behind others."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lineage import NOWHERE, Epoch, Lineage, Position


def lineage(**beginnings: int) -> Lineage:
    """Build a lineage: e1=0, e2=10 are epochs 1 and 2 that begin after seqs 0 and 10."""
    return Lineage(Epoch(int(name[1:]), seq, 0, "continue") for name, seq in beginnings.items())


CALM = lineage(e1=0, e2=10, e5=20)
"""Three epochs, each beginning where the one before ended."""

BACK = lineage(e1=0, e2=10, e3=20, e4=5)
"""Epoch 4 was rebuilt from a record that ended at 5: nothing of 2 and 3 counts, nor 1 from 6 on."""

TWICE = lineage(e1=0, e2=10, e3=4, e4=8)
"""Epoch 3 went back behind 2, and 4 goes on after 3."""


@pytest.mark.parametrize(
    ("history", "epoch", "begins", "ends"),
    [
        (CALM, 1, 0, 10),
        (CALM, 2, 10, 20),
        (CALM, 5, 20, None),
        (CALM, 3, None, 20),
        (CALM, 6, None, None),
        (BACK, 1, 0, 5),
        (BACK, 2, 10, 5),
        (BACK, 3, 20, 5),
        (BACK, 4, 5, None),
        (TWICE, 1, 0, 4),
        (TWICE, 2, 10, 4),
        (TWICE, 3, 4, 8),
        (TWICE, 4, 8, None),
        (lineage(), 1, None, None),
    ],
)
def test_an_epoch_ends_at_the_least_beginning_of_any_later_one(
    history: Lineage, epoch: int, begins: int | None, ends: int | None
) -> None:
    """Not at that of the next one: a rebuild may reach back behind several."""
    assert (history.begins(epoch), history.ends(epoch)) == (begins, ends)


@pytest.mark.parametrize(
    ("history", "held", "lost"),
    [
        (
            CALM,
            [(1, 1), (1, 10), (2, 11), (2, 20), (5, 21), (5, 10**15)],
            [(1, 0), (1, 11), (2, 10), (2, 21), (5, 20), (3, 15), (6, 30), (0, 1)],
        ),
        (
            BACK,
            [(1, 1), (1, 5), (4, 6), (4, 10**15)],
            [(1, 6), (1, 10), (2, 11), (2, 5), (3, 21), (4, 5)],
        ),
        (TWICE, [(1, 4), (3, 5), (3, 8), (4, 9)], [(1, 5), (2, 11), (3, 9), (3, 4), (4, 8)]),
        (lineage(), [], [(1, 1), (0, 1)]),
    ],
)
def test_a_position_is_held_between_its_epochs_ends(
    history: Lineage, held: list[tuple[int, int]], lost: list[tuple[int, int]]
) -> None:
    """After its epoch's beginning, and not after that of any later one."""
    assert [at for at in held if not history.holds(Position(*at))] == []
    assert [at for at in lost if history.holds(Position(*at))] == []
    assert history.holds(NOWHERE)


@pytest.mark.parametrize(
    ("history", "cursor", "first", "last", "good"),
    [
        # Within an epoch: the next seq, and no other.
        (CALM, (1, 3), 4, (1, 6), True),
        (CALM, (1, 3), 5, (1, 6), False),
        (CALM, (1, 3), 3, (1, 6), False),
        (CALM, (1, 3), 4, (1, 10), True),
        (CALM, (1, 3), 4, (1, 11), False),
        # Into the next epoch: by its very first change, at its beginning.
        (CALM, (1, 10), 11, (2, 11), True),
        (CALM, (1, 9), 10, (2, 10), False),
        (CALM, (1, 9), 10, (2, 11), False),
        (CALM, (1, 11), 12, (2, 12), False),
        (CALM, (2, 20), 21, (5, 21), True),
        (CALM, (1, 10), 11, (5, 21), False),
        # Never back, never into an epoch that is not on record.
        (CALM, (2, 11), 12, (1, 12), False),
        (CALM, (5, 10), 11, (2, 11), False),
        (CALM, (1, 10), 11, (3, 11), False),
        (CALM, (5, 30), 31, (6, 31), False),
        # The first of all.
        (CALM, (0, 0), 1, (1, 1), True),
        (CALM, (0, 0), 1, (2, 11), False),
        (lineage(), (0, 0), 1, (1, 1), False),
        # Entries that were held in memory across two handshakes.
        (BACK, (1, 5), 6, (4, 6), True),
        (BACK, (1, 5), 6, (1, 6), False),
        (BACK, (1, 4), 5, (1, 6), False),
        (BACK, (1, 10), 11, (2, 11), False),
        (BACK, (2, 20), 21, (3, 21), False),
        (BACK, (4, 20), 21, (3, 21), False),
        (TWICE, (1, 4), 5, (3, 5), True),
        (TWICE, (1, 4), 5, (1, 5), False),
        (TWICE, (3, 8), 9, (4, 9), True),
        (TWICE, (3, 8), 9, (3, 9), False),
        (TWICE, (3, 7), 8, (3, 9), False),
    ],
)
def test_an_entry_follows_the_cursor_or_not(
    history: Lineage, cursor: tuple[int, int], first: int, last: tuple[int, int], good: bool
) -> None:
    """No gap, no past, no epoch's tail that a later one has cut off."""
    assert history.follows(Position(*cursor), first, Position(*last)) is good


@pytest.mark.parametrize(
    ("history", "epochs"),
    [
        (CALM, {0: 0, 1: 1, 10: 1, 11: 2, 20: 2, 21: 5, 99: 5}),
        (BACK, {0: 0, 1: 1, 5: 1, 6: 4, 11: 4, 21: 4}),
        (TWICE, {4: 1, 5: 3, 8: 3, 9: 4, 12: 4}),
        (lineage(), {0: 0, 7: 0}),
    ],
)
def test_a_seq_belongs_to_one_epoch(history: Lineage, epochs: dict[int, int]) -> None:
    """The newest that begins before it."""
    assert {seq: history.position_of(seq) for seq in epochs} == {
        seq: Position(epoch, seq) for seq, epoch in epochs.items()
    }


def test_epochs_may_come_in_any_order() -> None:
    """The table's order is not the lineage's."""
    epochs = [Epoch(n, seq, 0, "continue") for n, seq in ((1, 0), (2, 10), (3, 4))]
    for order in itertools.permutations(epochs):
        assert Lineage(order).newest == epochs[2]
        assert Lineage(order).position_of(5) == (3, 5)
    assert Lineage().newest is None


def test_positions_compare_the_epoch_first() -> None:
    """As stream ids do."""
    assert Position(1, 99) < Position(2, 1) < Position(2, 2)
    assert Position(1, 1) > NOWHERE
    assert Position(3, 7).entry_id == "3-7"


@st.composite
def histories(draw: st.DrawFn) -> Lineage:
    """Any lineage that handshakes can make: an epoch begins at a position that is held."""
    epochs = [Epoch(1, 0, 0, "begin")]
    for number in range(2, draw(st.integers(2, 7))):
        beginning = draw(st.integers(epochs[0].beginning + 1, 30))
        epochs.append(Epoch(number, beginning, 0, "rebuild"))
    return Lineage(epochs)


@given(histories(), st.integers(1, 40))
def test_exactly_one_position_of_a_seq_is_held(history: Lineage, seq: int) -> None:
    """And it is the one that `position_of` says."""
    held = [Position(epoch, seq) for epoch in range(10) if history.holds(Position(epoch, seq))]
    assert held == [history.position_of(seq)]


@given(histories(), st.integers(0, 39))
def test_a_held_cursor_is_followed_by_one_change(history: Lineage, seq: int) -> None:
    """Of all epochs' changes with the next seq exactly the one on the lineage is good."""
    cursor = history.position_of(seq)
    follow = [e for e in range(10) if history.follows(cursor, seq + 1, Position(e, seq + 1))]
    assert follow == [history.position_of(seq + 1).epoch]
