"""What the outbox of a closed partition holds beyond the record: for a handshake that compares.

R stands still; the writer may go on meanwhile, and trim behind itself. Reads both stores, changes
neither.
"""

import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing

import structlog

from service import outbox
from service.errors import CorruptEntryError
from service.ledger import Ledger
from service.lineage import NOWHERE, Lineage, Position
from service.outbox import Change
from service.redis_store import Closed, RedisStore

log = structlog.stdlib.get_logger("onsale.handshake")

_KEEP_ALIVE_S = 3.0

Touch = Callable[[], Awaitable[None]]
"""To be awaited at each entry of what may be long."""


class KeepAlive:
    """Asks the session something now and then, so that it is not taken for frozen."""

    def __init__(self, ledger: Ledger) -> None:
        """Begin to count from now."""
        self._ledger = ledger
        self._asked_at = time.monotonic()

    async def touch(self) -> None:
        """Ask, if it has been some time."""
        if time.monotonic() - self._asked_at > _KEEP_ALIVE_S:
            await self._ledger.keep_alive()
            self._asked_at = time.monotonic()


async def find_missing(
    partition: int,
    redis: RedisStore,
    ledger: Ledger,
    closed: Closed,
    touch: Touch,
    strays: Collection[str] = (),
) -> str:
    """Return what is missing between P and R, or cannot be read; empty when nothing is.

    `strays` are ids that do not count. A hole that the writer made by trimming is gone when P is
    read again.
    """
    missing = ""
    for _ in range(2):
        at = await ledger.cursor(partition)
        missing = ""
        try:
            of_scripts = redis.outbox_after(partition, at, upto=closed.last, strays=strays)
            async with aclosing(of_scripts) as entries:
                async for entry in entries:
                    if entry.first != at.seq + 1:
                        missing = f"changes {at.seq + 1} to {entry.first - 1} are not in the outbox"
                        break
                    at = entry.last
                    await touch()
        except CorruptEntryError as error:
            return str(error)
        if not missing and at < closed.last:
            missing = f"changes {at.seq + 1} to {closed.last.seq} are not in the outbox"
        if not missing:
            break
    return missing


async def read_dropped(
    partition: int,
    redis: RedisStore,
    recorded: Position,
    lineage: Lineage,
    closed: Closed,
    touch: Touch,
    strays: Collection[str] = (),
) -> list[Change]:
    """Return what a rebuild would drop: what is beyond the record, or beyond its lineage.

    `strays` are kept otherwise. An entry that cannot be read is named in the log, and passed over.
    """
    start = recorded
    if lineage.newest and 0 < closed.last.epoch < lineage.newest.epoch:
        ends = lineage.ends(closed.last.epoch)
        start = Position(closed.last.epoch, min(recorded.seq, ends or 0))
    if lineage.begins(closed.last.epoch) is None:
        start = NOWHERE  # of another life: ids do not say what comes after the record
    tail: list[Change] = []
    while page := await redis.read_outboxes({partition: start}, block_ms=0, count=1_000):
        for entry_id, fields in page[partition]:
            try:
                tail += outbox.decode(entry_id, fields).changes if entry_id not in strays else ()
            except CorruptEntryError as error:
                log.error(  # noqa: TRY400  # what is wrong with an entry needs no traceback
                    "not kept with the orphans", partition=partition, why=str(error)
                )
            epoch, _, seq = entry_id.partition("-")
            start = Position(int(epoch), int(seq))
            await touch()
    return tail
