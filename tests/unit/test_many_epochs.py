"""A record with very many epochs: the work grows with their number, and no faster. Counted."""

from typing import ClassVar

import pytest

from service.journal_replay import JournalReplay
from service.lineage import Epoch, Lineage, Position
from service.losses import find_loss
from service.outbox import Change, Entry
from service.record import Cursor
from service.rows import chain
from service.succession import Succession
from service.violations import Violations


class Counted(int):
    """A number that counts how often numbers of its kind are compared, in any way."""

    compared: ClassVar[int] = 0

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) > int(other)

    def __le__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) <= int(other)

    def __ge__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) >= int(other)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return isinstance(other, int) and int(self) == int(other)

    __hash__ = int.__hash__


def epochs(count: int) -> list[Epoch]:
    """Epochs of one change each, in the order of a table that was read backwards."""
    return [
        Epoch(Counted(n), Counted(n - 1), Counted(n - 1), "continue" if n > 1 else "begin")
        for n in range(count, 0, -1)
    ]


def began(n: int) -> Change:
    """Return the first and only change of epoch n."""
    told = f'{{"beginning":{n - 1},"predecessor":{n - 1}}}'
    return Change(n, Counted(n), 1, "epoch_began", None, None, told)


def ask_everything(count: int) -> None:
    """Ask for each epoch, and for the place of each seq."""
    lineage = Lineage(epochs(count))
    for n in range(1, count + 1):
        assert lineage.position_of(n) == (n, n)
        assert lineage.holds(Position(n, n))
        assert lineage.follows(Position(n - 1, n - 1), n, Position(n, n))


def audit(count: int) -> None:
    """Replay a journal that has an epoch for each change."""
    violations, head = Violations(), b""
    changes = [began(n) for n in range(1, count + 1)]
    hashes = [head := chain(head, 0, change) for change in changes]
    cursor = Cursor(Position(count, count), head)
    replay = JournalReplay(0, 1, cursor, Lineage(epochs(count)), violations)
    for change, hash_ in zip(changes, hashes, strict=True):
        replay.take(change, hash_)
    replay.end()
    assert violations.number == 0


def follow_an_outbox(count: int) -> None:
    """Learn every epoch from the outbox."""
    succession = Succession(Position(0, 0), Lineage())
    for n in range(1, count + 1):
        succession.take(Entry(Position(Counted(n), Counted(n)), n, (began(n),)))
    assert len(succession.learned) == count


def judge_witnesses(count: int) -> None:
    """Hold a hundred witnesses against an epoch that is about to begin."""
    lineage = Lineage(epochs(count))
    answered = [Position(Counted(n), Counted(n)) for n in range(1, 101)]
    begins = Epoch(Counted(count + 1), Counted(count), Counted(count), "continue")
    assert find_loss(answered, lineage, begins=begins) is None


def compared_by(work: object, count: int) -> int:
    """Return how many comparisons some work costs with so many epochs."""
    Counted.compared = 0
    work(count)  # type: ignore[operator]
    return Counted.compared


@pytest.mark.parametrize("work", [ask_everything, audit, follow_an_outbox, judge_witnesses])
def test_twice_as_many_epochs_cost_twice_as_much(work: object) -> None:
    """The logarithm aside; each epoch for each other would cost four times."""
    few, many = compared_by(work, 1_000), compared_by(work, 2_000)
    assert 0 < many < 2.5 * few
