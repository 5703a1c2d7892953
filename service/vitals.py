"""How the two stores stand to each other at this moment: what an operator watches.

Asked of the stores themselves, so that it is true while the writer is down as well. Reads only.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from redis.exceptions import RedisError

from service.errors import CorruptEntryError, Problem
from service.ledger import UNAVAILABLE, LedgerPool
from service.lineage import NOWHERE, Position
from service.redis_store import Meta, RedisStore

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class PartitionVitals:
    """One partition.

    `meta` is None where Redis has none; `recorded` is P, or W while PostgreSQL is away.
    `lag_s` is the age of the oldest change that is not on record, in seconds, 0 for none;
    `dead_letters` how many are kept, None while PostgreSQL is away.
    """

    meta: Meta | None
    recorded: Position
    lag_s: float
    outbox_bytes: int
    dead_letters: int | None = None

    @property
    def lag_changes(self) -> int:
        """R less P: what the writer has still to do."""
        return max(0, self.meta.seq - self.recorded.seq) if self.meta else 0

    @property
    def unrecorded(self) -> int:
        """R less W: what Redis does not know to be on record."""
        return max(0, self.meta.seq - self.meta.recorded.seq) if self.meta else 0


@dataclass(frozen=True, slots=True)
class Vitals:
    """All partitions, as far as Redis answers; and which of the two stores does.

    `problems`: of every partition, why it takes no bookings, None where it takes them.
    """

    redis_up: bool
    postgresql_up: bool
    partitions: Mapping[int, PartitionVitals] = field(default_factory=dict)
    problems: Mapping[int, Problem | None] = field(default_factory=dict)


async def look(
    redis: RedisStore,
    ledgers: LedgerPool,
    partitions: int,
    problems_now: Callable[[], Mapping[int, Problem]] = dict,
) -> Vitals:
    """Ask both stores, a second each; a frozen PostgreSQL may take two more. Raises nothing.

    `problems_now` returns why partitions that are not ready take no bookings, without asking.
    """
    numbers = range(partitions)
    recorded = await _recorded(ledgers, partitions)
    try:
        async with asyncio.timeout(_LOOK_S):
            found = {n: await _partition(redis, n, (recorded or {}).get(n)) for n in numbers}
        redis_up = True
    except (RedisError, OSError, TimeoutError):
        redis_up, found = False, {}
    refused = problems_now()
    return Vitals(
        redis_up=redis_up,
        postgresql_up=recorded is not None,
        partitions=found,
        problems={number: refused.get(number) for number in numbers},
    )


class _OnRecord(NamedTuple):
    """What PostgreSQL says of one partition."""

    last: Position
    dead_letters: int


async def _recorded(ledgers: LedgerPool, partitions: int) -> dict[int, _OnRecord] | None:
    """Return P and the dead letters of each partition, None while PostgreSQL is away."""
    try:
        async with asyncio.timeout(_LOOK_S), ledgers.acquire() as ledger:
            cursors = await ledger.cursors(range(partitions))
            letters = await ledger.letters.counted()
    except UNAVAILABLE:
        return None
    return {
        n: _OnRecord(cursors[n].last if n in cursors else NOWHERE, letters.get(n, 0))
        for n in range(partitions)
    }


async def _partition(redis: RedisStore, number: int, known: _OnRecord | None) -> PartitionVitals:
    meta = await redis.meta(number)
    letters = known.dead_letters if known else None
    if meta is None:
        return PartitionVitals(None, known.last if known else NOWHERE, 0.0, 0, letters)
    recorded = known.last if known else meta.recorded
    lag_s, used = 0.0, 0
    with contextlib.suppress(CorruptEntryError):  # the writer says loudly what is wrong with it
        used, _ = await redis.outbox_size(number)
    if meta.seq > recorded.seq:
        with contextlib.suppress(CorruptEntryError):
            lag_s = await redis.outbox_age_s(number, recorded)
    return PartitionVitals(meta, recorded, lag_s, used, letters)
