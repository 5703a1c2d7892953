"""The wiring of handshakes: on which stores, by whose word, and with which witnesses.

Every role and every command that runs one makes it here, so that none leaves a witness out.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from functools import partial

import asyncpg
from prometheus_client import Counter

from service import ledger, room
from service.assurance import assure
from service.errors import ConfigurationError
from service.handshake import Handshake
from service.ledger import Ledger
from service.metrics import Metrics
from service.redis_store import RedisStore
from service.settings import Settings
from service.witness import AnsweredOf, answered_on_host, prepare

_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
_AT_ONCE = 2
"""A server of 100 connections has room for the handshakes of 32 processes, one partition or 100."""


def make_handshakes(
    settings: Settings,
    redis: RedisStore,
    role: str,
    metrics: Metrics | None = None,
    *,
    answered: AnsweredOf | None = None,
    postgresql_url: str | None = None,
    connect: Callable[[int], Awaitable[Ledger]] | None = None,
    bounded: bool = False,
) -> dict[int, Handshake]:
    """Return the handshake of each partition, in order.

    `answered`: where the process has some H of its own; this host's files otherwise. `connect`
    lends a session that was made before; each handshake makes one of its own otherwise. `bounded`:
    two at once, and no more connections than that, whatever the number of partitions; not for
    handshakes that run one inside another.
    """
    postgresql_url = postgresql_url or urls_of(settings)[1]
    if answered is None:
        prepare(settings.answered_directory)
        answered = partial(answered_on_host, settings.answered_directory)
    counter = (metrics or Metrics()).handshakes

    slots = asyncio.Semaphore(_AT_ONCE) if bounded else None

    async def own_session(idle_s: int) -> Ledger:
        for pause in _PAUSES_S:
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                return await ledger.connect(
                    postgresql_url, purpose=f"{role} handshake", idle_s=idle_s, timeout_s=2.0
                )
            # All processes come at once where Redis was restarted: not again at once.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        return await ledger.connect(
            postgresql_url, purpose=f"{role} handshake", idle_s=idle_s, timeout_s=2.0
        )

    sound = partial(
        assure,
        redis,
        partitions=settings.partitions,
        durability=settings.durability,
        stated=settings.stated_redis_configuration,
        room_bytes=room.room_bytes(settings),
    )

    return {
        number: Handshake(
            number,
            redis,
            connect or own_session,
            assure=partial(sound, partition=number),
            answered=partial(answered, number),
            count=partial(_count, counter, number),
            slots=slots,
        )
        for number in range(settings.partitions)
    }


def _count(handshakes: Counter, partition: int, result: str) -> None:
    handshakes.labels(str(partition), result).inc()


def urls_of(settings: Settings) -> tuple[str, str]:
    """Return the addresses of Redis and of the record. Raises ConfigurationError."""
    if settings.own_redis_url is None or settings.postgresql_url is None:
        msg = "REDIS_URL and DATABASE_URL must say where the stores are; `onsale up` brings its own"
        raise ConfigurationError(msg)
    return settings.own_redis_url, settings.postgresql_url
