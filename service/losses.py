"""What was answered and no lineage leads to: what the third witness tells (PROTOCOL 13). Pure.

H is a position that some worker has answered. Every epoch that begins after it continues what was
answered; one that begins before it leaves answers out, and they are lost. A loss that an operator
has confirmed is none any more, for ever; one that is larger is another one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.lineage import Epoch, Lineage, Position


@dataclass(frozen=True, slots=True)
class Loss:
    """The changes `first` to `last`, the last of them of `epoch`, which no new epoch follows."""

    epoch: int
    first: int
    last: int

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last of them, each as `<epoch>-<seq>`."""
        return f"{self.epoch}-{self.first}", f"{self.epoch}-{self.last}"

    def __str__(self) -> str:
        """Say the range, as an operator reads it."""
        return " to ".join(self.ends)

    def covers(self, other: "Loss") -> bool:
        """Whether who has confirmed this one has confirmed the other too."""
        return self.first <= other.first and other.last <= self.last and other.epoch <= self.epoch


def find_loss(
    answered: Iterable[Position],
    lineage: Lineage,
    *,
    begins: Epoch | None = None,
    confirmed: Sequence[Loss] = (),
) -> Loss | None:
    """Return what of all that was answered is lost and not confirmed; None when nothing is.

    `begins` is the epoch that is about to begin. Several losses are told as one range.
    """
    joined = lineage.joined(begins) if begins else lineage
    found = [
        loss
        for at in answered
        if (loss := _lost(at, lineage, joined, confirmed))
        and not any(known.covers(loss) for known in confirmed)
    ]
    if not found:
        return None
    return Loss(
        max(loss.epoch for loss in found),
        min(loss.first for loss in found),
        max(loss.last for loss in found),
    )


def _lost(
    at: Position, lineage: Lineage, joined: Lineage, confirmed: Sequence[Loss]
) -> Loss | None:
    ends = joined.ends(at.epoch)
    if ends is not None and at.seq > ends:
        return Loss(at.epoch, ends + 1, at.seq)
    newest = lineage.newest
    if newest is not None and at.epoch <= newest.epoch:
        return None
    # An epoch is on record before anything is answered in it. This record never had it: it is
    # older, or another one, and which of the answers it lacks cannot be told.
    if any(at.epoch <= known.epoch for known in confirmed):
        return None
    return Loss(at.epoch, at.seq, at.seq)
