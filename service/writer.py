"""The writer: carries the outbox into the record, each change once, in order.

It reads what follows the cursor that PostgreSQL holds; nothing that Redis remembers about readers
has any authority. One transaction for all partitions that have something: lock the cursors, check
that each entry is the next one of the right lineage, write, move the cursors, commit. A crash
anywhere repeats nothing and skips nothing. What comes after the commit is at best effort, each step
by itself, and its failure is no failure of the transaction.

A change that PostgreSQL refuses, or an entry that cannot be read, stops its partition, loudly; it
is tried again every few seconds, and never skipped. Every other error is tried again for ever, on a
fresh connection.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog
from redis.exceptions import RedisError

from service import outbox
from service.after_commit import AfterCommit
from service.applying import apply
from service.damage import Damage, is_strayed
from service.errors import LineageError, RefusedChangeError
from service.failures import Failures
from service.handshake import Handshake, HandshakeImpossible, StaysClosed
from service.ledger import UNAVAILABLE, Ledger
from service.lineage import NOWHERE, Position
from service.lingering import LOAD_CHANGES, Lingering
from service.loads import Load, Loads
from service.metrics import Metrics
from service.outbox import Entry
from service.redis_store import Meta, RedisStore
from service.rows import Rows
from service.sqlstates import meaning
from service.stopped import StoppedPartitions

log = structlog.stdlib.get_logger("onsale.writer")

_PAUSE_S = 0.05
_PAUSE_MAX_S = 2.0
_LOOK_EVERY_S = 1.0
_CLOSED_PATIENCE_S = 3.0
_LOOK_AT = 1_000
_NOTHING: Mapping[int, Rows] = {}


class Writer:
    """Follows the outboxes of all partitions, for ever. Given its stores, clock and sleep."""

    def __init__(
        self,
        redis: RedisStore,
        connect: Callable[[], Awaitable[Ledger]],
        handshakes: Mapping[int, Handshake],
        *,
        linger_s: float,
        retained_bytes: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        metrics: Metrics | None = None,
        load_changes: int = LOAD_CHANGES,
        assure: Callable[[Ledger], Awaitable[None]] | None = None,
    ) -> None:
        """Take what it works with.

        `linger_s`: when busy, how long a commit waits for more; `retained_bytes`: of all outboxes;
        `load_changes`: with how many it does not wait. `assure` raises ConnectionRefusedError where
        what is committed could be lost: it is asked each second, and nothing more is told as
        recorded.
        """
        self._assure = assure
        self._redis = redis
        self._connect = connect
        self._handshakes = handshakes
        self._clock = clock
        self._sleep = sleep
        self._committed: dict[int, Position] = {}
        self._held: set[int] = set()
        self._compared: set[int] = set()
        self._broken: dict[int, Position] = {}
        self._closed_since: dict[int, float] = {}
        self._trouble = ""
        self._draining = False
        self._metrics = metrics or Metrics()
        self._loads = Loads(
            Lingering(redis, linger_s=linger_s, clock=clock, sleep=sleep, load_changes=load_changes)
        )
        self._after_commit = AfterCommit(
            redis,
            retained_bytes=retained_bytes // len(handshakes),
            clock=clock,
            failures=Failures(self._metrics.failed_steps),
        )
        for kind in outbox.KINDS:
            self._metrics.recorded.labels(kind)
        self._stopped = StoppedPartitions(handshakes, self._metrics.writer_stopped, clock)

    def drain(self) -> None:
        """Have `run` return once all that Redis holds by then is on record."""
        self._draining = True

    async def run(self) -> bool:
        """Follow until drained or cancelled; after any error, afresh and with backoff.

        False when a partition was left behind: one that is stopped, or stays closed.
        """
        pause = _PAUSE_S
        while True:
            before = dict(self._committed)
            try:
                async with await self._connect() as ledger:
                    await self._follow(ledger)
                    return not (self._stopped or self._held)
            except (*UNAVAILABLE, RedisError) as error:
                lasting = meaning(error) == "needs_somebody"
                self._note(f"{type(error).__name__}: {error}", lasting=lasting)
            if self._committed != before:
                pause = _PAUSE_S
            await self._sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX_S)

    async def _follow(self, ledger: Ledger) -> None:
        """Look around, and every second again, however busy; carry over whatever comes."""
        look_at = self._clock()
        goal: dict[int, Position] | None = None
        while True:
            set_out_to_drain = self._draining and goal is None
            if set_out_to_drain or self._clock() >= look_at:
                await self._look_around(ledger)
                look_at = self._clock() + _LOOK_EVERY_S
            if set_out_to_drain:
                goal = await self._ends(self._readable())
            after = self._readable()
            if goal is not None and all(at >= goal.get(p, NOWHERE) for p, at in after.items()):
                return
            if not after:
                await self._sleep(_LOOK_EVERY_S / 4)
                continue
            load = await self._loads.take(after)
            if load is not None:
                await self._loads.during(load, self._carry_over(ledger, load))

    async def _carry_over(self, ledger: Ledger, load: Load) -> None:
        """Put a load on record, and tell Redis."""
        await self._apply(ledger, load)
        # Nothing is told or trimmed of what a record that went back does not have any more.
        trusted = {p: at for p, at in self._committed.items() if p not in self._held}
        read = {*load.entries, *load.unreadable}
        await self._after_commit.run(ledger, trusted, [p for p in trusted if p in read])

    def _readable(self) -> dict[int, Position]:
        """Return where to read on, for the partitions that were begun and that nothing stops."""
        return {
            partition: at
            for partition, at in self._committed.items()
            if partition not in self._held and not self._stopped.rests(partition)
        }

    async def _ends(self, partitions: Iterable[int]) -> dict[int, Position]:
        """Return R of each partition: how far a writer that drains has to come."""
        metas = {partition: await self._redis.meta(partition) for partition in partitions}
        return {partition: meta.last for partition, meta in metas.items() if meta}

    async def _apply(self, ledger: Ledger, load: Load) -> None:
        """Record what was read; where one partition's part is refused, record the others' alone."""
        try:
            await self._commit(ledger, load.entries, load.rows)
        except (LineageError, RefusedChangeError):
            for partition, of_partition in load.entries.items():
                await self._apply_singly(ledger, partition, of_partition)
        for partition, why in load.unreadable.items():
            if not await self._mend(partition, why):
                self._stopped.stop(partition, self._committed[partition], why)

    async def _apply_singly(self, ledger: Ledger, partition: int, entries: Sequence[Entry]) -> None:
        """Record one partition's entries one by one, so that the one that is wrong can be named."""
        for entry in entries:
            try:
                await self._commit(ledger, {partition: [entry]})
            except RefusedChangeError as error:
                why = f"PostgreSQL refuses outbox entry {entry.last.entry_id}: {error}"
                return self._stopped.stop(partition, self._committed[partition], why)
            except LineageError as error:
                return await self._broken_lineage(ledger, partition, error)
        return None

    async def _commit(
        self,
        ledger: Ledger,
        entries: Mapping[int, Sequence[Entry]],
        rows: Mapping[int, Rows] = _NOTHING,
    ) -> None:
        """One transaction. Raises LineageError or RefusedChangeError, and then nothing is done."""
        if not entries:
            return
        committed: dict[int, Position] = {}
        began = self._clock()
        async with ledger.applying(entries) as application:
            for partition, found in entries.items():
                ready = rows.get(partition)
                committed[partition] = await apply(application, partition, found, ready)
        for partition, at in committed.items():
            self._committed[partition] = at
            self._stopped.recorded(partition, at)
        self._count(entries, self._clock() - began)
        if self._trouble:
            log.info("writing again")
            self._trouble = ""

    def _count(self, entries: Mapping[int, Sequence[Entry]], duration_s: float) -> None:
        kinds = Counter(c.kind for found in entries.values() for e in found for c in e.changes)
        for kind, count in kinds.items():
            self._metrics.recorded.labels(kind).inc(count)
        self._metrics.commits.observe(duration_s)
        self._metrics.commit_changes.observe(kinds.total())

    async def _mend(self, partition: int, why: str) -> bool:
        """Have a partition rebuilt whose outbox cannot be read, if what cannot be is a stray."""
        at = self._committed[partition]
        page = await self._redis.read_outboxes({partition: at}, block_ms=0, count=_LOOK_AT)
        meta = await self._redis.meta(partition)
        if meta is None or not is_strayed(page.get(partition, ()), at, meta.last):
            return False
        log.error("stray outbox entry", partition=partition, why=why)
        await self._shake_hands(partition, seen=at, damage=Damage(meta.epoch, why))
        return True

    async def _broken_lineage(self, ledger: Ledger, partition: int, error: LineageError) -> None:
        """Look again at what follows the cursor now; if that does not follow either, compare.

        Entries that were read before a handshake ended their epoch are none of the record's. A hole
        in the outbox is there the second time as well.
        """
        log.warning("entries do not follow the record", partition=partition, why=str(error))
        at = await ledger.cursor(partition)
        if at < self._committed[partition]:
            return await self._look_around(ledger)
        again = self._broken.get(partition) == at
        self._broken[partition] = at
        self._committed[partition] = at
        if again:
            if not await self._mend(partition, str(error)):
                await self._shake_hands(partition, seen=at, adopt=False)
            del self._broken[partition]
        return None

    async def _look_around(self, ledger: Ledger) -> None:
        """Do the stores still agree? Who finds that they do not asks for a handshake."""
        if self._assure is not None:
            await self._assure(ledger)
        cursors = await ledger.cursors(self._handshakes)
        self._loads.begin_at(cursors)
        for partition in self._handshakes:
            recorded = cursors[partition].last if partition in cursors else NOWHERE
            committed = self._committed.get(partition, NOWHERE)
            meta = await self._redis.meta(partition)
            self._held.discard(partition)
            if meta is not None and meta.open:
                self._closed_since.pop(partition, None)
            wrong = self._disagreement(partition, meta, recorded, committed)
            if partition in cursors:
                self._committed[partition] = max(recorded, committed)
                self._stopped.recorded(partition, recorded)
            if meta is not None and meta.reason and not meta.open and not meta.next:
                wrong = meta.reason
                if partition in self._compared:
                    self._held.add(partition)
                    continue
            # A start compares anew what stays closed: the cause may be gone.
            self._compared.add(partition)
            if wrong:
                log.warning("the stores disagree", partition=partition, why=wrong)
                sound = recorded >= committed  # to those who were not told of what is gone, it is
                await self._shake_hands(partition, seen=max(recorded, committed), adopt=sound)
                if partition not in self._held:  # a replay may have moved P, or P is behind
                    self._committed[partition] = await ledger.cursor(partition)
            elif meta is not None:
                await self._after_commit.make_good(partition, meta, recorded)

    def _disagreement(
        self, partition: int, meta: Meta | None, recorded: Position, committed: Position
    ) -> str:
        """Compare W, P and R as they were read, P first; return what is wrong with them."""
        if recorded < committed:
            return "PostgreSQL has less than was committed"
        if meta is None:
            return "Redis is empty" if recorded != NOWHERE else ""
        if not meta.open:
            return "a handshake was not finished" if self._closed_too_long(partition) else ""
        if meta.last < recorded:
            return "Redis is behind the record"
        if meta.recorded > recorded and meta.recorded > committed:
            return "PostgreSQL is behind the watermark"
        if partition in self._after_commit.without_scripts and meta.recorded < recorded:
            return "the watermark cannot be raised: this release's scripts are not loaded"
        return ""

    def _closed_too_long(self, partition: int) -> bool:
        since = self._closed_since.setdefault(partition, self._clock())
        return self._clock() - since > _CLOSED_PATIENCE_S

    async def _shake_hands(
        self, partition: int, *, seen: Position, adopt: bool = True, damage: Damage | None = None
    ) -> None:
        """Have the stores compared; until that is done nothing of the partition is recorded."""
        self._held.add(partition)
        self._loads.forget()
        try:
            result = await self._handshakes[partition].run(seen, adopt=adopt, damage=damage)
        except HandshakeImpossible as error:
            self._note(str(error))
            await self._sleep(_PAUSE_S)
            return
        self._closed_since.pop(partition, None)
        self._after_commit.without_scripts.discard(partition)
        if isinstance(result, StaysClosed):
            log.error("stays closed", partition=partition, why=result.reason)
        else:
            self._held.discard(partition)

    def _note(self, trouble: str, *, lasting: bool = False) -> None:
        """Say a trouble once, not at each attempt; one that will not pass by itself, loudly."""
        if trouble != self._trouble:
            (log.error if lasting else log.warning)("cannot write now", why=trouble)
        self._trouble = trouble
