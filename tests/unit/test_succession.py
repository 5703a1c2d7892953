"""What an outbox must say to be what comes next on a record that went back."""

import pytest

from service.errors import LineageError
from service.lineage import NOWHERE, Epoch, Lineage, Position
from service.outbox import Entry, decode
from service.succession import Succession


def entry(epoch: int, first: int, *changes: str) -> Entry:
    """Build an entry of these changes, which begin at `first`."""
    fields = {"v": "1", "at": "1", "first": str(first), "changes": "\n".join(changes)}
    return decode(f"{epoch}-{first + len(changes) - 1}", fields)


def booked(epoch: int, first: int, count: int = 1) -> Entry:
    """Build an entry of so many bookings."""
    return entry(epoch, first, *(f"booked 1 {first + number}" for number in range(count)))


def began(epoch: int, seq: int, beginning: int, predecessor: int) -> Entry:
    """Build the first entry of an epoch."""
    details = f'{{"beginning":{beginning},"predecessor":{predecessor}}}'
    return entry(epoch, seq, f"epoch_began - - {details}")


FIRST = Epoch(1, 0, 0, "begin")
AT = Position(1, 4)


def follow(*entries: Entry, at: Position = AT, on: tuple[Epoch, ...] = (FIRST,)) -> Succession:
    """Follow entries behind a cursor."""
    succession = Succession(at, Lineage(on))
    for one in entries:
        succession.take(one)
    return succession


def test_changes_of_the_same_epoch_follow() -> None:
    """Entries of one and of several changes, one after the other."""
    succession = follow(booked(1, 5), booked(1, 6, 3))
    assert succession.at == (1, 8)
    assert succession.learned == []
    succession.end(Position(1, 8))


def test_epochs_that_the_record_lacks_are_learned() -> None:
    """Their beginning and predecessor are told by the outbox; the verdict is not."""
    succession = follow(began(2, 5, 4, 1), booked(2, 6), began(5, 7, 6, 2), booked(5, 8))
    assert succession.learned == [Epoch(2, 4, 1, "replayed"), Epoch(5, 6, 2, "replayed")]
    succession.end(Position(5, 8))


def test_an_epoch_on_record_is_compared_and_not_learned() -> None:
    """The copy was taken after the epoch was decided, and before its first change was recorded."""
    succession = follow(began(2, 5, 4, 1), on=(FIRST, Epoch(2, 4, 1, "continue")))
    assert succession.learned == []
    succession.end(Position(2, 5))


def test_a_whole_outbox_follows_from_nowhere() -> None:
    """The very first change is the beginning of the first epoch."""
    succession = follow(began(1, 1, 0, 0), booked(1, 2), at=NOWHERE)
    succession.end(Position(1, 2))


@pytest.mark.parametrize(
    ("entries", "on", "says"),
    [
        ([booked(1, 6)], (FIRST,), "changes 5 to 5 are not in the outbox"),
        ([booked(1, 5), booked(1, 8)], (FIRST,), "changes 6 to 7 are not in the outbox"),
        ([booked(1, 4, 2)], (FIRST,), "begins at 4, before the end of the record at 1-4"),
        ([booked(2, 5)], (FIRST,), "an epoch begins with `epoch_began`"),
        ([booked(2, 5)], (FIRST, Epoch(2, 4, 1, "continue")), "an epoch begins with"),
        ([began(1, 5, 4, 1)], (FIRST,), "an epoch begins with `epoch_began` and once"),
        ([began(2, 5, 3, 1)], (FIRST,), "epoch 2 began after 1-3, not after 1-4"),
        ([began(3, 5, 4, 2)], (FIRST,), "epoch 3 began after 2-4, not after 1-4"),
        (
            [began(2, 5, 4, 1)],
            (FIRST, Epoch(2, 9, 1, "continue")),
            "epoch 2 began after seq 9 on record, and after seq 4 in the outbox",
        ),
        (
            [began(2, 5, 4, 1)],
            (FIRST, Epoch(3, 9, 1, "continue")),
            "the record has epoch 3 but not 2, which came before",
        ),
        ([booked(1, 5)], (FIRST, Epoch(2, 4, 1, "rebuild")), "is not of the lineage"),
        (
            [entry(2, 5, "epoch_began - - {}")],
            (FIRST,),
            "change 5 does not say where its epoch begins",
        ),
        (
            [entry(2, 5, 'epoch_began - - {"beginning":true,"predecessor":1}')],
            (FIRST,),
            "change 5 does not say where its epoch begins",
        ),
    ],
)
def test_what_does_not_follow_is_refused(
    entries: list[Entry], on: tuple[Epoch, ...], says: str
) -> None:
    """Nothing is guessed: a gap, an overlap, an epoch of unknown or of another beginning."""
    with pytest.raises(LineageError, match=says):
        follow(*entries, on=on)


@pytest.mark.parametrize(
    ("last", "on", "says"),
    [
        (Position(1, 6), (FIRST,), "changes 6 to 6 are not in the outbox"),
        (Position(1, 4), (FIRST,), "Redis ends at 1-4, the outbox at 1-5"),
        (Position(1, 5), (FIRST, Epoch(2, 9, 1, "continue")), "the newest epoch is 2"),
    ],
)
def test_an_end_that_is_not_that_of_redis_is_refused(
    last: Position, on: tuple[Epoch, ...], says: str
) -> None:
    """The outbox leads to R and not past it, in the newest epoch."""
    with pytest.raises(LineageError, match=says):
        follow(booked(1, 5), on=on).end(last)
