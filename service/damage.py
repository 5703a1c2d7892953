"""Damage: why nothing can go on from what Redis holds in an epoch (PROTOCOL, rule 26).

A script that failed after its first write leaves an outbox entry which the rest of Redis does not
follow. A stray, an entry that no script wrote, may keep every later one out. Both are cured alike:
the outbox goes on record up to R, then the partition is rebuilt from the record. R is the greater
of `meta`'s seq and the end of the entries that follow it in the same epoch: an entry is the first
write of its script, and so the decision. Redis is only read here.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import structlog

from service import outbox
from service.errors import CorruptEntryError
from service.lineage import Position
from service.outbox import Change, Entry
from service.redis_store import Closed, RedisStore

log = structlog.stdlib.get_logger("onsale.handshake")

_PAGE = 1_000
_KEPT_MAX = 1_000
_TOLD_MAX = 300
STRAY = "stray"
"""The kind of an orphan that keeps a stray."""

Raw = Mapping[str, Mapping[str, str]]
"""Undecoded entries by id, oldest first."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Damage that a caller has met in an epoch. A later epoch does not have it."""

    epoch: int
    why: str


@dataclass(frozen=True, slots=True)
class Survey:
    """The end of the outbox of a closed partition.

    `closed` has the R that counts, and all damage that is known. `strays` lie behind R.
    `readable` is False where the outbox is no stream.
    """

    closed: Closed
    strays: Raw
    readable: bool = True


async def survey(partition: int, redis: RedisStore, closed: Closed, number: int) -> Survey:
    """Tell what scripts wrote after `meta`'s seq from what they did not.

    `number` is the epoch that is about to begin.
    """
    end = await redis.outbox_end(partition)
    if end is None:
        return Survey(_damaged(closed, "the outbox is no stream"), {}, readable=False)
    if end <= closed.last:
        return Survey(closed, {})
    last, strays = await _behind(partition, redis, closed)
    if last > closed.last:
        closed = _damaged(closed, f"a script did not finish outbox entry {last.entry_id}")
    if strays:
        closed = _damaged(closed, described(strays))
    elif end.epoch >= number:
        closed = _damaged(closed, f"the outbox takes no entry before {end.entry_id}")
    return Survey(replace(closed, last=last), strays)


async def _behind(
    partition: int, redis: RedisStore, closed: Closed
) -> tuple[Position, dict[str, Mapping[str, str]]]:
    """Return R, and the strays behind it."""
    last = start = closed.last
    strays: dict[str, Mapping[str, str]] = {}
    # Without a whole `meta` there is no saying what follows it: only what cannot be read is none.
    follows = closed.last.epoch > 0 and not closed.loading
    while page := await redis.read_outboxes({partition: start}, block_ms=0, count=_PAGE):
        for entry_id, fields in page[partition]:
            start = _position(entry_id)
            entry = _entry(entry_id, fields)
            if entry and follows and (entry.last.epoch, entry.first) == (last.epoch, last.seq + 1):
                last = entry.last
            elif (entry is None or follows) and len(strays) < _KEPT_MAX:
                strays[entry_id] = fields
    return last, strays


async def strays_between(
    partition: int, redis: RedisStore, recorded: Position, last: Position
) -> Raw:
    """Return the strays between P and R; nothing where the other entries do not lead to R.

    An entry that cannot be read, or does not follow, is a stray if those that do are without a gap.
    """
    at = start = recorded
    passed: dict[str, Mapping[str, str]] = {}
    while start < last and at < last:
        page = await redis.read_outboxes({partition: start}, block_ms=0, count=_PAGE)
        if not page:
            return {}
        for entry_id, fields in page[partition]:
            start = _position(entry_id)
            entry = _entry(entry_id, fields)
            if entry and entry.first == at.seq + 1 and entry.last.epoch >= at.epoch:
                at = entry.last
            elif start <= last and len(passed) < _KEPT_MAX:
                passed[entry_id] = fields
            if at >= last:
                break
    return passed if at == last else {}


def is_strayed(
    page: Iterable[tuple[str, Mapping[str, str]]], recorded: Position, last: Position
) -> bool:
    """Return whether the first entry after P that cannot be read, or does not follow, is a stray.

    `last` is `meta`'s, read after the page: an entry behind it is none of a script that finished.
    """
    passed = False
    for entry_id, fields in page:
        entry = _entry(entry_id, fields)
        if entry and entry.first == recorded.seq + 1:
            if passed:
                return True  # it goes on without the other
            recorded = entry.last
        elif _position(entry_id) > last:
            return True
        else:
            passed = True
    return False


def described(strays: Raw) -> str:
    """Return what an operator reads of strays."""
    ids = list(strays)
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    return f"outbox entry {ids[0]}{more} was written by no script"


def kept(strays: Raw, epoch: int, at: int) -> Iterable[Change]:
    """Yield strays as they are kept with the orphans, numbered under the epoch that found them.

    `at` in microseconds since 1970. Each is logged as well.
    """
    for number, (entry_id, fields) in enumerate(strays.items(), start=1):
        details = json.dumps({"id": entry_id, "fields": dict(fields)})
        log.error("stray entry set aside", entry=entry_id, fields=details[:_TOLD_MAX])
        yield Change(number, epoch, at, STRAY, None, None, details)


def _damaged(closed: Closed, why: str) -> Closed:
    return replace(closed, damage=f"{closed.damage}; {why}" if closed.damage else why)


def _entry(entry_id: str, fields: Mapping[str, str]) -> Entry | None:
    try:
        return outbox.decode(entry_id, fields)
    except CorruptEntryError:
        return None


def _position(entry_id: str) -> Position:
    """Return an id as it orders the outbox, whatever wrote it."""
    epoch, _, seq = entry_id.partition("-")
    return Position(int(epoch), int(seq))
