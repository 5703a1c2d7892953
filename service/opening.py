"""Which epoch a worker may call a partition in, and how it gets there.

Open in an epoch, closed for a reason, or on the way: then a handshake runs in the background, until
it ends one way or the other, and whoever calls waits for it. A partition that stays closed gets no
new handshake by its requests; `meta` is looked at once a second instead.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError

from service import scripts
from service.damage import Damage
from service.errors import Problem
from service.handshake import Handshake, HandshakeImpossible, Opened
from service.lineage import NOWHERE, Position
from service.redis_store import RedisStore
from service.suspension import Suspension

log = structlog.stdlib.get_logger("onsale.partition")

_PAUSE_S = 0.02
_PAUSE_MAX_S = 0.5
_LOOK_AGAIN_S = 1.0
_OFTEN_S = 60.0
_REST_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Serving:
    """The epoch to call in, and its scripts."""

    epoch: int
    scripts: dict[str, scripts.Script]


class Opening:
    """One worker's way into one partition."""

    def __init__(
        self,
        number: int,
        redis: RedisStore,
        handshake: Handshake,
        on_open: Callable[[Serving], Awaitable[None]],
        suspension: Suspension,
    ) -> None:
        """`on_open` is awaited at each opening, by those who wait for it too."""
        self._suspension = suspension
        self._number = number
        self._redis = redis
        self._handshake = handshake
        self._on_open = on_open
        self._serving: Serving | None = None
        self._opening: asyncio.Task[None] | None = None
        self._stopped = False
        self._closed_because = ""
        self._look_again_at = 0.0
        self._trouble = ""
        self._seen = NOWHERE
        self._damage: Damage | None = None
        self._damages = 0
        self._damaged_at = self._rest_until = -math.inf

    def start(self) -> None:
        """Begin to open, in the background."""
        if self._opening is None and self._serving is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def stop(self) -> None:
        """End what runs in the background; calls from here on are `unavailable`."""
        self._stopped = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)

    def lost(self, serving: Serving) -> None:
        """Take note that an epoch serves no more."""
        if self._serving is serving:
            self._serving = None

    def saw(self, serving: Serving, last: Position) -> bool:
        """Take note of an R; False when Redis went back behind one that this worker has seen."""
        if last < self._seen:
            log.error(
                "Redis went back",
                partition=self._number,
                seen=self._seen.entry_id,
                found=last.entry_id,
            )
            self.lost(serving)
            self.start()  # before anybody else adopts it: what was answered here is known here
            return False
        self._seen = last
        return True

    def doubt(self, epoch: int) -> None:
        """Have the stores compared before anybody is served again, if that epoch still serves."""
        if self._serving is not None and self._serving.epoch == epoch:
            self.lost(self._serving)
            self.start()

    def damaged(self, epoch: int, why: str) -> None:
        """Take note of damage in an epoch: requests wait until it is rebuilt."""
        if self._damage is None or self._damage.epoch < epoch:
            log.error("Redis is damaged", partition=self._number, epoch=epoch, why=why)
            self._damage = Damage(epoch, why)
            # A failure that a rebuild does not cure must not be a rebuild each second.
            now = asyncio.get_running_loop().time()
            self._damages = self._damages + 1 if now - self._damaged_at < _OFTEN_S else 0
            self._damaged_at = now
            rest_s = min(_PAUSE_MAX_S * 2**self._damages, _REST_MAX_S) if self._damages else 0.0
            self._rest_until = now + rest_s
        self.doubt(epoch)

    async def served(self, deadline: float) -> Serving:
        """Return the epoch to call in, once there is one. Raises Problem."""
        if self._suspension.why:
            raise Problem("unavailable", self._suspension.why)
        if self._serving is not None:
            return self._serving
        loop = asyncio.get_running_loop()
        if self._closed_because and loop.time() < self._look_again_at:
            raise Problem("closed", self._closed_because)
        while loop.time() < deadline and not self._stopped:
            self.start()
            if self._opening is not None:
                await asyncio.wait({self._opening}, timeout=deadline - loop.time())
            if self._serving is not None:
                return self._serving
            if self._closed_because:
                raise Problem("closed", self._closed_because)
        raise Problem("unavailable")

    async def _open(self) -> None:
        """Handshake until the partition serves, or stays closed."""
        pause = _PAUSE_S
        try:
            await asyncio.sleep(max(0.0, self._rest_until - asyncio.get_running_loop().time()))
            while True:
                try:
                    if self._closed_because and await self._is_still_closed():
                        self.stays_closed(self._closed_because)
                        return
                    result = await self._handshake.run(self._seen, damage=self._damage)
                except (
                    HandshakeImpossible,
                    RedisError,
                    OSError,
                    TimeoutError,
                ) as error:
                    self.note(str(error) or type(error).__name__)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _PAUSE_MAX_S)
                    continue
                except Exception:  # whatever is wrong, it is tried again, and never in a spin
                    log.exception("the handshake failed", partition=self._number)
                    await asyncio.sleep(_PAUSE_MAX_S)
                    continue
                if isinstance(result, Opened):
                    await self._opened(result.epoch)
                else:
                    self.stays_closed(result.reason)
                return
        finally:
            self._opening = None

    async def _is_still_closed(self) -> bool:
        """Whether what made this partition stay closed still stands; asks for no handshake."""
        meta = await self._redis.meta(self._number)
        return meta is not None and not meta.open and not meta.next and bool(meta.reason)

    async def _opened(self, epoch: int) -> None:
        log.info("serving", partition=self._number, epoch=epoch)
        self._serving = Serving(epoch, scripts.serving_scripts(self._number, epoch))
        self._closed_because = self._trouble = ""
        self._damage = None
        if self._seen.epoch != epoch:
            self._seen = Position(epoch, 0)
        await self._on_open(self._serving)

    def stays_closed(self, reason: str) -> None:
        """Take note of why nobody is served, and look again in a while."""
        if self._closed_because != reason:
            log.error("stays closed", partition=self._number, why=reason)
        self._closed_because = reason
        self._look_again_at = asyncio.get_running_loop().time() + _LOOK_AGAIN_S

    def note(self, trouble: str) -> None:
        """Say a trouble once, not at each attempt."""
        if trouble != self._trouble:
            log.warning("cannot serve now", partition=self._number, why=trouble)
        self._trouble = trouble
