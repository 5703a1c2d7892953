"""What the writer and the handshake ask of Redis: `meta`, the outbox, the handshake's scripts.

Bookings never pass here (they travel on the wire). The client's own retries are off: a command
that may have run is never sent twice by anybody but its caller.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    MasterDownError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from service import keys, outbox, scripts
from service.direct import DirectCommands, paired
from service.inspection import inspect_redis
from service.lineage import NOWHERE, Position
from service.outbox import Entry
from service.rights import missing_rights
from service.soundness import RedisAsFound

_UNLINK_MAX = 1_000
_SCANNED = 5_000
"""Keys that Redis looks at in one call: about a millisecond of its time."""

_COMPLETE = "complete"
"""The member of an index that names every event which Redis holds keys of."""
_ELSEWHERE = (ReadOnlyError, MasterDownError, BusyLoadingError)


@dataclass(frozen=True, slots=True)
class Meta:
    """A partition's `meta`: what Redis knows of itself. `epoch` is 0 before the first.

    `frozen` are the events that have dead letters, as the record had them when the epoch began.
    `damaged` says which write of a script failed after its entry; empty while none did.
    """

    epoch: int
    seq: int
    recorded: Position
    open: bool
    next: str
    loading: bool
    reason: str
    frozen: frozenset[int] = frozenset()
    damaged: str = ""

    @property
    def last(self) -> Position:
        """R: the last change in Redis."""
        return Position(self.epoch, self.seq)


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed partition: R, W, whether a rebuild had begun, and its damage.

    `damage` says why nothing can go on from what Redis holds, and is empty where it can.
    """

    last: Position
    recorded: Position
    loading: bool
    damage: str = ""


class RedisStore:
    """Redis as the record's side sees it. Raises redis.exceptions.RedisError and OSError."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        """Remember where Redis is; connections are made when needed."""
        pool = ConnectionPool.from_url(
            url,
            decode_responses=True,
            # What is no UTF-8 was written by no script: it is met where its meaning is judged.
            encoding_errors="surrogateescape",
            retry=Retry(NoBackoff(), 0),
            # With a time-out of its own redis-py 8.1 sends through `asyncio.wait_for`, which on
            # Python 3.11 swallows a cancellation now and then (measured: every eighth writer that
            # was cancelled went on). Time is bounded by `_within` instead.
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
        )
        self._timeout_s = timeout_s
        # redis-py types every text as text or bytes; with decode_responses it is text.
        self._client: Any = Redis.from_pool(pool)
        self._direct = DirectCommands(pool)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._direct.aclose()
        await self._client.aclose()

    async def meta(self, partition: int) -> Meta | None:
        """Return a partition's `meta`, or None where there is none."""
        held: dict[str, str] = await self._within(
            self._direct.ask_map("HGETALL", keys.partition_keys(partition).meta)
        )
        if not held:
            return None
        return Meta(
            epoch=int(held.get("epoch", 0)),
            seq=int(held.get("seq", 0)),
            recorded=Position(int(held.get("recorded_epoch", 0)), int(held.get("recorded", 0))),
            open=held.get("open") == "1",
            next=held.get("next", ""),
            loading="loading" in held,
            reason=held.get("reason", ""),
            frozen=frozenset(map(int, held.get("frozen", "").split())),
            damaged=held.get("damaged", ""),
        )

    async def inspect(self) -> RedisAsFound:
        """Return what its soundness depends on."""
        found: RedisAsFound = await self._within(inspect_redis(self._client))
        if found.role != "master":
            await self._look_up_again()
        return found

    async def missing_rights(self, partition: int) -> list[str]:
        """Return the rights that this user lacks, as words of `ACL SETUSER`."""
        missing: list[str] = await self._within(missing_rights(self._client, partition))
        return missing

    # The outbox.

    async def read_outboxes(
        self, after: Mapping[int, Position], *, block_ms: int, count: int
    ) -> dict[int, list[tuple[str, dict[str, str]]]]:
        """Return what follows a position in each partition's outbox, undecoded, oldest first.

        Waits up to `block_ms` when there is nothing; 0 does not wait. At most `count` entries each.
        """
        names = {keys.partition_keys(p).outbox: p for p in after}
        found = await self._within(
            self._direct.ask(
                *("XREAD", "COUNT", count, *(("BLOCK", block_ms) if block_ms else ())),
                *("STREAMS", *names, *(at.entry_id for at in after.values())),
            )
        )
        pairs = found.items() if isinstance(found, dict) else found or ()
        return {
            names[name]: [(entry_id, paired(fields)) for entry_id, fields in entries]
            for name, entries in pairs
        }

    async def outbox_after(
        self,
        partition: int,
        after: Position,
        *,
        upto: Position | None = None,
        strays: Collection[str] = (),
    ) -> AsyncGenerator[Entry, None]:
        """Yield every entry after a position, up to another, without strays.

        Raises CorruptEntryError.
        """
        outbox_key = keys.partition_keys(partition).outbox
        start = f"({after.entry_id}" if after.epoch else "-"
        while True:
            end = upto.entry_id if upto else "+"
            found = await self._within(self._client.xrange(outbox_key, start, end, count=1_000))
            for entry_id, fields in found:
                if entry_id not in strays:
                    yield outbox.decode(entry_id, fields)
            if len(found) < 1_000:
                return
            start = f"({found[-1][0]}"

    async def outbox_entry(self, partition: int, last: Position) -> Entry | None:
        """Return the entry that ends at a position, if there is one. Raises CorruptEntryError."""
        outbox_key, entry_id = keys.partition_keys(partition).outbox, last.entry_id
        found = await self._within(self._client.xrange(outbox_key, entry_id, entry_id))
        return outbox.decode(*found[0]) if found else None

    async def outbox_end(self, partition: int) -> Position | None:
        """Return the id above which the next entry's must lie, whatever wrote or set it.

        NOWHERE where there is no outbox; None where the key holds something else.
        """
        name = keys.partition_keys(partition).outbox
        try:
            found = await self._within(self._direct.ask("XINFO", "STREAM", name))
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                return None
            if "no such key" in str(error):
                return NOWHERE
            raise
        said = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
        epoch, _, seq = said["last-generated-id"].partition("-")
        return Position(int(epoch), int(seq))

    async def outbox_age_s(self, partition: int, after: Position) -> float:
        """Return the age in seconds of the oldest change after a position, 0 when there is none.

        Both times are of Redis's clock. Raises CorruptEntryError.
        """
        outbox_key = keys.partition_keys(partition).outbox
        start = f"({after.entry_id}" if after.epoch else "-"
        found = await self._within(self._client.xrange(outbox_key, start, "+", count=1))
        if not found:
            return 0.0
        oldest = outbox.decode(*found[0]).changes[0].at
        now: tuple[int, int] = await self._within(self._client.time())
        return max(0.0, now[0] + (now[1] - oldest) / 1e6)

    async def outbox_size(self, partition: int) -> tuple[int, int]:
        """Return the outbox's memory in bytes, about, and the seq of its first change (0: none).

        Raises CorruptEntryError.
        """
        outbox_key = keys.partition_keys(partition).outbox
        first = await self._within(self._client.xrange(outbox_key, count=1))
        used = await self._within(self._client.memory_usage(outbox_key))
        return int(used or 0), outbox.decode(*first[0]).first if first else 0

    async def trim_outbox(self, partition: int, first_retained: Position) -> int:
        """Drop the entries whose changes all come before a position; return how many."""
        outbox_key = keys.partition_keys(partition).outbox
        removed: int = await self._within(
            self._client.xtrim(outbox_key, minid=first_retained.entry_id, approximate=False)
        )
        return removed

    async def raise_watermark(self, partition: int, recorded: Position) -> bool:
        """Tell Redis how far the record reaches; False when the epoch is not Redis's."""
        script = scripts.serving_scripts(partition, recorded.epoch)["raise_watermark"]
        meta_key = keys.partition_keys(partition).meta
        channel = keys.watermark_channel(partition)
        reply = await self._within(
            self._direct.ask("EVALSHA", script.sha, 1, meta_key, recorded.seq, channel)
        )
        return bool(reply[0] == "OK")

    # The handshake's steps. All but `close` do nothing unless `next` is the attempt's own.

    async def scripts_loaded(self, partition: int, epoch: int) -> bool:
        """Whether all serving scripts of a partition's epoch are loaded."""
        wanted = [script.sha for script in scripts.serving_scripts(partition, epoch).values()]
        return all(await self._within(self._client.script_exists(*wanted)))

    async def load_scripts(self, partition: int, epoch: int) -> None:
        """Load the serving scripts of a partition's epoch. For the handshake alone."""
        for script in scripts.serving_scripts(partition, epoch).values():
            await self._within(self._client.script_load(script.text))

    async def close(self, partition: int, seen: Meta | None, next_: str) -> Closed | None:
        """Close a partition; None when somebody moved since `seen` was read."""
        meta_key = keys.partition_keys(partition).meta
        seen_epoch = str(seen.epoch) if seen and seen.epoch else ""
        reply = await self._eval(
            "close", [meta_key], [seen_epoch, seen.next if seen else "", next_]
        )
        if reply[0] != "CLOSED":
            return None
        numbers = [int(word or 0) for word in reply[1:5]]
        return Closed(
            last=Position(numbers[0], numbers[1]),
            recorded=Position(numbers[2], numbers[3]),
            loading=bool(reply[5]),
            damage=reply[6] and f"a script failed after its entry: {reply[6]}",
        )

    async def resume(self, partition: int, seen_next: str, next_: str) -> bool:
        """Take an attempt over that died; False when it is somebody else's by now."""
        meta_key = keys.partition_keys(partition).meta
        return (await self._eval("resume", [meta_key], [seen_next, next_]))[0] == "RESUMED"

    async def empty(
        self, partition: int, next_: str, touch: Callable[[], Awaitable[None]], *, rebuild: bool
    ) -> bool:
        """Remove every key of a partition but `meta`; False when the attempt was taken over.

        In bounded steps, with `touch` awaited between them; by the index of events where there is
        one. A partition of before it had one is looked for in the whole keyspace, once.
        """
        meta_key, *others = keys.partition_keys(partition)
        of_all = [*others, keys.scratch_key(partition), keys.events_key(partition)]

        async def remove(names: Sequence[str], *, last: bool = False) -> bool:
            for start in range(0, max(1, len(names)), _UNLINK_MAX):
                await touch()
                chunk = [meta_key, *names[start : start + _UNLINK_MAX]]
                done = await self._eval("empty", chunk, [next_, f"{rebuild:d}", f"{last:d}"])
                if done[0] != "EMPTIED":
                    return False
            return True

        if not await remove([]):
            return False
        async with aclosing(self._keys_of_events(partition, touch)) as pages:
            async for page in pages:
                if not await remove([name for name in page if name not in (meta_key, *of_all)]):
                    return False
        return await remove(of_all, last=True)

    async def _keys_of_events(
        self, partition: int, touch: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[list[str], None]:
        """Yield the keys of all events that Redis may hold, page by page."""
        events_key, cursor = keys.events_key(partition), 0
        with suppress(ResponseError):  # of another type: it is none
            if await self._within(self._client.sismember(events_key, _COMPLETE)):
                while True:
                    cursor, members = await self._within(
                        self._client.sscan(events_key, cursor, count=_UNLINK_MAX // 4)
                    )
                    ids = [int(member) for member in members if member.isdecimal()]
                    yield [key for i in ids for key in keys.event_keys(partition, i)]
                    if not cursor:
                        return
        pattern = keys.partition_pattern(partition)
        while True:
            await touch()
            cursor, found = await self._within(
                self._client.scan(cursor, match=pattern, count=_SCANNED)
            )
            if found:
                yield found
            if not cursor:
                return

    async def begin_epoch(
        self,
        partition: int,
        next_: str,
        began: Position,
        predecessor: int,
        recorded: Position,
        frozen: Collection[int],
    ) -> bool:
        """Open a partition in the epoch that begins after `began.seq`; False when taken over.

        In the same step exactly the events in `frozen` become those that are frozen, and what
        Redis holds of one that was is dropped: it comes back from the record.
        """
        meta = await self.meta(partition)
        thawed = (meta.frozen if meta else frozenset()) - {*frozen}
        of_thawed = [
            key for event_id in sorted(thawed) for key in keys.event_keys(partition, event_id)
        ]
        arguments = [
            next_,
            began.epoch,
            began.seq,
            predecessor,
            recorded.epoch,
            recorded.seq,
            " ".join(map(str, sorted(frozen))),
        ]
        found = await self._eval(
            "begin_epoch",
            [*keys.partition_keys(partition), *of_thawed],
            [str(word) for word in arguments],
        )
        return found[0] == "BEGUN"

    async def stay_closed(self, partition: int, next_: str, reason: str) -> bool:
        """Say why a partition stays closed; False when the attempt was taken over."""
        meta_key = keys.partition_keys(partition).meta
        return (await self._eval("stay_closed", [meta_key], [next_, reason]))[0] == "STAYS_CLOSED"

    async def _within(self, command: Awaitable[Any]) -> Any:
        """Await a command for so long and no longer; a time-out is one of Redis."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await command
        except TimeoutError as error:
            raise RedisTimeoutError("no reply in time") from error
        except _ELSEWHERE:
            await self._look_up_again()
            raise

    async def _look_up_again(self) -> None:
        """Have the next command make a connection: the name may lead to the new primary by now."""
        await self._direct.aclose()
        await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _eval(self, name: str, names: Sequence[str], arguments: Sequence[str]) -> list[str]:
        reply: list[str] = await self._within(
            self._client.eval(scripts.source(name), len(names), *names, *arguments)
        )
        return reply
