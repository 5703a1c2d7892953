"""What an operator may order: the handshake with a given verdict (PROTOCOL 12, 16). Pure words."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service.ledger import Ledger
from service.redis_store import Closed
from service.unrecorded import Touch

WhileClosed = Callable[[Ledger, Closed, Touch], Awaitable[None]]
"""Work on the record, on the session that holds the handshake's lock, while R stands still.

It may be repeated; what it raises ends the handshake, and leaves the partition to the next one.
"""


@dataclass(frozen=True, slots=True)
class Order:
    """One order.

    `reason` goes on record with the epoch. `verdict` is `rebuild`, `stay_closed`, or empty: what
    the comparison comes to. `while_closed` is done after the partition was closed and before
    anything is compared; `epoch_above` is an epoch that its work may bring into the record.
    `progress` is told how many changes were put on record, and of how many.
    """

    reason: str
    verdict: str = ""
    while_closed: WhileClosed | None = None
    epoch_above: int = 0
    progress: Callable[[int, int], None] = lambda _, __: None


NONE = Order("")
"""Nothing is ordered: what the comparison comes to."""
