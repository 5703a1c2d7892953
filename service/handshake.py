"""The handshake: how Redis and PostgreSQL come to agree before the first answer (PROTOCOL 10-16).

Start, restart, failover and repair are this one procedure. One at a time per partition, under an
advisory lock held by the one connection that does all of it; it may die anywhere and be frozen
anywhere, because every step in Redis does nothing unless `next` holds this attempt's token, and a
holder that is frozen loses its session. It alone loads scripts.

Here it is adopted, resumed, closed and finished; what a closed partition comes to is settled in
`settling`. Nothing is adopted and nothing begins that leaves out what this host's workers have
answered. A rebuild leaves Redis empty: each event comes back by the load script when it is asked
for.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from service.damage import Damage
from service.errors import ConfigurationError, UnreadableWitnessError
from service.ledger import UNAVAILABLE, Ledger
from service.lineage import NOWHERE, Epoch, Lineage, Position
from service.losses import find_loss
from service.orders import Order
from service.redis_store import Meta, RedisStore
from service.sessions import HANDSHAKE_IDLE_S
from service.settling import Answered, Settling
from service.unrecorded import KeepAlive
from service.verdicts import died_between, promised_epoch

log = structlog.stdlib.get_logger("onsale.handshake")

_LOCK_WAIT_S = 3.0
_SESSION_IDLE_S = HANDSHAKE_IDLE_S
_TRIES_MAX = 10
_EPOCHS_AHEAD_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Opened:
    """The partition serves, in this epoch.

    `how` it came to that: `adopted`, or a verdict; `at` is where the epoch began, and `why`.
    """

    epoch: int
    how: str = field(default="", compare=False)
    at: Position = field(default=NOWHERE, compare=False)
    why: str = field(default="", compare=False)


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
        answered: Answered,
        token: Callable[[], str] = lambda: secrets.token_hex(8),
        count: Callable[[str], None] = lambda _: None,
        slots: asyncio.Semaphore | None = None,
    ) -> None:
        """`connect` takes the seconds after which an idle session ends.

        `assure` raises ConfigurationError where the stores or the deployment cannot keep a promise.
        `answered` returns every H of this host, this process's own put on disk first.
        `count` hears what each handshake came to: `adopted`, a verdict, or `impossible`.
        `slots` bounds how many handshakes of the process are at work at once.
        """
        self.partition = partition
        self._redis = redis
        self._connect = connect
        self._assure = assure
        self._answered = answered
        self._token = token
        self._count = count
        self._slots = slots or contextlib.nullcontext()

    async def run(
        self,
        seen: Position = NOWHERE,
        *,
        adopt: bool = True,
        order: Order | None = None,
        damage: Damage | None = None,
    ) -> Opened | StaysClosed:
        """Make the stores agree, or adopt what another has made.

        `seen` is the highest position that the caller has met in a reply; `adopt` is False where
        the caller knows that what is open cannot be trusted; `damage` is what it has met in an
        epoch, which is rebuilt. With an operator's `order` nothing is adopted. May be repeated and
        cancelled at any point. Raises HandshakeImpossible, redis.exceptions.RedisError or OSError,
        and what the order's own work raises.
        """
        try:
            async with self._slots:
                result = await self._run(seen, adopt and order is None, order, damage)
        except HandshakeImpossible:
            self._count("impossible")
            raise
        except UnreadableWitnessError as error:
            self._count("impossible")
            raise HandshakeImpossible(str(error)) from error
        self._count(result.how if isinstance(result, Opened) else "stay_closed")
        return result

    async def _run(
        self, seen: Position, adopt: bool, order: Order | None, damage: Damage | None
    ) -> Opened | StaysClosed:
        await self._answered()  # whoever compares meanwhile must know what was answered here
        try:
            ledger = await self._connect(_SESSION_IDLE_S)
        except UNAVAILABLE as error:
            return await self._adopt_without_record(seen, adopt, damage, str(error))
        async with ledger:
            try:
                await self._assure(ledger)
                if not await ledger.lock_handshake(self.partition, wait_s=_LOCK_WAIT_S):
                    msg = "another handshake of this partition is at work"
                    raise HandshakeImpossible(msg)
                for _ in range(_TRIES_MAX):
                    result = await self._attempt(ledger, seen, adopt, order, damage)
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
        self, seen: Position, adopt: bool, damage: Damage | None, why: str
    ) -> Opened | StaysClosed:
        """PostgreSQL is away: a Redis that was not restarted since may go on; others wait."""
        try:
            await self._assure(None)
        except ConfigurationError as error:
            raise HandshakeImpossible(str(error)) from error
        answered = await self._answered()
        end = await self._redis.outbox_end(self.partition)
        meta = await self._redis.meta(self.partition)
        # What was answered here in another epoch, the record alone can hold against this one.
        adopt = adopt and meta is not None and seen.epoch in (NOWHERE.epoch, meta.epoch)
        known = max(seen, *answered, NOWHERE)
        if adopt and meta and await self._serves(meta, known, end, damage):
            return Opened(meta.epoch, "adopted")
        msg = f"this Redis has to be compared with PostgreSQL, which cannot be reached: {why}"
        raise HandshakeImpossible(msg)

    async def _serves(
        self, meta: Meta, seen: Position, end: Position | None, damage: Damage | None
    ) -> bool:
        """Return whether an open epoch may be adopted; `end` of the outbox was read before."""
        return (
            meta.open
            and not meta.next
            and not (damage and meta.epoch <= damage.epoch)
            and seen <= meta.last
            and end is not None
            and end <= meta.last
            and await self._redis.scripts_loaded(self.partition, meta.epoch)
        )

    async def _attempt(
        self,
        ledger: Ledger,
        seen: Position,
        adopt: bool,
        order: Order | None,
        damage: Damage | None,
    ) -> Opened | StaysClosed | None:
        """Once through: adopt, or resume, or close and settle; then finish. None: look again.

        No epoch follows others too fast, unless an operator orders it: what is open meanwhile stays
        open for the process that opened it.
        """
        answered = await self._answered()  # before R is read: what is answered later may be beyond
        before = await ledger.cursor(self.partition)
        end = await self._redis.outbox_end(self.partition)
        meta = await self._redis.meta(self.partition)
        after = await ledger.cursor(self.partition)
        lineage = (await ledger.lineages([self.partition]))[self.partition]
        lost = await self._lost(ledger, lineage, answered)
        if (
            adopt
            and not lost
            and meta
            and lineage.newest
            and lineage.newest.epoch == meta.epoch
            and before <= meta.last
            and meta.recorded <= after
            and await self._serves(meta, max(seen, *answered, NOWHERE), end, damage)
        ):
            return Opened(meta.epoch, "adopted")
        # Of a record that went back the verdict is another life's: it is compared, not resumed.
        # So is what a Redis says that went back into a handshake which was finished since: the
        # epoch has changes, and must not begin a second time.
        known = max(after, seen, *answered, NOWHERE).epoch
        if meta and meta.recorded <= after and (epoch := died_between(meta, lineage, known)):
            finished = await self._resume(ledger, meta, epoch)
            # An order, and the judgement of a late H, come after what was under way.
            return finished if order is None and not lost else None
        if order is None and (pause := await ledger.pause_before_epoch(self.partition)):
            log.warning("epochs follow too fast", partition=self.partition, pause_s=round(pause, 2))
            await asyncio.sleep(pause)
            return None
        return await self._close_and_settle(ledger, meta, end, answered, order, damage)

    async def _lost(self, ledger: Ledger, lineage: Lineage, answered: Sequence[Position]) -> bool:
        """Whether an epoch that has begun leaves out what was answered, unless it was confirmed."""
        if find_loss(answered, lineage) is None:
            return False
        async with ledger.deciding(self.partition) as decision:
            confirmed = await decision.confirmed_losses()
            return find_loss(answered, decision.lineage, confirmed=confirmed) is not None

    async def _resume(self, ledger: Ledger, meta: Meta, epoch: Epoch) -> Opened | None:
        next_ = f"{epoch.epoch} {self._token()}"
        log.info(
            "epoch resumed", partition=self.partition, epoch=epoch.epoch, verdict=epoch.verdict
        )
        if not await self._redis.resume(self.partition, meta.next, next_):
            return None
        return await self._finish(ledger, epoch, next_)

    async def _close_and_settle(
        self,
        ledger: Ledger,
        meta: Meta | None,
        end: Position | None,
        answered: Sequence[Position],
        order: Order | None,
        damage: Damage | None,
    ) -> Opened | StaysClosed | None:
        known = max(
            await ledger.highest_epoch(self.partition),
            meta.epoch if meta else 0,
            promised_epoch(meta.next) if meta else 0,
            *(at.epoch for at in answered),
            order.epoch_above if order else 0,
        )
        # An id is believed where `meta`, which says more, is gone; not one that no epoch comes to.
        if end and not (meta and meta.epoch) and end.epoch <= known + _EPOCHS_AHEAD_MAX:
            known = max(known, end.epoch)
        number = known + 1
        next_ = f"{number} {self._token()}"
        closed = await self._redis.close(self.partition, meta, next_)
        if closed is None:
            return None
        if damage and closed.last.epoch == damage.epoch and not closed.damage:
            closed = replace(closed, damage=damage.why)
        settling = Settling(self.partition, self._redis, ledger, closed, self._answered, order)
        verdict = await settling.run(number)
        begins = verdict.beginning
        if begins is None:
            kept = await self._redis.stay_closed(self.partition, next_, verdict.reason)
            return StaysClosed(verdict.reason) if kept else None
        epoch = Epoch(number, begins.seq, begins.epoch, verdict.name)
        return await self._finish(ledger, epoch, next_, verdict.reason)

    async def _finish(
        self, ledger: Ledger, epoch: Epoch, next_: str, why: str = ""
    ) -> Opened | None:
        """Carry a verdict out. Every step may be repeated, by this attempt or the next."""
        if epoch.verdict in ("begin", "rebuild"):
            awake = KeepAlive(ledger)
            rebuild = epoch.verdict == "rebuild"
            if not await self._redis.empty(self.partition, next_, awake.touch, rebuild=rebuild):
                return None
        await self._redis.load_scripts(self.partition, epoch.epoch)
        began = await self._redis.begin_epoch(
            self.partition,
            next_,
            Position(epoch.epoch, epoch.beginning),
            epoch.predecessor,
            await ledger.cursor(self.partition),
            await ledger.letters.frozen(self.partition),
        )
        began_at = Position(epoch.predecessor, epoch.beginning)
        return Opened(epoch.epoch, epoch.verdict, began_at, why) if began else None
