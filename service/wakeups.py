"""What Redis says when a watermark rises: a message that saves time, and nothing more.

Whoever hears one looks into `meta`, which alone says what is on record: a message may be lost, late
or sent by anybody. One connection for all partitions, which carries nothing else.
"""

from collections.abc import AsyncGenerator
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.keys import watermark_channel

_CONNECT_S = 5.0


class Wakeups:
    """The subscription of one worker."""

    def __init__(self, url: str, partitions: int) -> None:
        """Remember where Redis is; nothing is connected yet."""
        self._partition_of = {watermark_channel(number): number for number in range(partitions)}
        pool = ConnectionPool.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,  # a message may be long in coming; and ADR 3
            socket_connect_timeout=_CONNECT_S,
        )
        self._client: Any = Redis.from_pool(pool)

    async def listen(self) -> AsyncGenerator[int, None]:
        """Subscribe, and yield a partition each time that its watermark has risen.

        Ends with the connection only. Raises redis.exceptions.RedisError and OSError.
        """
        subscription = self._client.pubsub(ignore_subscribe_messages=True)
        try:
            await subscription.ssubscribe(*self._partition_of)
            while True:
                message = await subscription.get_message(timeout=None)
                if message is not None and message["channel"] in self._partition_of:
                    yield self._partition_of[message["channel"]]
        finally:
            await subscription.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()
