"""What follows a commit, each step by itself and at best effort (PROTOCOL, rule 8).

Its failure is no failure of the transaction: whatever is missed here is made good after the next
commit. Never drops a change that is not on record, nor one of the retained tail.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog
from redis.exceptions import RedisError

from service.errors import CorruptEntryError
from service.ledger import UNAVAILABLE, Ledger
from service.lineage import Position
from service.redis_store import Meta, RedisStore

log = structlog.stdlib.get_logger("onsale.writer")

_TRIM_EVERY_S = 1.0


class AfterCommit:
    """Raises the watermark, and keeps the outboxes to their retained tails."""

    def __init__(
        self, redis: RedisStore, *, retained_bytes: int, clock: Callable[[], float]
    ) -> None:
        """`retained_bytes`: of recorded changes, in each partition's outbox."""
        self._redis = redis
        self._retained_bytes = retained_bytes
        self._clock = clock
        self._trim_at = 0.0

    async def run(
        self, ledger: Ledger, recorded: Mapping[int, Position], committed: Sequence[int]
    ) -> None:
        """Follow a commit of these partitions up; `recorded` says how far all are on record."""
        for partition in committed:
            if recorded[partition].epoch:
                await self._raise_watermark(partition, recorded[partition])
        if self._clock() >= self._trim_at:
            self._trim_at = self._clock() + _TRIM_EVERY_S
            for partition, last in recorded.items():
                try:
                    await self._trim(ledger, partition, last)
                except (CorruptEntryError, RedisError, *UNAVAILABLE) as error:
                    log.debug("nothing was trimmed", partition=partition, why=str(error))

    async def make_good(self, partition: int, meta: Meta, recorded: Position) -> None:
        """Raise a watermark that was missed after the last commit.

        At the bound of what is not on record nobody changes anything, so that no other commit
        would come to make it good.
        """
        if meta.open and meta.epoch == recorded.epoch and meta.recorded < recorded:
            await self._raise_watermark(partition, recorded)

    async def _raise_watermark(self, partition: int, recorded: Position) -> None:
        try:
            await self._redis.raise_watermark(partition, recorded)
        except (RedisError, OSError) as error:
            log.debug("the watermark was not raised", partition=partition, why=str(error))

    async def _trim(self, ledger: Ledger, partition: int, last: Position) -> None:
        """Keep a tail of recorded changes, by bytes; drop what is on record and older."""
        used, first = await self._redis.outbox_size(partition)
        if used <= self._retained_bytes or not first or first > last.seq:
            return
        retained = (last.seq - first + 1) * self._retained_bytes // used
        first_retained = await ledger.position_of(partition, last.seq - retained + 1)
        await self._redis.trim_outbox(partition, first_retained)
