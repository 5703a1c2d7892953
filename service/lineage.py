"""Positions and lineage: what a seq means. Pure; no I/O.

A seq counts a partition's changes without a gap, but means something only with its epoch: a rebuild
begins a new epoch at what is on record, and its seqs run over those of a tail that was lost. A
position is *on the lineage* if its epoch began before it and no later epoch began before it.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Position(NamedTuple):
    """A place in a partition's history. W, P, R and H are positions."""

    epoch: int
    seq: int

    @property
    def entry_id(self) -> str:
        """The id of the outbox entry whose last change this is."""
        return f"{self.epoch}-{self.seq}"


NOWHERE = Position(0, 0)
"""Before the first change of the first epoch."""


class Epoch(NamedTuple):
    """One epoch on record that has changes: it begins after the seq `beginning`."""

    epoch: int
    beginning: int
    predecessor: int
    verdict: str


class Lineage:
    """The epochs of one partition, oldest first, without those that stayed closed."""

    def __init__(self, epochs: Iterable[Epoch] = ()) -> None:
        """Take the epochs in any order."""
        self._epochs = sorted(epochs)

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs, oldest first."""
        return tuple(self._epochs)

    @property
    def newest(self) -> Epoch | None:
        """The newest epoch on record."""
        return self._epochs[-1] if self._epochs else None

    def joined(self, epoch: Epoch) -> "Lineage":
        """Return this lineage with one epoch more."""
        return Lineage([*self._epochs, epoch])

    def epoch(self, number: int) -> Epoch | None:
        """Return an epoch by its number, None when it is not on record."""
        return next((e for e in self._epochs if e.epoch == number), None)

    def begins(self, epoch: int) -> int | None:
        """Return the seq after which an epoch begins, None when it is not on record."""
        return next((e.beginning for e in self._epochs if e.epoch == epoch), None)

    def ends(self, epoch: int) -> int | None:
        """Return the last seq that an epoch may hold, None when it is the newest.

        The least beginning of *any* later epoch: a later rebuild may reach back behind several.
        """
        return min((e.beginning for e in self._epochs if e.epoch > epoch), default=None)

    def holds(self, position: Position) -> bool:
        """Whether a position is on the lineage."""
        if position == NOWHERE:
            return True
        begins, ends = self.begins(position.epoch), self.ends(position.epoch)
        return (
            begins is not None and begins < position.seq and (ends is None or position.seq <= ends)
        )

    def follows(self, cursor: Position, first: int, last: Position) -> bool:
        """Whether changes `first`..`last` of one epoch are the next ones after a cursor.

        They have no gap to the cursor, come after their epoch's beginning, and not after the
        beginning of any later epoch; the first change of another epoch is its very first.
        """
        begins = self.begins(last.epoch)
        return (
            first == cursor.seq + 1
            and last.epoch >= cursor.epoch
            and begins is not None
            and (first > begins if last.epoch == cursor.epoch else first == begins + 1)
            and self.holds(last)
        )

    def position_of(self, seq: int) -> Position:
        """Return a seq with the epoch that it belongs to on the lineage (0 for none)."""
        epoch = next((e.epoch for e in reversed(self._epochs) if e.beginning < seq), 0)
        return Position(epoch, seq)
