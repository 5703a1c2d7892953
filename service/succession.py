"""Whether what an outbox holds is what comes next on a record that went back. Pure; no I/O.

The record may lack epochs as well as changes. The outbox carries its own lineage: the first change
of every epoch is `epoch_began`, with its beginning and its predecessor. What it says must agree
with what is on record, and must lead on from it without a gap; otherwise it proves nothing.
"""

import json

from service.errors import LineageError
from service.lineage import Epoch, Lineage, Position
from service.outbox import Change, Entry


class Succession:
    """Follows the entries behind a cursor, and learns the epochs that the record lacks.

    `at` is where it has come to; `learned` are those epochs, with the verdict `replayed`: what it
    was in truth is lost with the row.
    """

    def __init__(self, cursor: Position, lineage: Lineage) -> None:
        """Begin at a cursor of the lineage."""
        self.at = cursor
        self.learned: list[Epoch] = []
        self._lineage = Lineage(lineage.epochs)  # its own: it grows by what is learned

    def take(self, entry: Entry) -> None:
        """Go on by one entry. Raises LineageError, which says why it is not the next one."""
        expected = self.at.seq + 1
        if entry.first > expected:
            msg = f"changes {expected} to {entry.first - 1} are not in the outbox"
            raise LineageError(msg)
        if entry.first < expected:
            msg = (
                f"outbox entry {entry.last.entry_id} begins at {entry.first},"
                f" before the end of the record at {self.at.entry_id}"
            )
            raise LineageError(msg)
        began = [change for change in entry.changes if change.kind == "epoch_began"]
        is_new = entry.last.epoch != self.at.epoch
        if began != [entry.changes[0]] * is_new:
            msg = f"outbox entry {entry.last.entry_id}: an epoch begins with `epoch_began` and once"
            raise LineageError(msg)
        if is_new:
            self._begin(began[0])
        if not self._lineage.follows(self.at, entry.first, entry.last):
            msg = (
                f"outbox entry {entry.last.entry_id} is not of the lineage"
                f" that leads on from {self.at.entry_id}"
            )
            raise LineageError(msg)
        self.at = entry.last

    def end(self, last: Position) -> None:
        """Hold that the last change was reached, in the newest epoch. Raises LineageError."""
        if self.at < last:
            msg = f"changes {self.at.seq + 1} to {last.seq} are not in the outbox"
            raise LineageError(msg)
        newest = self._lineage.newest
        if self.at != last or newest is None or newest.epoch != last.epoch:
            msg = (
                f"Redis ends at {last.entry_id}, the outbox at {self.at.entry_id},"
                f" and the newest epoch is {newest.epoch if newest else 'none'}"
            )
            raise LineageError(msg)

    def _begin(self, change: Change) -> None:
        """Compare an epoch's beginning with the record, or learn the epoch."""
        epoch = _told(change)
        if (epoch.predecessor, epoch.beginning) != self.at:
            msg = (
                f"epoch {epoch.epoch} began after {epoch.predecessor}-{epoch.beginning},"
                f" not after {self.at.entry_id}"
            )
            raise LineageError(msg)
        known, newest = self._lineage.epoch(epoch.epoch), self._lineage.newest
        if known is None and newest is not None and newest.epoch > epoch.epoch:
            msg = f"the record has epoch {newest.epoch} but not {epoch.epoch}, which came before"
            raise LineageError(msg)
        if known is None:
            self.learned.append(epoch)
            self._lineage.join(epoch)
        elif known._replace(verdict=epoch.verdict) != epoch:
            msg = (
                f"epoch {epoch.epoch} began after seq {known.beginning} on record,"
                f" and after seq {epoch.beginning} in the outbox"
            )
            raise LineageError(msg)


def _told(change: Change) -> Epoch:
    """Read what `epoch_began` says of its epoch. Raises LineageError."""
    try:
        details = json.loads(change.details or "")
        beginning, predecessor = details["beginning"], details["predecessor"]
    except (ValueError, KeyError, TypeError):
        beginning = predecessor = None
    if type(beginning) is not int or type(predecessor) is not int:
        msg = f"change {change.seq} does not say where its epoch begins: {change.details!r}"
        raise LineageError(msg)
    return Epoch(change.epoch, beginning, predecessor, "replayed")
