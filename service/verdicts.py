"""What a comparison of the two stores comes to. Pure; no I/O.

Redis is never rebuilt from PostgreSQL when Redis knows of more on record than PostgreSQL has,
unless an operator has confirmed what is lost by it; nothing is continued whose lineage or outbox is
not whole; and nothing begins that leaves out what was answered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from service.lineage import NOWHERE, Epoch, Lineage, Position
from service.losses import Loss, find_loss
from service.redis_store import Closed, Meta


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison came to. Without a beginning the partition stays closed.

    `loss` is what an operator may confirm; one that stays closed without cannot be confirmed.
    """

    name: str
    beginning: Position | None
    reason: str
    loss: Loss | None = None


def promised_epoch(next_: str) -> int:
    """Return the epoch that an attempt wrote into `next`, 0 when there is none."""
    return int(next_.split(" ", 1)[0]) if next_ else 0


def died_between(meta: Meta, lineage: Lineage, known: int) -> Epoch | None:
    """Return the epoch of an attempt that put its verdict on record and did not open.

    `known` is the newest epoch of which anybody has seen a change: that one was opened.
    """
    promised = promised_epoch(meta.next)
    newest = lineage.newest
    if meta.open or newest is None or newest.epoch != promised or meta.epoch >= promised:
        return None
    if known >= promised:
        return None
    return newest


def went_back(closed: Closed, recorded: Position, lineage: Lineage) -> bool:
    """Whether the record lacks what Redis knows it to have had: changes, or Redis's own epoch.

    An epoch is on record before Redis begins it: where it is not, the record is an older one, or
    another, even if no change is known to be missing.
    """
    epoch = closed.last.epoch
    return closed.recorded > recorded or (epoch > 0 and lineage.begins(epoch) is None)


def decide(
    closed: Closed, recorded: Position, lineage: Lineage, missing: str, replayed: str = ""
) -> Verdict:
    """Compare W and R, as `close` found them, with P and its lineage.

    `missing` says what the outbox lacks between P and R, or why it could not be replayed, and is
    empty when it lacks nothing. `replayed` says what a replay has done to the record before this.
    """
    newest = lineage.newest
    if closed.recorded > recorded:
        return Verdict(
            "stay_closed",
            None,
            f"PostgreSQL went back: Redis knows {closed.recorded.entry_id} to be on record,"
            f" which ends at {recorded.entry_id}{_because(missing)}",
            _beyond(recorded, max(closed.recorded, closed.last)),
        )
    if closed.last.epoch == 0 or closed.loading:
        if newest is not None:
            return Verdict("rebuild", recorded, "Redis was empty")
        if recorded == NOWHERE and not closed.loading:
            return Verdict("begin", NOWHERE, "both stores were empty")
        return Verdict("stay_closed", None, "PostgreSQL lost the lineage of a rebuild")
    if newest is None or lineage.begins(closed.last.epoch) is None:
        return Verdict(
            "stay_closed",
            None,
            f"PostgreSQL does not know epoch {closed.last.epoch} of Redis{_because(missing)}",
            _beyond(recorded, closed.last),
        )
    if newest.epoch != closed.last.epoch:
        return Verdict(
            "rebuild",
            recorded,
            f"Redis is of epoch {closed.last.epoch}, the record of {newest.epoch}",
        )
    if closed.last < recorded:
        return Verdict(
            "rebuild",
            recorded,
            f"Redis went back: it ends at {closed.last.entry_id},"
            f" the record at {recorded.entry_id}",
        )
    if missing:
        return Verdict(
            "stay_closed",
            None,
            f"the outbox has a hole: {missing}",
            _beyond(recorded, closed.last),
        )
    if replayed:
        return Verdict("replay", closed.last, replayed)
    return Verdict("continue", closed.last, "Redis has all that is on record, and the tail")


def mended(verdict: Verdict, closed: Closed, recorded: Position, unfinished: str = "") -> Verdict:
    """Return what a verdict comes to where Redis is damaged: what it holds is not gone on from.

    What is on record up to R is rebuilt from there; `unfinished` says why it is not.
    """
    if not closed.damage or verdict.name not in ("continue", "replay"):
        return verdict
    if recorded == closed.last:
        return Verdict("rebuild", recorded, f"Redis is damaged: {closed.damage}")
    why = unfinished or f"it ends at {recorded.entry_id}"
    return Verdict(
        "stay_closed",
        None,
        f"Redis is damaged: {closed.damage}; the record cannot be brought to"
        f" {closed.last.entry_id} first: {why}",
    )


def allowed(verdict: Verdict, recorded: Position, confirmed: Iterable[Loss]) -> Verdict:
    """Return what a verdict comes to where an operator has confirmed what is lost by going on."""
    loss = verdict.loss
    if loss is None or not any(known.covers(loss) for known in confirmed):
        return verdict
    return Verdict("rebuild", recorded, f"{verdict.reason}; the loss of {loss} was confirmed")


def ordered(
    verdict: Verdict, wanted: str, reason: str, recorded: Position, unfinished: str = ""
) -> Verdict:
    """Return what an operator's order makes of a verdict.

    `wanted` is `rebuild`, `stay_closed`, or empty for whatever the comparison came to. Stores that
    do not agree stay closed, whatever was ordered; what is begun has nothing to be rebuilt from,
    and what is not all on record is not thrown away: `unfinished` says why it is not.
    """
    if wanted == "stay_closed":
        return Verdict("stay_closed", None, reason)
    if wanted != "rebuild" or verdict.name not in ("continue", "replay", "rebuild"):
        return verdict
    if verdict.name != "rebuild" and verdict.beginning != recorded:
        why = unfinished or f"the record ends at {recorded.entry_id}"
        return replace(verdict, reason=f"{verdict.reason}; it was not rebuilt: {why}")
    return Verdict("rebuild", recorded, reason)


def witnessed(
    verdict: Verdict,
    number: int,
    lineage: Lineage,
    answered: Iterable[Position],
    confirmed: Sequence[Loss],
    partition: int,
) -> Verdict:
    """Hold a verdict against what was answered: an epoch that would leave any of it out is none."""
    if verdict.beginning is None:
        return verdict
    epoch = Epoch(number, verdict.beginning.seq, verdict.beginning.epoch, verdict.name)
    loss = find_loss(answered, lineage, begins=epoch, confirmed=confirmed)
    if loss is None:
        return verdict
    why = f"both stores end at {verdict.beginning.entry_id}"
    if verdict.name == "rebuild":
        why = verdict.reason
    elif verdict.name != "begin":
        why = f"Redis ends at {verdict.beginning.entry_id}"
    return Verdict(
        "stay_closed",
        None,
        f"partition {partition}: answers were lost: changes {loss} were answered and are not on"
        f" record; {why}; `onsale confirm-loss` shows what can be done",
        loss,
    )


def _beyond(recorded: Position, last: Position) -> Loss:
    """Return what goes beyond the record, of a Redis that the record does not lead to."""
    return Loss(last.epoch, min(recorded.seq + 1, last.seq), last.seq)


def _because(missing: str) -> str:
    return f"; it cannot be brought forward: {missing}" if missing else ""
