"""What has happened to a partition since the record was read: every change, none left out.

The outbox has it, and where what is on record was trimmed from its front meanwhile, the journal.
Invariant: `end` follows the beginning without a gap, or the tail is not made.
"""

from bisect import bisect_right
from operator import attrgetter

from service.lineage import Position
from service.outbox import Change
from service.record_view import RecordView
from service.redis_view import RedisView

_SEQ = attrgetter("seq")


class HoleError(Exception):
    """Neither outbox nor journal has all the changes."""


class Tail:
    """The changes of one partition after P, by event, as far as they were asked for."""

    def __init__(
        self,
        partition: int,
        epoch: int,
        redis: RedisView,
        record: RecordView,
        recorded: Position,
    ) -> None:
        """Nothing is read before `extend`. It is good for one epoch of Redis."""
        self.epoch = epoch
        self._partition = partition
        self._redis = redis
        self._record = record
        self._end = recorded
        self._changes: dict[int, list[Change]] = {}

    async def extend(self, upto: int) -> None:
        """Read on until a seq is in it. Raises HoleError, CorruptEntryError and the stores' own."""
        if self._end.seq >= upto:
            return
        async for entry in self._redis.outbox_after(self._partition, self._end):
            if entry.first > self._end.seq + 1:
                await self._fill(entry.first - 1)
            self._add(entry.changes)
        if self._end.seq < upto:
            await self._fill(upto)

    async def _fill(self, upto: int) -> None:
        """Take from the journal what the outbox does not have any more."""
        for change in await self._record.journal(self._partition, self._end.seq, upto):
            self._add((change,))
        if self._end.seq < upto:
            msg = f"neither outbox nor journal has the change after seq {self._end.seq}"
            raise HoleError(msg)

    def _add(self, changes: tuple[Change, ...]) -> None:
        for change in changes:
            if change.seq != self._end.seq + 1:
                msg = f"seq {change.seq} comes after seq {self._end.seq}"
                raise HoleError(msg)
            self._end = Position(change.epoch, change.seq)
            if change.event_id is not None:
                self._changes.setdefault(change.event_id, []).append(change)

    def of(self, event_id: int, after: int, upto: int) -> list[Change]:
        """Return an event's changes with `after` < seq <= `upto`, in order."""
        changes = self._changes.get(event_id, [])
        first = bisect_right(changes, after, key=_SEQ)
        return changes[first : bisect_right(changes, upto, key=_SEQ)]
