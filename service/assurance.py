"""Acts on what is found of the stores: refuses what endangers a promise, warns of what is unwise.

The same at the start of `onsale up`, in every handshake, and of PostgreSQL whenever the writer
connects and once a second while it is connected. A warning is logged once per process, since each
handshake of each partition finds it again.
"""

from collections.abc import Awaitable, Mapping, Sequence
from functools import cache

import structlog

from service.errors import ConfigurationError
from service.ledger import Ledger
from service.redis_store import RedisStore
from service.rights import complaint
from service.settings import Durability
from service.soundness import Finding, judge_postgresql, judge_redis, judge_room

log = structlog.stdlib.get_logger("onsale.soundness")


async def assure(
    redis: RedisStore,
    ledger: Ledger | None,
    *,
    partition: int,
    partitions: int,
    durability: Durability,
    stated: Mapping[str, str],
    room_bytes: int,
) -> None:
    """Try this user's rights, inspect both stores, and hold the deployment against its record.

    Redis alone where PostgreSQL is away (`ledger` None): its half of a promise is judged all the
    same. `stated`: what a Redis that hides its configuration is set to; `room_bytes`: what Redis
    may have to hold. Raises ConfigurationError, and what reading the stores raises.
    """
    if missing := await redis.missing_rights(partition):
        raise ConfigurationError(complaint(missing))
    found = await redis.inspect()
    insist([*judge_redis(found, durability, stated), *judge_room(found, room_bytes)])
    if ledger is not None:
        insist(judge_postgresql(await ledger.inspect()))
        await ledger.claim_partitions(partitions)


async def sound(connecting: Awaitable[Ledger]) -> Ledger:
    """Return a new connection to the record, unless what is put there could be lost.

    A PostgreSQL that was restarted with other settings asks for no handshake, and a commit that is
    answered `recorded` must survive. Raises ConnectionRefusedError, and what connecting raises.
    """
    ledger = await connecting
    try:
        await still_sound(ledger)
    except BaseException:
        async with ledger:
            raise
    return ledger


async def still_sound(ledger: Ledger) -> None:
    """Look at the record's settings once more, as a connection has them now.

    Raises ConnectionRefusedError, and what reading them raises.
    """
    try:
        insist(judge_postgresql(await ledger.inspect()))
    except ConfigurationError as error:
        raise ConnectionRefusedError(str(error)) from error


def insist(findings: Sequence[Finding]) -> None:
    """Warn of what is unwise; raise ConfigurationError with all that refuses, in one line."""
    for finding in findings:
        if not finding.refuses:
            warn_once(finding.text)
    if refused := [finding.text for finding in findings if finding.refuses]:
        raise ConfigurationError("; ".join(refused))


@cache
def warn_once(text: str) -> None:
    """Say something once per process."""
    log.warning("unwise", why=text)
