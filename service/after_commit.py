"""What follows a commit, each step by itself and at best effort (PROTOCOL, rule 8).

Its failure is no failure of the transaction: whatever is missed here is made good after the next
commit. Never drops a change that is not on record, nor one of the retained tail.
"""

from collections.abc import Callable, Mapping, Sequence

from redis.exceptions import NoScriptError, RedisError

from service.errors import CorruptEntryError
from service.failures import Failures
from service.ledger import UNAVAILABLE, Ledger
from service.lineage import Position
from service.metrics import Metrics
from service.redis_store import Meta, RedisStore

_TRIM_EVERY_S = 1.0


class AfterCommit:
    """Raises the watermark, and keeps the outboxes to their retained tails."""

    def __init__(
        self,
        redis: RedisStore,
        *,
        retained_bytes: int,
        clock: Callable[[], float],
        failures: Failures | None = None,
    ) -> None:
        """`retained_bytes`: of recorded changes, in each partition's outbox.

        `without_scripts` are the partitions whose watermark cannot be raised by this release.
        """
        self.without_scripts: set[int] = set()
        self._failures = failures or Failures(Metrics().failed_steps)
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
                    self._failures.failed("trim", partition, error)
                else:
                    self._failures.succeeded("trim", partition)

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
        except NoScriptError as error:
            # Another release's scripts serve, or Redis has forgotten them: only a handshake loads.
            self.without_scripts.add(partition)
            self._failures.failed("watermark", partition, error)
        except (RedisError, OSError) as error:
            self._failures.failed("watermark", partition, error)
        else:
            # FENCED is none: a partition that is closed is seen at the next look.
            self.without_scripts.discard(partition)
            self._failures.succeeded("watermark", partition)

    async def _trim(self, ledger: Ledger, partition: int, last: Position) -> None:
        """Keep a tail of recorded changes, by bytes; drop what is on record and older."""
        used, first = await self._redis.outbox_size(partition)
        if used <= self._retained_bytes or not first or first > last.seq:
            return
        retained = (last.seq - first + 1) * self._retained_bytes // used
        first_retained = await ledger.position_of(partition, last.seq - retained + 1)
        await self._redis.trim_outbox(partition, first_retained)
