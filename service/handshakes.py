"""The wiring of handshakes: on which stores, by whose word, and with which witnesses.

Every role and every command that runs one makes it here, so that none leaves a witness out.
"""

from collections.abc import Awaitable, Callable
from functools import partial

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


def make_handshakes(
    settings: Settings,
    redis: RedisStore,
    role: str,
    metrics: Metrics | None = None,
    *,
    answered: AnsweredOf | None = None,
    postgresql_url: str | None = None,
    connect: Callable[[int], Awaitable[Ledger]] | None = None,
) -> dict[int, Handshake]:
    """Return the handshake of each partition, in order.

    `answered`: where the process has some H of its own; this host's files otherwise. `connect`
    lends a session that was made before; each handshake makes one of its own otherwise.
    """
    postgresql_url = postgresql_url or urls_of(settings)[1]
    if answered is None:
        prepare(settings.answered_directory)
        answered = partial(answered_on_host, settings.answered_directory)
    counter = (metrics or Metrics()).handshakes

    def own_session(idle_s: int) -> Awaitable[Ledger]:
        return ledger.connect(
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
