"""The handshake: how Redis and PostgreSQL come to agree before the first answer (PROTOCOL 10-16).

Start, restart, failover and repair are this one procedure. One at a time per partition, under an
advisory lock held by the one connection that does all of it; it may die anywhere and be frozen
anywhere, because every step in Redis does nothing unless `next` holds this attempt's token, and a
holder that is frozen loses its session. It alone loads scripts.

Here are the verdicts begin, continue, rebuild and replay, adoption, and resumption; everything else
stays closed. Redis is never rebuilt from a record that went back: that is brought forward from the
outbox before anything is decided (`replay`), or the partition stays closed. A rebuild leaves Redis
empty: each event comes back by the load script when it is asked for.
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from service.bringing_forward import BringingForward
from service.decision import Decision
from service.errors import (
    ConfigurationError,
    CorruptEntryError,
    LineageError,
    RefusedChangeError,
)
from service.ledger import UNAVAILABLE, Ledger
from service.lineage import NOWHERE, Epoch, Position
from service.orders import Order
from service.outbox import Change
from service.redis_store import Closed, Meta, RedisStore
from service.unrecorded import KeepAlive, find_missing, read_dropped
from service.verdicts import decide, died_between, ordered, promised_epoch, went_back

log = structlog.stdlib.get_logger("onsale.handshake")

_LOCK_WAIT_S = 3.0
_SESSION_IDLE_S = 15
_TRIES_MAX = 10


@dataclass(frozen=True, slots=True)
class Opened:
    """The partition serves, in this epoch; `how` it came to that: `adopted`, or a verdict."""

    epoch: int
    how: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class StaysClosed:
    """The stores do not agree; an operator has to look."""

    reason: str


class HandshakeImpossible(Exception):
    """It cannot be done now; it may be tried again later."""


class Handshake:
    """Runs handshakes of one partition, for a worker or for the writer."""

    def __init__(
        self,
        partition: int,
        redis: RedisStore,
        connect: Callable[[int], Awaitable[Ledger]],
        *,
        assure: Callable[[Ledger | None], Awaitable[None]],
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`connect` takes the seconds after which an idle session ends.

        `assure` raises ConfigurationError where the stores or the deployment cannot keep a promise.
        `count` hears what each handshake came to: `adopted`, a verdict, or `impossible`.
        """
        self.partition = partition
        self._redis = redis
        self._connect = connect
        self._assure = assure
        self._token = token
        self._count = count

    async def run(
        self, seen: Position = NOWHERE, *, adopt: bool = True, order: Order | None = None
    ) -> Opened | StaysClosed:
        """Make the stores agree, or adopt what another has made.

        `seen` is the highest position that the caller has met in a reply; `adopt` is False where
        the caller knows that what is open cannot be trusted. With an operator's `order` nothing is
        adopted. May be repeated and cancelled at any point. Raises HandshakeImpossible,
        redis.exceptions.RedisError or OSError, and what the order's own work raises.
        """
        try:
            result = await self._run(seen, adopt=adopt and order is None, order=order)
        except HandshakeImpossible:
            self._count("impossible")
            raise
        self._count(result.how if isinstance(result, Opened) else "stay_closed")
        return result

    async def _run(
        self, seen: Position, *, adopt: bool, order: Order | None
    ) -> Opened | StaysClosed:
        try:
            ledger = await self._connect(_SESSION_IDLE_S)
        except UNAVAILABLE as error:
            return await self._adopt_without_record(seen, adopt=adopt, why=str(error))
        async with ledger:
            try:
                await self._assure(ledger)
                if not await ledger.lock_handshake(self.partition, wait_s=_LOCK_WAIT_S):
                    msg = "another handshake of this partition is at work"
                    raise HandshakeImpossible(msg)
                for _ in range(_TRIES_MAX):
                    result = await self._attempt(ledger, seen, adopt=adopt, order=order)
                    if result is not None:
                        return result
            except ConfigurationError as error:
                raise HandshakeImpossible(str(error)) from error
            except UNAVAILABLE as error:
                msg = f"PostgreSQL: {error or type(error).__name__}"
                raise HandshakeImpossible(msg) from error
        msg = f"taken over by others {_TRIES_MAX} times"
        raise HandshakeImpossible(msg)

    async def _adopt_without_record(
        self, seen: Position, *, adopt: bool, why: str
    ) -> Opened | StaysClosed:
        """PostgreSQL is away: a Redis that was not restarted since may go on; others wait."""
        try:
            await self._assure(None)
        except ConfigurationError as error:
            raise HandshakeImpossible(str(error)) from error
        meta = await self._redis.meta(self.partition)
        if adopt and meta and await self._serves(meta, seen):
            return Opened(meta.epoch, "adopted")
        msg = f"this Redis has to be compared with PostgreSQL, which cannot be reached: {why}"
        raise HandshakeImpossible(msg)

    async def _serves(self, meta: Meta, seen: Position) -> bool:
        return (
            meta.open
            and not meta.next
            and seen <= meta.last
            and await self._redis.scripts_loaded(self.partition, meta.epoch)
        )

    async def _attempt(
        self, ledger: Ledger, seen: Position, *, adopt: bool, order: Order | None
    ) -> Opened | StaysClosed | None:
        """Once through: adopt, or resume, or close and compare; then finish. None: look again."""
        before = await ledger.cursor(self.partition)
        meta = await self._redis.meta(self.partition)
        after = await ledger.cursor(self.partition)
        lineage = (await ledger.lineages([self.partition]))[self.partition]
        if (
            adopt
            and meta
            and lineage.newest
            and lineage.newest.epoch == meta.epoch
            and before <= meta.last
            and meta.recorded <= after
            and await self._serves(meta, seen)
        ):
            return Opened(meta.epoch, "adopted")
        # Of a record that went back the verdict is another life's: it is compared, not resumed.
        if meta and meta.recorded <= after and (epoch := died_between(meta, lineage)):
            next_ = f"{epoch.epoch} {self._token()}"
            log.info(
                "epoch resumed",
                partition=self.partition,
                epoch=epoch.epoch,
                verdict=epoch.verdict,
            )
            if not await self._redis.resume(self.partition, meta.next, next_):
                return None
            finished = await self._finish(ledger, epoch, next_)
            return finished if order is None else None  # an order comes after what was under way
        return await self._close_and_compare(ledger, meta, order)

    async def _close_and_compare(
        self, ledger: Ledger, meta: Meta | None, order: Order | None
    ) -> Opened | StaysClosed | None:
        number = 1 + max(
            await ledger.highest_epoch(self.partition),
            await self._redis.outbox_epoch(self.partition),
            meta.epoch if meta else 0,
            promised_epoch(meta.next) if meta else 0,
        )
        next_ = f"{number} {self._token()}"
        closed = await self._redis.close(self.partition, meta, next_)
        if closed is None:
            return None
        awake = KeepAlive(ledger)
        if order and order.while_closed:
            await order.while_closed(ledger, closed, awake.touch)
        replayed, missing = await self._bring_forward(ledger, closed, awake)
        missing = missing or await find_missing(
            self.partition, self._redis, ledger, closed, awake.touch
        )
        tail = await self._tail(ledger, closed, missing, awake)
        async with ledger.deciding(self.partition) as decision:
            recorded = decision.recorded or NOWHERE
            verdict = decide(closed, recorded, decision.lineage, missing, replayed)
            if order:
                verdict = ordered(verdict, order.verdict, order.reason, recorded)
            begins = verdict.beginning
            await decision.put_epoch(
                number,
                verdict.name,
                begins.seq if begins else None,
                begins.epoch if begins else None,
                verdict.reason,
            )
            if verdict.name == "rebuild" and decision.recorded:
                await self._keep_orphans(decision, tail, number)
        log.info(
            "epoch decided",
            partition=self.partition,
            epoch=number,
            verdict=verdict.name,
            why=verdict.reason,
        )
        if begins is None:
            kept = await self._redis.stay_closed(self.partition, next_, verdict.reason)
            return StaysClosed(verdict.reason) if kept else None
        epoch = Epoch(number, begins.seq, begins.epoch, verdict.name)
        return await self._finish(ledger, epoch, next_)

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
            log.error("changes of Redis are orphans now", partition=self.partition, count=len(lost))

    async def _finish(self, ledger: Ledger, epoch: Epoch, next_: str) -> Opened | None:
        """Carry a verdict out. Every step may be repeated, by this attempt or the next."""
        if epoch.verdict == "rebuild" and not await self._redis.empty(self.partition, next_):
            return None
        await self._redis.load_scripts(self.partition, epoch.epoch)
        began = await self._redis.begin_epoch(
            self.partition,
            next_,
            Position(epoch.epoch, epoch.beginning),
            epoch.predecessor,
            await ledger.cursor(self.partition),
        )
        return Opened(epoch.epoch, epoch.verdict) if began else None

    async def _bring_forward(
        self, ledger: Ledger, closed: Closed, awake: KeepAlive
    ) -> tuple[str, str]:
        """Replay the outbox into a record that went back.

        Returns what was done, and why no more could be; both are empty for any other record.
        """
        recorded = await ledger.cursor(self.partition)
        if not await self._went_back(ledger, closed):
            return "", ""
        forward = BringingForward(self.partition, self._redis, ledger, closed, awake.touch)
        missing = ""
        try:
            await forward.run()
        except (LineageError, CorruptEntryError, RefusedChangeError) as error:
            missing = f"partition {self.partition}: {error}"
        if missing and not await self._went_back(ledger, closed):
            missing = ""  # what remains is the writer's, refused or not
        if not forward.changes:
            return "", missing
        log.warning("changes replayed", partition=self.partition, count=forward.changes)
        replayed = (
            f"PostgreSQL went back to {recorded.entry_id},"
            f" and was brought forward by {forward.changes} changes of the outbox"
        )
        return replayed, missing

    async def _went_back(self, ledger: Ledger, closed: Closed) -> bool:
        recorded = await ledger.cursor(self.partition)
        lineage = (await ledger.lineages([self.partition]))[self.partition]
        return went_back(closed, recorded, lineage)

    async def _tail(
        self, ledger: Ledger, closed: Closed, missing: str, awake: KeepAlive
    ) -> list[Change]:
        """Return what a rebuild would drop, empty when nothing is going to be rebuilt."""
        recorded = await ledger.cursor(self.partition)
        lineage = (await ledger.lineages([self.partition]))[self.partition]
        if decide(closed, recorded, lineage, missing).name != "rebuild":
            return []
        return await read_dropped(
            self.partition, self._redis, recorded, lineage, closed, awake.touch
        )
