"""What follows the record in the outboxes, read when a commit is worth its price.

When busy, a commit waits a little so that it carries many entries; never for one that somebody
waits for, nor with a full load. What is read is raw: nothing here decodes, judges or skips.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from service.errors import CorruptEntryError
from service.lineage import Position
from service.outbox import AWAITED, parse_id
from service.redis_store import RedisStore

_ENTRIES_MAX = 256
_BLOCK_MS = 500
_LOOK_S = 0.005
"""So often it is looked, while lingering, whether something came that somebody waits for."""

Raw = Mapping[int, Sequence[tuple[str, dict[str, str]]]]
"""Undecoded entries of each partition, oldest first."""


class Lingering:
    """Reads for one writer, which commits whatever it is given."""

    def __init__(
        self,
        redis: RedisStore,
        *,
        linger_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`linger_s`: when busy, how long after a commit the next one may begin."""
        self._redis = redis
        self._linger_s = linger_s
        self._clock = clock
        self._sleep = sleep
        self._last = -linger_s

    async def read(self, after: Mapping[int, Position]) -> Raw:
        """Return what follows these positions; nothing, after half a second, where nothing does."""
        raw: Raw = await self._redis.read_outboxes(after, block_ms=_BLOCK_MS, count=_ENTRIES_MAX)
        if raw:
            raw = await self._gather(after, raw)
            self._last = self._clock()
        return raw

    async def _gather(self, after: Mapping[int, Position], raw: Raw) -> Raw:
        """Let more come, until the time is up, enough is there or somebody waits."""
        until = self._last + self._linger_s
        while (left := until - self._clock()) > 0 and not _is_urgent(raw):
            await self._sleep(min(left, _LOOK_S))
            try:
                newest = {p: parse_id(entries[-1][0]) for p, entries in raw.items()}
            except CorruptEntryError:
                break  # whoever decodes it says so
            more = await self._redis.read_outboxes(
                {**after, **newest}, block_ms=0, count=_ENTRIES_MAX
            )
            raw = {p: [*raw.get(p, ()), *more.get(p, ())] for p in {**raw, **more}}
        return raw


def _is_urgent(raw: Raw) -> bool:
    """Whether a commit is worth it now."""
    return any(
        len(entries) >= _ENTRIES_MAX or any(AWAITED in fields for _, fields in entries)
        for entries in raw.values()
    )
