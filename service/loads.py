"""What is to go on record next, decoded; while the writer is behind, made ready one load ahead.

A commit of a full load keeps PostgreSQL busy for as long as it takes here to read and to prepare
the next one, so that both are done at once. Nothing that was made ready is believed: the
transaction judges by what it has itself read, and a load that does not begin where the writer
stands by then is forgotten.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import NamedTuple

from redis.exceptions import RedisError

from service import outbox
from service.errors import CorruptEntryError, RefusedChangeError
from service.lineage import Position
from service.lingering import Lingering, Raw
from service.outbox import Entry
from service.record import Cursor
from service.rows import Rows, chained, rows_of
from service.sqlstates import refusing

_AT_ONCE = 256
"""So many changes are decoded, or hashed, before others have their turn: less than 1 ms."""


class Load(NamedTuple):
    """What follows these positions.

    `unreadable`: why a partition's entries end where they do; `rows`: what was made ready.
    """

    after: Mapping[int, Position]
    entries: Mapping[int, Sequence[Entry]]
    unreadable: Mapping[int, str]
    rows: Mapping[int, Rows]
    is_full: bool


class Loads:
    """Reads for one writer."""

    def __init__(self, lingering: Lingering) -> None:
        """Nothing is ahead."""
        self._lingering = lingering
        self._ahead: Load | None = None
        self._cursors: Mapping[int, Cursor] = {}

    def begin_at(self, cursors: Mapping[int, Cursor]) -> None:
        """Take note of the chain's head at positions: rows can be made of what follows one."""
        self._cursors = cursors

    def forget(self) -> None:
        """Drop what is ahead: a handshake may have ended its epoch."""
        self._ahead = None

    async def take(self, after: Mapping[int, Position]) -> Load | None:
        """Return what follows these positions; None, after half a second, where nothing does."""
        load, self._ahead = self._ahead, None
        if load is None or load.after != after:
            raw = await self._lingering.read(after)
            load = await self._decoded(raw, after) if raw else None
        return load and await _made_ready(load, self._heads(after))

    async def during(self, load: Load, work: Awaitable[None]) -> None:
        """Wait until a load is on record; meanwhile, if it was a full one, make the next ready."""
        if not load.is_full:
            await work
            return
        reading = asyncio.get_running_loop().create_task(self._behind(load))
        try:
            await work
            self._ahead = await reading
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    async def _behind(self, load: Load) -> Load | None:
        ends = {p: entries[-1].last for p, entries in load.entries.items()}
        after = {**load.after, **ends}
        try:
            raw = await self._lingering.read_now(after)
        except (RedisError, OSError):
            return None  # whoever needs it meets it again
        if not raw:
            return None
        heads = self._heads(after) | {p: rows.head for p, rows in load.rows.items()}
        return await _made_ready(await self._decoded(raw, after), heads)

    def _heads(self, after: Mapping[int, Position]) -> dict[int, bytes]:
        return {p: at.head for p, at in self._cursors.items() if after.get(p) == at.last}

    async def _decoded(self, raw: Raw, after: Mapping[int, Position]) -> Load:
        entries: dict[int, Sequence[Entry]] = {}
        unreadable: dict[int, str] = {}
        for partition, found in raw.items():
            decoded: list[Entry] = []
            try:
                await _decode(found, decoded)
            except CorruptEntryError as error:
                unreadable[partition] = str(error)
            if decoded:
                entries[partition] = decoded
        return Load(after, entries, unreadable, {}, self._lingering.is_full(after, raw))


async def _decode(found: Iterable[tuple[str, dict[str, str]]], entries: list[Entry]) -> None:
    """Add entries, up to the first that cannot be read. Raises CorruptEntryError."""
    changes = 0
    for entry_id, fields in found:
        entries.append(outbox.decode(entry_id, fields))
        changes += len(entries[-1].changes)
        if changes >= _AT_ONCE:
            changes = 0
            await asyncio.sleep(0)


async def _made_ready(load: Load, heads: Mapping[int, bytes]) -> Load:
    """Return a full load with the rows of all partitions whose chain's head is known."""
    rows = dict(load.rows)
    if load.is_full:
        for partition in (load.entries.keys() & heads.keys()) - rows.keys():
            # What does not fit into rows is refused in the transaction, which says so.
            with contextlib.suppress(RefusedChangeError), refusing():
                rows[partition] = await _rows(heads[partition], partition, load.entries[partition])
    return load._replace(rows=rows)


async def _rows(head: bytes, partition: int, entries: Iterable[Entry]) -> Rows:
    changes = [change for entry in entries for change in entry.changes]
    hashes: dict[int, bytes] = {}
    last = head
    for start in range(0, len(changes), _AT_ONCE):
        some = changes[start : start + _AT_ONCE]
        hashes |= chained(last, partition, some)
        last = hashes[some[-1].seq]
        await asyncio.sleep(0)
    return rows_of(head, changes, hashes)
