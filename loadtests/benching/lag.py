"""How far the record is behind while a crowd books: the age of the oldest change not on record.

Looked at some twenty times a second. Each look asks PostgreSQL for P and for its clock in one
statement, and Redis for the time of the change behind P: both clocks are the machine's, so that a
look that is late itself still tells what was true at its moment.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from loadtests.benching.measures import Lag, percentile
from loadtests.benching.onsale import Onsale
from service.keys import partition_keys
from service.lineage import Position

_EVERY_S = 0.05

_LOOK = """
    SELECT epoch, seq, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us
    FROM cursors WHERE partition = 0
"""


class Watch:
    """The lags that were seen, in milliseconds."""

    def __init__(self, onsale: Onsale) -> None:
        """Watch a service; nothing is asked before `look`."""
        self._onsale = onsale
        self._lags_ms: list[float] = []

    async def look(self) -> None:
        """Look once."""
        row = await self._onsale.postgresql.fetchrow(_LOOK)
        assert row is not None
        behind = Position(row["epoch"], row["seq"] + 1).entry_id
        entries = await self._onsale.redis.xrange(partition_keys(0).outbox, behind, count=1)
        at_us = int(entries[0][1]["at"]) if entries else row["now_us"]
        self._lags_ms.append(max(0, row["now_us"] - at_us) / 1000)

    def told(self) -> Lag:
        """Return what was seen."""
        seen = self._lags_ms
        return Lag(len(seen), percentile(seen, 0.5), percentile(seen, 0.99))


@contextlib.asynccontextmanager
async def watched(onsale: Onsale) -> AsyncIterator[Watch]:
    """Look at a service until the block is left."""
    watch = Watch(onsale)

    left = False

    async def keep_looking() -> None:
        # Told to end, never cancelled: a look is whole.
        while not left:
            await watch.look()
            await asyncio.sleep(_EVERY_S)

    looking = asyncio.create_task(keep_looking())
    try:
        yield watch
    finally:
        left = True
        await looking
