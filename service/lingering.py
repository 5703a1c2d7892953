"""What follows the record in the outboxes, read when a commit is worth its price.

When busy, a commit waits a little so that it carries many entries; never for one that somebody
waits for, nor with a full load. Who is behind reads on at once, up to what a transaction should
carry. What is read is raw: nothing here decodes, judges or skips.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

from service.errors import CorruptEntryError
from service.lineage import Position
from service.outbox import AWAITED, parse_id
from service.redis_store import RedisStore

_ENTRIES_MAX = 256
"""Read at a time. An entry holds up to 256 changes."""

LOAD_CHANGES = 4_096
"""With so many a commit is begun; by then its questions cost little beside its rows."""

_BLOCK_MS = 500
_LOOK_S = 0.01
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
        load_changes: int = LOAD_CHANGES,
    ) -> None:
        """`linger_s`: when busy, how long after a commit the next one may begin.

        `load_changes`: how many changes are a full load.
        """
        self._redis = redis
        self._linger_s = linger_s
        self._clock = clock
        self._sleep = sleep
        self._load_changes = load_changes
        self._last = -linger_s

    async def read(self, after: Mapping[int, Position]) -> Raw:
        """Return what follows these positions; nothing, after half a second, where nothing does."""
        raw: Raw = await self._redis.read_outboxes(after, block_ms=_BLOCK_MS, count=_ENTRIES_MAX)
        if raw:
            raw = await self._gather(after, raw, until=self._last + self._linger_s)
            self._last = self._clock()
        return raw

    async def read_now(self, after: Mapping[int, Position]) -> Raw:
        """Return what follows these positions and is there, up to a full load."""
        raw: Raw = await self._redis.read_outboxes(after, block_ms=0, count=_ENTRIES_MAX)
        if raw:
            raw = await self._gather(after, raw, until=-math.inf)
            self._last = self._clock()
        return raw

    def is_full(self, after: Mapping[int, Position], raw: Raw) -> bool:
        """Whether so much is there of a partition as one transaction should carry."""
        try:
            return any(
                # Each entry is a change at least.
                max(parse_id(found[-1][0]).seq - after[p].seq, len(found)) >= self._load_changes
                for p, found in raw.items()
            )
        except CorruptEntryError:
            return False

    async def _gather(self, after: Mapping[int, Position], raw: Raw, until: float) -> Raw:
        """Take what is there already; let more come until the time is up or somebody waits."""
        new, awaited = raw, False
        while True:
            awaited = awaited or _is_awaited(new)
            try:
                newest = {p: parse_id(entries[-1][0]) for p, entries in raw.items()}
            except CorruptEntryError:
                return raw  # whoever decodes it says so
            if self.is_full(after, raw):
                return raw
            if not any(len(entries) >= _ENTRIES_MAX for entries in new.values()):
                left = until - self._clock()
                if left <= 0 or awaited:
                    return raw
                await self._sleep(min(left, _LOOK_S))
            new = await self._redis.read_outboxes(
                {**after, **newest}, block_ms=0, count=_ENTRIES_MAX
            )
            raw = {p: [*raw.get(p, ()), *new.get(p, ())] for p in {**raw, **new}}


def _is_awaited(raw: Raw) -> bool:
    """Whether somebody waits for any of it."""
    return any(AWAITED in fields for entries in raw.values() for _, fields in entries)
