"""What `onsale confirm-loss` does: shows what a sale stays closed for, and goes on without it.

Nothing is confirmed but what is on record as lost, nor more than the operator has read where he
says what that was; and the handshake decides whether it is enough: a loss that has turned out
larger closes again. Writes nothing unless it is told to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.decision import ClosedEpoch
from service.errors import ConfigurationError
from service.given_verdicts import Given, as_json, chosen, give, line, reaching
from service.ledger import connect
from service.looking import CANNOT_TELL, count
from service.losses import Loss
from service.orders import Order
from service.record_view import RecordView
from service.settings import Settings

_APPLYING = (
    "--apply goes on without these changes. What Redis still has of them goes to the table orphans;"
    " the others are nowhere any more. Tickets that were promised in them are sold again: whoever"
    " was answered in this range must be told."
)


@dataclass(frozen=True, slots=True)
class Found:
    """A partition that stays closed, and what it came to where its loss was confirmed.

    `beyond` is what an operator has read and would confirm, where more than that is lost.
    """

    partition: int
    closed: ClosedEpoch
    given: Given | None = None
    beyond: Loss | None = None

    @property
    def command(self) -> str:
        """What confirms exactly this; empty where it is confirmed, or cannot be."""
        if self.closed.loss is None or self.given is not None:
            return ""
        ends = " ".join(self.closed.loss.ends)
        return f"onsale confirm-loss --partition {self.partition} --lost {ends} --apply"


async def look(
    settings: Settings, redis_url: str, postgresql_url: str, partitions: Sequence[int]
) -> list[Found]:
    """Return the partitions that stay closed.

    Raises ConfigurationError where the settings know of fewer partitions than the record, or of
    more, and what `UNAVAILABLE` lists.
    """
    async with await RecordView.open(postgresql_url, purpose="operator") as record:
        held = await record.partitions()
    if held not in (None, settings.partitions):
        msg = f"ONSALE_PARTITIONS is {settings.partitions}, but this record was begun with {held}"
        raise ConfigurationError(msg)
    async with (
        reaching(settings, redis_url, postgresql_url) as handshakes,
        await connect(postgresql_url, purpose="operator") as ledger,
    ):
        found = []
        for partition in chosen(handshakes, partitions):
            async with ledger.deciding(partition) as decision:
                closed = await decision.closed_epoch()
            if closed is not None:
                found.append(Found(partition, closed))
        return found


async def confirm(
    settings: Settings,
    redis_url: str,
    postgresql_url: str,
    partitions: Sequence[int],
    lost: Loss | None = None,
) -> list[Found]:
    """Confirm what is lost of each partition that is closed for it, and have it compared anew.

    With `lost`, what an operator has read: no more than that.
    """
    results = []
    for found in await look(settings, redis_url, postgresql_url, partitions):
        if found.closed.loss is None:
            results.append(found)
            continue
        if lost is not None and not lost.covers(found.closed.loss):
            results.append(replace(found, beyond=lost))
            continue
        async with (
            await connect(postgresql_url, purpose="operator") as ledger,
            ledger.deciding(found.partition) as decision,
        ):
            await decision.confirm(found.closed.epoch)
        order = Order(f"the loss of {found.closed.loss} was confirmed")
        async with reaching(settings, redis_url, postgresql_url) as handshakes:
            (given,) = await give(handshakes, [found.partition], order)
        results.append(Found(found.partition, found.closed, given))
    return results


def exit_code(found: Sequence[Found], *, applied: bool) -> int:
    """Return 1 where there is something to confirm; applied, 0 where all of it opened.

    2 where it cannot be told.
    """
    if any(one.given and one.given.result is None for one in found):
        return CANNOT_TELL
    if applied:
        return 0 if all(one.given and one.given.is_open for one in found) else 1
    return 1 if any(one.closed.loss for one in found) else 0


def to_json(found: Sequence[Found], code: int) -> dict[str, Any]:
    """Return all of it as one JSON object."""
    return {
        "exitCode": code,
        "closed": [
            {
                "partition": one.partition,
                "epoch": one.closed.epoch,
                "since": one.closed.since.isoformat(),
                "reason": one.closed.reason,
                "lost": _range(one.closed.loss),
                "apply": one.command or None,
                "result": as_json(one.given) if one.given else None,
            }
            for one in found
        ],
    }


def render(found: Sequence[Found]) -> str:
    """Return all of it for a person."""
    if not found:
        return "Nothing stays closed, and there is nothing to confirm."
    return "\n\n".join(_block(one) for one in found)


def _block(one: Found) -> str:
    closed = one.closed
    since = f"{closed.since:%Y-%m-%d %H:%M:%S}"
    lines = [
        f"partition {one.partition}, epoch {closed.epoch}: stays closed since {since} UTC:",
        f"  {closed.reason}",
    ]
    if closed.loss is None:
        return "\n".join([*lines, "This is nothing that can be confirmed: see the runbook."])
    changes = count(closed.loss.last - closed.loss.first + 1, "change")
    lines.append(f"lost: {closed.loss}, {changes}")
    if one.given:
        return "\n".join([*lines, line(one.given)])
    if one.beyond:
        lines.append(f"Nothing was confirmed: this is more than {one.beyond}.")
    return "\n".join([*lines, _APPLYING, f"  {one.command}"])


def _range(loss: Loss | None) -> dict[str, int] | None:
    if loss is None:
        return None
    return {
        "epoch": loss.epoch,
        "first": loss.first,
        "last": loss.last,
        "changes": loss.last - loss.first + 1,
    }
