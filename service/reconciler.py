"""Redis against the record, event by event, while the sale is open. Reads both, writes neither.

The record is read in snapshots of some events each, with P; then Redis, which is only ever ahead
of it, and by changes that are known. What disagrees although these are taken into account is a
drift. A partition that is closed, or whose stores do not agree on its history, is not compared:
that is the handshake's to settle.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence

from service.errors import CorruptEntryError
from service.event_reading import PASSES, EventReading, Scope
from service.findings import Drift, EventFinding, PartitionFinding, Report
from service.keys import partition_of
from service.lineage import NOWHERE, Lineage, Position
from service.record_view import RecordedEvent, RecordView
from service.redis_store import Meta
from service.redis_view import MovedOnError, RedisView
from service.tail import HoleError, Tail

_BATCH_USERS = 50_000
_BATCH_EVENTS = 500
_PAUSE_S = 0.5

OnProgress = Callable[[int, int], None]
"""Told how many rows of both stores were read, and of how many, about."""


class UnknownEventError(Exception):
    """Neither store has these events."""


class CannotTellError(Exception):
    """A partition cannot be compared, and why."""


async def reconcile(
    redis_url: str,
    postgresql_url: str,
    *,
    event_ids: Sequence[int] | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Compare all events, or some. Raises UnknownEventError, and what the stores' clients raise."""
    redis = RedisView(redis_url)
    try:
        async with await RecordView.open(postgresql_url) as record:
            return await Reconciler(redis, record, on_progress=on_progress).run(event_ids)
    finally:
        await redis.aclose()


class Reconciler:
    """One comparison of the whole deployment, or of some events."""

    def __init__(
        self,
        redis: RedisView,
        record: RecordView,
        *,
        on_progress: OnProgress | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Take what it works with. `sleep` waits for a handshake that is under way."""
        self._redis = redis
        self._record = record
        self._on_progress = on_progress
        self._sleep = sleep
        self._partitions = 1
        self._tails: dict[int, Tail] = {}
        self._rows = 0
        self._rows_done = 0

    async def run(self, event_ids: Sequence[int] | None = None) -> Report:
        """Compare; `event_ids` None stands for all events of both stores.

        Raises UnknownEventError, and what the stores' clients raise.
        """
        started = time.monotonic()
        # Before the first start no number is on record; then partition 0 says what there is.
        partitions = self._partitions = await self._record.partitions() or 1
        sizes = await self._record.sizes()
        wanted = set(sizes if event_ids is None else event_ids)
        await self._refuse_unknown(wanted - sizes.keys(), partitions)
        self._rows = max(1, 2 * sum(sizes.get(event_id, 0) for event_id in wanted))
        found = []
        for partition in range(partitions):
            of = {i for i in wanted if partition_of(i, partitions) == partition}
            if event_ids is None:
                of |= await self._redis.event_ids(partition)
                of |= (await self._record.letters.frozen(partition)).keys()
            elif not of:
                continue
            found.append(await self._partition(partition, sorted(of), sizes))
        return Report(found, time.monotonic() - started)

    async def _refuse_unknown(self, event_ids: Iterable[int], partitions: int) -> None:
        unknown = [
            event_id
            for event_id in sorted(event_ids)
            if not await self._redis.holds(partition_of(event_id, partitions), event_id)
        ]
        if unknown:
            msg = f"neither store has event {', '.join(map(str, unknown))}"
            raise UnknownEventError(msg)

    async def _partition(
        self, partition: int, event_ids: list[int], sizes: Mapping[int, int]
    ) -> PartitionFinding:
        """Compare the events of one partition, batch by batch, as far as it can be told."""
        found = PartitionFinding(partition, 0, 0, 0)
        events: list[EventFinding] = []
        for batch in _batches(event_ids, sizes):
            reason = ""
            for attempt in range(PASSES):
                if attempt:
                    await self._sleep(_PAUSE_S)
                try:
                    found = await self._batch(partition, batch)
                except MovedOnError as error:
                    reason = str(error)
                    continue
                except (CannotTellError, HoleError, CorruptEntryError) as error:
                    return _stopped(found, events, str(error))
                events += found.events
                break
            else:
                return _stopped(found, events, f"{reason}, in each of {PASSES} passes")
        return PartitionFinding(partition, found.epoch, found.recorded, found.last, events)

    async def _batch(self, partition: int, event_ids: Sequence[int]) -> PartitionFinding:
        """Compare some events with one snapshot of the record."""
        before = await self._redis.meta(partition)
        async with self._record.snapshot():
            recorded = await self._record.cursor(partition)
            lineage = (await self._record.lineages([partition]))[partition]
            meta = await self._redis.meta(partition)
            if before is None and meta is None and recorded == NOWHERE and not lineage.newest:
                return PartitionFinding(partition, 0, 0, 0)
            sound = _sound(before, meta, recorded, lineage)
            last = sound.last
            frozen = await self._record.letters.frozen(partition)
            own = [i for i in event_ids if partition_of(i, self._partitions) == partition]
            on_record = await self._record.events(own, self._progress)
        tail = self._tail(partition, recorded, last.epoch)
        await tail.extend(last.seq)
        scope = Scope(partition, last.epoch, recorded.seq, last.seq, self._redis, tail)
        events = []
        for event_id in event_ids:
            event: RecordedEvent | None = on_record.pop(event_id, None)
            if event_id in frozen or event_id in sound.frozen:
                letters = frozen.get(event_id, 0)
                events.append(_frozen(event_id, last.seq, event, letters, sound.frozen))
                continue
            finding = await EventReading(scope, event_id, self._progress).run(event)
            if finding is not None:
                events.append(finding)
        return PartitionFinding(partition, last.epoch, recorded.seq, last.seq, events)

    def _tail(self, partition: int, recorded: Position, epoch: int) -> Tail:
        """Return the partition's tail, the one that was begun before if the epoch is the same.

        While the writer is away it may be long, and is read once for all batches.
        """
        tail = self._tails.get(partition)
        if tail is None or tail.epoch != epoch:
            tail = Tail(partition, epoch, self._redis, self._record, recorded)
            self._tails[partition] = tail
        return tail

    def _progress(self, rows: int) -> None:
        self._rows_done = min(self._rows, self._rows_done + rows)
        if self._on_progress is not None:
            self._on_progress(self._rows_done, self._rows)


def _frozen(
    event_id: int, seq: int, event: RecordedEvent | None, letters: int, in_redis: Collection[int]
) -> EventFinding:
    """Return what is found of an event that the record or Redis has frozen, or both."""
    drifts = []
    if not letters or event_id not in in_redis:
        redis, record = ("frozen" if is_so else None for is_so in (event_id in in_redis, letters))
        drifts.append(Drift(event_id, None, "frozen", redis, record))
    return EventFinding(
        event_id=event_id,
        seq=seq,
        users=len(event.users) if event else 0,
        booked=event.sold if event else 0,
        waiting=event.waiting if event else 0,
        in_flight=0,
        drifts=drifts,
        frozen=letters,
    )


def _sound(before: Meta | None, meta: Meta | None, recorded: Position, lineage: Lineage) -> Meta:
    """Return `meta` where the stores agree on history: W, read before P, is no more, and R no less.

    Raises CannotTellError, or MovedOnError where the next pass may find otherwise.
    """
    if meta is None:
        msg = "Redis is empty, and is rebuilt from the record by the next request"
        raise CannotTellError(msg)
    if not meta.open and meta.reason:
        msg = f"it stays closed: {meta.reason}"
        raise CannotTellError(msg)
    if before is None or not before.open or not meta.open or before.epoch != meta.epoch:
        msg = "a handshake was under way"
        raise MovedOnError(msg)
    if before.recorded > recorded:
        msg = (
            f"PostgreSQL went back: Redis knows {before.recorded.entry_id} to be on record,"
            f" which ends at {recorded.entry_id}"
        )
        raise CannotTellError(msg)
    if lineage.begins(meta.epoch) is None:
        msg = f"PostgreSQL does not know epoch {meta.epoch} of Redis"
        raise CannotTellError(msg)
    if lineage.newest is not None and lineage.newest.epoch != meta.epoch:
        msg = f"Redis is of epoch {meta.epoch}, the record of {lineage.newest.epoch}"
        raise CannotTellError(msg)
    if meta.last < recorded:
        msg = f"Redis went back: it ends at {meta.last.entry_id}, the record at {recorded.entry_id}"
        raise CannotTellError(msg)
    return meta


def _stopped(found: PartitionFinding, events: list[EventFinding], reason: str) -> PartitionFinding:
    return PartitionFinding(
        found.partition, found.epoch, found.recorded, found.last, events, reason
    )


def _batches(event_ids: Sequence[int], sizes: Mapping[int, int]) -> Iterator[list[int]]:
    """Yield events in batches of so many users; at least one batch, be it empty."""
    batch: list[int] = []
    users = 0
    for event_id in event_ids:
        size = sizes.get(event_id, 0)
        if batch and (users + size > _BATCH_USERS or len(batch) == _BATCH_EVENTS):
            yield batch
            batch, users = [], 0
        batch.append(event_id)
        users += size
    yield batch
