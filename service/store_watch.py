"""Watch of both stores' settings while a worker serves: a promise is checked while it is given.

Each store is asked one question every 0.75 s. Where it cannot keep what the level promises any
more, the worker is suspended with the reason, and resumes by itself when that is put right. What
was answered between the last good look and the bad one is counted and logged as unverified: the
setting may have been changed right after the good one. A store that is away changes nothing here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from redis.exceptions import RedisError

from service.assurance import warn_once
from service.ledger import UNAVAILABLE, LedgerPool
from service.metrics import Metrics
from service.redis_store import RedisStore
from service.settings import Durability
from service.soundness import Finding, judge_postgresql, judge_redis, judge_rewrite
from service.suspension import Suspension

log = structlog.stdlib.get_logger("onsale.store_watch")

_EVERY_S = 0.75
_WITHIN_S = 0.9
_AWAY_AFTER_S = 1.5
_AWAY = "The record cannot be reached."


class StoreWatch:
    """Looks at both stores, for one worker."""

    def __init__(
        self,
        redis: RedisStore,
        ledgers: LedgerPool,
        suspension: Suspension,
        metrics: Metrics,
        *,
        durability: Durability,
        stated: Mapping[str, str],
    ) -> None:
        """Ask nothing before `start`. `ledgers`: a pool of its own, whose sessions it may end.

        `stated`: what a Redis that hides its configuration is set to.
        """
        self._redis = redis
        self._ledgers = ledgers
        self._suspension = suspension
        self._durability = durability
        self._stated = stated
        self._unverified = {
            store: metrics.unverified_answers.labels(store) for store in ("redis", "postgresql")
        }
        self._heard_at = 0.0
        self._file_was_off = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        self._tasks = [
            loop.create_task(self._look_on_at_redis()),
            loop.create_task(self._look_on_at_postgresql()),
        ]

    async def stop(self) -> None:
        """End what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_on_at_redis(self) -> None:
        def answered() -> int:
            return self._suspension.answered

        verified = answered()
        while True:
            self._tell_away()
            began, at = asyncio.get_running_loop().time(), answered()
            findings = await self._found("redis", self._redis_findings)
            if findings is not None and self._settle("redis", findings, verified, answered):
                verified = at
            await _until(began + _EVERY_S)

    async def _look_on_at_postgresql(self) -> None:
        def answered() -> int:
            return self._suspension.recorded

        verified = answered()
        while True:
            began, at = asyncio.get_running_loop().time(), answered()
            findings = await self._found("postgresql", self._postgresql_findings)
            if findings is not None:
                self._heard_at = asyncio.get_running_loop().time()
                self._tell_away()
                if self._settle("postgresql", findings, verified, answered):
                    verified = at
                else:
                    # A session keeps what it was given when it began, right or wrong.
                    await self._ledgers.expire()
            await _until(began + _EVERY_S)

    async def _found(
        self, store: str, look: Callable[[], Awaitable[Sequence[Finding]]]
    ) -> Sequence[Finding] | None:
        """Return what a look came to, None where the store did not answer."""
        try:
            async with asyncio.timeout(_WITHIN_S):
                return await look()
        except (RedisError, *UNAVAILABLE):
            return None
        except Exception:  # a failure of ours must not end the watch
            log.exception("the look at a store failed", store=store)
            return None

    async def _redis_findings(self) -> list[Finding]:
        found = await self._redis.inspect()
        findings = judge_redis(found, self._durability, self._stated)
        if found.configuration.get("appendonly") == "no":
            self._file_was_off = True
        elif self._file_was_off:
            waiting = judge_rewrite(found, self._durability)
            self._file_was_off = bool(waiting)
            findings += waiting
        return findings

    async def _postgresql_findings(self) -> list[Finding]:
        async with self._ledgers.acquire() as ledger:
            return judge_postgresql(await ledger.inspect())

    def _settle(
        self,
        store: str,
        findings: Sequence[Finding],
        verified: int,
        answered: Callable[[], int],
    ) -> bool:
        """Suspend or resume; return whether the store was found sound."""
        for finding in findings:
            if not finding.refuses:
                warn_once(finding.text)
        why = "; ".join(finding.text for finding in findings if finding.refuses)
        known = self._suspension.because.get(store)
        if not why:
            if known is not None:
                self._suspension.resume(store)
                log.info("resumed", store=store)
            return True
        self._suspension.suspend(store, why)
        if known is None:
            unverified = answered() - verified
            self._unverified[store].inc(unverified)
            log.error("suspended", store=store, why=why, unverified_answers=unverified)
        elif known != why:
            log.error("suspended", store=store, why=why)
        return False

    def _tell_away(self) -> None:
        """Where every answer waits for the record, one that is away is not ready.

        Told by both looks: one at a frozen PostgreSQL may take seconds to be given up.
        """
        silent_s = asyncio.get_running_loop().time() - self._heard_at
        is_away = self._durability == "recorded" and silent_s >= _AWAY_AFTER_S
        self._suspension.away = _AWAY if is_away else ""


async def _until(at: float) -> None:
    """Sleep until a time of the loop's clock, at least for a moment."""
    await asyncio.sleep(max(0.05, at - asyncio.get_running_loop().time()))
