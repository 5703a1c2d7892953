"""Entries go on record only if they are the next ones, whatever they are read together with."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.applying import apply
from service.errors import LineageError
from service.lineage import Epoch, Lineage, Position
from service.outbox import Change, Entry
from service.record import Cursor

LINEAGE = Lineage([Epoch(1, 0, 0, "begin"), Epoch(2, 6, 1, "continue"), Epoch(3, 8, 2, "continue")])


def entry(epoch: int, first: int, last: int) -> Entry:
    """Return an entry of these changes."""
    changes = (Change(seq, epoch, 1, "booked", 1, "a", None) for seq in range(first, last + 1))
    return Entry(Position(epoch, last), first, tuple(changes))


async def recorded(*entries: Entry) -> list[int]:
    """Apply entries to a record of two changes; return the seqs that went on record."""
    found: list[int] = []

    async def record(_: int, changes: list[Change], *, rows: object) -> Position:
        assert rows is None
        found.extend(change.seq for change in changes)
        return Position(changes[-1].epoch, changes[-1].seq)

    application: Any = SimpleNamespace(
        cursors={0: Cursor(Position(1, 2), b"")}, lineages={0: LINEAGE}, record=record
    )
    await apply(application, 0, entries)
    return found


async def test_what_follows_goes_on_record() -> None:
    """Through the beginnings of epochs."""
    whole = (entry(1, 3, 4), entry(1, 5, 6), entry(2, 7, 7), entry(2, 8, 8), entry(3, 9, 12))
    assert await recorded(*whole) == list(range(3, 13))


@pytest.mark.parametrize(
    "entries",
    [
        (entry(1, 3, 4), entry(1, 6, 6)),
        (entry(1, 3, 4), entry(1, 4, 6)),
        (entry(1, 3, 4), entry(1, 3, 4)),
        (entry(1, 3, 6), entry(1, 7, 7)),
        (entry(1, 3, 5), entry(2, 6, 7)),
        (entry(1, 3, 5), entry(2, 6, 6), entry(2, 7, 7)),
        (entry(1, 3, 6), entry(2, 7, 8), entry(2, 9, 9)),
        (entry(1, 3, 6), entry(3, 7, 9)),
        (entry(1, 3, 6), entry(2, 7, 8), entry(1, 9, 9), entry(3, 10, 10)),
        (entry(1, 4, 6),),
        (entry(2, 3, 3),),
    ],
)
async def test_nothing_of_it_goes_on_record_where_one_does_not_follow(
    entries: tuple[Entry, ...],
) -> None:
    """A gap, a repetition, another epoch's seqs: anywhere among the rest."""
    with pytest.raises(LineageError):
        await recorded(*entries)
