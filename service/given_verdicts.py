"""What `onsale rebuild`, `close` and `open` do: the handshake with a given verdict, and no more.

Each partition by itself, one after the other; the sale may be open and under load. Prints what each
came to. Invariant: of the stores' addresses nothing.
"""

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from service.errors import ConfigurationError
from service.handshake import Handshake, HandshakeImpossible, Opened, StaysClosed
from service.handshakes import make_handshakes
from service.looking import CANNOT_TELL, say
from service.orders import Order
from service.redis_store import RedisStore
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Given:
    """What one partition came to; without a result there is the `trouble` that kept it from one."""

    partition: int
    result: Opened | StaysClosed | None
    seconds: float
    trouble: str = ""

    @property
    def is_open(self) -> bool:
        """Whether it serves."""
        return isinstance(self.result, Opened)


@asynccontextmanager
async def reaching(
    settings: Settings, redis_url: str, postgresql_url: str
) -> AsyncIterator[dict[int, Handshake]]:
    """Lend the handshake of each partition, on these stores and this host's witnesses.

    Raises ConfigurationError.
    """
    redis = RedisStore(redis_url)
    try:
        yield make_handshakes(settings, redis, "operator", postgresql_url=postgresql_url)
    finally:
        await redis.aclose()


def chosen(handshakes: Mapping[int, Handshake], partitions: Sequence[int]) -> list[int]:
    """Return the partitions that were named, all where none was. Raises ConfigurationError."""
    unknown = sorted(set(partitions) - handshakes.keys())
    if unknown:
        msg = f"there is no partition {unknown[0]}: ONSALE_PARTITIONS is {len(handshakes)}"
        raise ConfigurationError(msg)
    return sorted(set(partitions)) or sorted(handshakes)


async def give(
    handshakes: Mapping[int, Handshake], partitions: Sequence[int], order: Order | None
) -> list[Given]:
    """Run the handshake of each partition; without an order, as a start runs it."""
    found = []
    for partition in chosen(handshakes, partitions):
        began = time.monotonic()
        result, trouble = None, ""
        try:
            result = await handshakes[partition].run(order=order)
        except HandshakeImpossible as error:
            trouble = str(error)
        except (RedisError, OSError) as error:
            trouble = f"Redis: {error or type(error).__name__}"
        found.append(Given(partition, result, time.monotonic() - began, trouble))
    return found


def exit_code(found: Sequence[Given], *, closing: str | None = None, rebuilding: bool) -> int:
    """Return 0 where all is as ordered, else 1; 2 where it could not be done.

    `closing` is the reason with which they were to be closed.
    """
    if any(one.result is None for one in found):
        return CANNOT_TELL
    return 0 if all(_as_ordered(one, closing, rebuilding=rebuilding) for one in found) else 1


def _as_ordered(one: Given, closing: str | None, *, rebuilding: bool) -> bool:
    if closing is not None:
        return one.result == StaysClosed(closing)
    if not isinstance(one.result, Opened):
        return False
    return not rebuilding or one.result.how in ("rebuild", "begin")


def show(found: Sequence[Given], code: int, *, machine_readable: bool) -> None:
    """Print what each partition came to."""
    if machine_readable:
        partitions = [as_json(one) for one in found]
        say(json.dumps({"exitCode": code, "partitions": partitions}))
    else:
        say("\n".join(line(one) for one in found))


def as_json(one: Given) -> dict[str, Any]:
    """Return what a partition came to as a JSON object."""
    result = one.result
    opened = result if isinstance(result, Opened) else None
    return {
        "partition": one.partition,
        "open": None if result is None else opened is not None,
        "epoch": opened.epoch if opened else None,
        "verdict": opened.how if opened else "stay_closed" if result else None,
        "at": {"epoch": opened.at.epoch, "seq": opened.at.seq} if opened else None,
        "reason": (opened.why if opened else getattr(result, "reason", one.trouble)) or None,
        "seconds": round(one.seconds, 3),
    }


def line(one: Given) -> str:
    """Return what a partition came to as a line for a person."""
    if one.result is None:
        return f"partition {one.partition}: not done: {one.trouble}"
    if isinstance(one.result, StaysClosed):
        return f"partition {one.partition}: stays closed: {one.result.reason}"
    opened = one.result
    if opened.how == "adopted":
        return f"partition {one.partition}: is open, epoch {opened.epoch}"
    why = f": {opened.why}" if opened.why else ""
    return (
        f"partition {one.partition}: open, epoch {opened.epoch}, verdict {opened.how} at"
        f" {opened.at.entry_id}, in {one.seconds:.1f} s{why}"
    )
