"""Whether PostgreSQL itself has a change that has stood for a while: asked, never remembered.

The watermark says what was committed once. A PostgreSQL that was restored from an older copy since
then lacks it, and Redis does not know of that before a writer or a handshake has looked. A new
change cannot be meant: the commit that raises the watermark past it has only just been made. One
question serves all who ask in the meantime, and is sent after they asked. Reads alone.
"""

import asyncio
from collections.abc import Sequence

from service.batcher import Batcher, Expired, WaitingRoomFull
from service.ledger import UNAVAILABLE, LedgerPool
from service.lineage import Position


class Vouching:
    """Asks the record about positions of one partition."""

    def __init__(
        self, partition: int, ledgers: LedgerPool, *, waiting_max: int, deadline_s: float
    ) -> None:
        """Take the bounds; nothing is asked until somebody wants to know."""
        self._partition = partition
        self._ledgers = ledgers
        self._questions: Batcher[Position, bool] = Batcher(
            self._ask, items_max=waiting_max, waiting_max=waiting_max, deadline_s=deadline_s
        )

    async def on_record(self, at: Position, deadline: float) -> bool:
        """Whether the record holds a change; False as well where that is not known in time.

        `at` is the change's seq, with the epoch in which Redis has just answered.
        """
        try:
            async with asyncio.timeout_at(deadline):
                return await self._questions.submit(at)
        except (WaitingRoomFull, Expired, *UNAVAILABLE):
            return False

    async def _ask(self, positions: list[Position], deadline: float) -> Sequence[bool]:
        """Ask for P, and for the newest epoch: a record without it is another, or an older one."""
        async with asyncio.timeout_at(deadline), self._ledgers.acquire() as ledger:
            newest = await ledger.newest_epoch(self._partition)
            recorded = await ledger.cursor(self._partition)
        return [newest == at.epoch and at.seq <= recorded.seq for at in positions]
