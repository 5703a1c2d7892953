"""A closed partition is settled: compared, decided, the verdict put on record (PROTOCOL 12, 13).

For the handshake that closed it and holds its lock, on that same session: R stands still. What the
record can be given of the outbox it is given first: a record that went back is brought forward, and
before a rebuild that an operator ordered all that Redis has is put on record. Then, in one
transaction in which P stands still, it is decided; what a rebuild is about to drop and the record
does not have goes to `orphans` in that same transaction. Redis is only read.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from service.bringing_forward import BringingForward, flaw_of_record
from service.damage import Raw, described, kept, strays_between, survey
from service.decision import Decision
from service.errors import CorruptEntryError, LineageError, RefusedChangeError
from service.ledger import Ledger
from service.lineage import NOWHERE, Lineage, Position
from service.losses import Loss
from service.orders import NONE, Order
from service.outbox import Change
from service.redis_store import Closed, RedisStore
from service.unrecorded import KeepAlive, find_missing, read_dropped
from service.verdicts import Verdict, allowed, decide, mended, ordered, went_back, witnessed

log = structlog.stdlib.get_logger("onsale.handshake")

Answered = Callable[[], Awaitable[Sequence[Position]]]
"""Returns every H of this host, as of now. Raises UnreadableWitnessError."""


class Settling:
    """One settlement of one partition. May die anywhere: the next handshake compares anew."""

    def __init__(
        self,
        partition: int,
        redis: RedisStore,
        ledger: Ledger,
        closed: Closed,
        answered: Answered,
        order: Order | None,
    ) -> None:
        """`ledger` is the session that holds the handshake's lock."""
        self._partition = partition
        self._redis = redis
        self._ledger = ledger
        self._closed = closed
        self._answered = answered
        self._order = order or NONE
        self._awake = KeepAlive(ledger)
        self._strays: Raw = {}
        self._replayed = ""
        self._missing = ""
        self._unfinished = ""
        self._flaw = ""

    async def run(self, number: int) -> Verdict:
        """Settle, and put the epoch `number` on record with the verdict, which is returned."""
        found = await survey(self._partition, self._redis, self._closed, number)
        self._closed, self._strays = found.closed, found.strays
        if self._order.while_closed and found.readable:
            await self._order.while_closed(self._ledger, self._closed, self._awake.touch)
        if found.readable:
            await self._record_what_it_lacks()
        elif (recorded := await self._ledger.cursor(self._partition)) < self._closed.last:
            self._missing = f"all after {recorded.entry_id}: the outbox is no stream"
        # After the partition was closed: whatever was answered by then was answered before.
        answered = await self._answered()
        tail = await self._foresee(number, answered) if found.readable else []
        async with self._ledger.deciding(self._partition) as decision:
            recorded = decision.recorded or NOWHERE
            confirmed = await decision.confirmed_losses()
            verdict = self._judge(number, recorded, decision.lineage, answered, confirmed)
            begins = verdict.beginning
            await decision.put_epoch(
                number,
                verdict.name,
                begins.seq if begins else None,
                begins.epoch if begins else None,
                verdict.reason,
                verdict.loss,
            )
            if verdict.name in ("begin", "rebuild"):
                await self._keep_orphans(decision, tail, number)
            if begins is not None and self._strays:
                at = time.time_ns() // 1_000
                await decision.put_orphans([*kept(self._strays, number, at)], number)
        log.info(
            "epoch decided",
            partition=self._partition,
            epoch=number,
            verdict=verdict.name,
            why=verdict.reason,
        )
        return verdict

    def _judge(
        self,
        number: int,
        recorded: Position,
        lineage: Lineage,
        answered: Sequence[Position],
        confirmed: Sequence[Loss],
    ) -> Verdict:
        verdict = decide(self._closed, recorded, lineage, self._missing, self._replayed)
        verdict = mended(verdict, self._closed, recorded, self._unfinished)
        # Nobody may confirm his way into a record that does not hold, nor have done so before.
        confirmed = [] if self._flaw else confirmed
        verdict = allowed(verdict, recorded, confirmed)
        verdict = ordered(
            verdict, self._order.verdict, self._order.reason, recorded, self._unfinished
        )
        verdict = witnessed(verdict, number, lineage, answered, confirmed, self._partition)
        if verdict.loss is None or not self._flaw:
            return verdict
        reason = f"{verdict.reason}; this cannot be confirmed: {self._flaw}; see `onsale audit`"
        return Verdict(verdict.name, None, reason)

    async def _foresee(self, number: int, answered: Sequence[Position]) -> list[Change]:
        """Look at what the verdict is going to need, while nothing is locked.

        Returns what a rebuild would drop, empty when nothing is going to be rebuilt.
        """
        recorded = await self._ledger.cursor(self._partition)
        lineage = (await self._ledger.lineages([self._partition]))[self._partition]
        unconfirmed = self._judge(number, recorded, lineage, answered, [])
        begins = decide(self._closed, recorded, lineage, self._missing).name == "begin"
        if unconfirmed.loss and not begins:  # what is empty on both sides has nothing to hold
            self._flaw = await flaw_of_record(self._ledger, self._partition)
        async with self._ledger.deciding(self._partition) as decision:
            confirmed = await decision.confirmed_losses()
        if self._judge(number, recorded, lineage, answered, confirmed).name not in (
            "begin",
            "rebuild",
        ):
            return []
        return await read_dropped(
            *(self._partition, self._redis, recorded, lineage, self._closed, self._awake.touch),
            self._strays.keys(),
        )

    async def _record_what_it_lacks(self) -> None:
        """Put on record what the verdict needs there; note what is missing, and why no more."""
        await self._bring_forward()
        await self._find_missing()
        if self._missing:
            recorded = await self._ledger.cursor(self._partition)
            strays = await strays_between(self._partition, self._redis, recorded, self._closed.last)
            if strays:
                self._strays = {**strays, **self._strays}
                self._closed = replace(self._closed, damage=described(self._strays))
                self._missing = ""
                await self._bring_forward()
                await self._find_missing()
        if (self._order.verdict == "rebuild" or self._closed.damage) and not self._missing:
            await self._finish_recording()

    async def _find_missing(self) -> None:
        self._missing = self._missing or await find_missing(
            *(self._partition, self._redis, self._ledger, self._closed, self._awake.touch),
            self._strays.keys(),
        )

    async def _keep_orphans(self, decision: Decision, tail: list[Change], number: int) -> None:
        """Keep what a rebuild is about to drop and the record does not have."""
        recorded = decision.recorded or NOWHERE
        lost = [
            change
            for change in tail
            if change.seq > recorded.seq
            or not decision.lineage.holds(Position(change.epoch, change.seq))
        ]
        if lost:
            await decision.put_orphans(lost, number)
            log.error(
                "changes of Redis are orphans now", partition=self._partition, count=len(lost)
            )

    async def _bring_forward(self) -> None:
        """Replay the outbox into a record that went back; note what was done, and why no more."""
        recorded = await self._ledger.cursor(self._partition)
        if not await self._went_back():
            return
        forward = self._forward()
        try:
            await forward.run()
        except (LineageError, CorruptEntryError) as error:
            self._missing = f"partition {self._partition}: {error}"
        except RefusedChangeError as error:
            self._missing = f"partition {self._partition}: {error}; see `onsale deadletters list`"
        if self._missing and not await self._went_back():
            self._missing = ""  # what remains is the writer's, refused or not
        if forward.changes:
            log.warning("changes replayed", partition=self._partition, count=forward.changes)
            self._replayed = (
                f"PostgreSQL went back to {recorded.entry_id},"
                f" and was brought forward by {forward.changes} changes of the outbox"
            )

    async def _finish_recording(self) -> None:
        """Put on record all that Redis has and the record lacks: nothing with lineage is dropped.

        Not of a Redis that the record does not lead to: what that has goes to the orphans.
        """
        recorded = await self._ledger.cursor(self._partition)
        lineage = (await self._ledger.lineages([self._partition]))[self._partition]
        verdict = decide(self._closed, recorded, lineage, "")
        if verdict.name != "continue":
            return
        forward = self._forward()
        try:
            await forward.finish()
        except (LineageError, CorruptEntryError, RefusedChangeError) as error:
            self._unfinished = str(error)
        if forward.changes:
            log.info("changes finished", partition=self._partition, count=forward.changes)

    def _forward(self) -> BringingForward:
        return BringingForward(
            self._partition,
            self._redis,
            self._ledger,
            self._closed,
            self._awake.touch,
            self._order.progress,
            self._strays.keys(),
        )

    async def _went_back(self) -> bool:
        recorded = await self._ledger.cursor(self._partition)
        lineage = (await self._ledger.lineages([self._partition]))[self._partition]
        return went_back(self._closed, recorded, lineage)
