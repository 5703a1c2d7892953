"""What was answered, against the lineage that is about to go on: exact ranges, and none in vain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.lineage import Epoch, Lineage, Position
from service.losses import Loss, find_loss

ONE = Lineage([Epoch(5, 0, 0, "begin")])
REBUILT = ONE.joined(Epoch(6, 90, 5, "rebuild"))


def begins(number: int, seq: int) -> Epoch:
    """Return an epoch that is about to begin after a seq."""
    return Epoch(number, seq, number - 1, "rebuild")


@pytest.mark.parametrize(
    ("answered", "lineage", "epoch", "lost"),
    [
        # What the new epoch continues was not lost.
        ([(5, 100)], ONE, begins(6, 100), None),
        ([(5, 100)], ONE, begins(6, 120), None),
        ([], ONE, begins(6, 0), None),
        # What it leaves out was, from its beginning to the highest that was answered.
        ([(5, 100)], ONE, begins(6, 90), Loss(5, 91, 100)),
        ([(5, 100), (5, 95), (5, 80)], ONE, begins(6, 90), Loss(5, 91, 100)),
        # The least beginning of any later epoch counts.
        ([(5, 100)], REBUILT, begins(7, 120), Loss(5, 91, 100)),
        ([(5, 90), (6, 120)], REBUILT, begins(7, 120), None),
        ([(5, 100), (6, 95)], REBUILT, begins(7, 80), Loss(6, 81, 100)),
        # An epoch that has begun already.
        ([(5, 100)], REBUILT, None, Loss(5, 91, 100)),
        ([(6, 100)], REBUILT, None, None),
        # Two empty stores, and a worker that has answered: another life's.
        ([(3, 40)], Lineage(), begins(4, 0), Loss(3, 1, 40)),
        # An epoch that this record never had, with a seq that it has.
        ([(8, 50)], REBUILT, begins(9, 120), Loss(8, 50, 50)),
        ([(8, 50)], REBUILT, None, Loss(8, 50, 50)),
    ],
)
def test_what_is_lost_is_told_exactly(
    answered: list[tuple[int, int]], lineage: Lineage, epoch: Epoch | None, lost: Loss | None
) -> None:
    """By the first seq that no epoch continues, and the last that was answered."""
    positions = [Position(*at) for at in answered]
    assert find_loss(positions, lineage, begins=epoch) == lost


@pytest.mark.parametrize(
    ("confirmed", "lost"),
    [
        (Loss(5, 91, 100), None),
        (Loss(6, 80, 120), None),
        (Loss(5, 91, 99), Loss(5, 91, 100)),
        (Loss(5, 92, 100), Loss(5, 91, 100)),
        (Loss(4, 91, 100), Loss(5, 91, 100)),
        (Loss(6, 91, 95), Loss(5, 91, 100)),
    ],
)
def test_a_loss_that_was_confirmed_is_none_and_a_larger_one_is(
    confirmed: Loss, lost: Loss | None
) -> None:
    """What nobody has read nobody has confirmed."""
    found = find_loss([Position(5, 100)], ONE, begins=begins(6, 90), confirmed=[confirmed])
    assert found == lost


def test_an_epoch_of_another_life_is_confirmed_with_what_was_lost_in_it() -> None:
    """Its seqs say nothing on this record; its number does."""
    answered = [Position(8, 50)]
    assert find_loss(answered, REBUILT, confirmed=[Loss(8, 91, 100)]) is None
    assert find_loss(answered, REBUILT, confirmed=[Loss(7, 91, 100)]) == Loss(8, 50, 50)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 60))
def test_nothing_is_lost_exactly_where_all_is_continued(one: int, other: int, seq: int) -> None:
    """Of any two answers and any beginning."""
    answered = [Position(5, one), Position(5, other)]
    lost = find_loss(answered, ONE, begins=begins(6, seq))
    assert (lost is None) == (max(one, other) <= seq)
    assert lost is None or (lost.first, lost.last) == (seq + 1, max(one, other))
