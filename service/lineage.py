"""Positions and lineage: what a seq means. Pure; no I/O.

A seq counts a partition's changes without a gap, but means something only with its epoch: a rebuild
begins a new epoch at what is on record, and its seqs run over those of a tail that was lost. A
position is *on the lineage* if its epoch began before it and no later epoch began before it.
"""

from bisect import bisect_left, bisect_right
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
    """The epochs of one partition, oldest first, without those that stayed closed.

    Each question costs the logarithm of the number of epochs, and one epoch more a constant: there
    may be a hundred thousand of them. For that the epochs that begin before all later ones are
    kept apart (`_numbers`, `_beginnings`): both ascend.
    """

    def __init__(self, epochs: Iterable[Epoch] = ()) -> None:
        """Take the epochs in any order."""
        self._epochs: dict[int, Epoch] = {}
        self._numbers: list[int] = []
        self._beginnings: list[int] = []
        for epoch in sorted(epochs):
            self.join(epoch)

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs, oldest first."""
        return tuple(self._epochs.values())

    @property
    def newest(self) -> Epoch | None:
        """The newest epoch on record."""
        return next(reversed(self._epochs.values()), None)

    def join(self, epoch: Epoch) -> None:
        """Add an epoch, which must be the newest."""
        self._epochs[epoch.epoch] = epoch
        while self._beginnings and self._beginnings[-1] >= epoch.beginning:
            self._beginnings.pop()
            self._numbers.pop()
        self._numbers.append(epoch.epoch)
        self._beginnings.append(epoch.beginning)

    def joined(self, epoch: Epoch) -> "Lineage":
        """Return this lineage with one epoch more, whatever its number."""
        return Lineage([*self._epochs.values(), epoch])

    def epoch(self, number: int) -> Epoch | None:
        """Return an epoch by its number, None when it is not on record."""
        return self._epochs.get(number)

    def begins(self, epoch: int) -> int | None:
        """Return the seq after which an epoch begins, None when it is not on record."""
        found = self._epochs.get(epoch)
        return found.beginning if found else None

    def ends(self, epoch: int) -> int | None:
        """Return the last seq that an epoch may hold, None when it is the newest.

        The least beginning of *any* later epoch: a later rebuild may reach back behind several.
        """
        later = bisect_right(self._numbers, epoch)
        return self._beginnings[later] if later < len(self._beginnings) else None

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
        beginning of any later epoch; the first change of another epoch is its very first. Epochs
        older than the cursor's have no part in it.
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
        before = bisect_left(self._beginnings, seq)
        return Position(self._numbers[before - 1] if before else 0, seq)
