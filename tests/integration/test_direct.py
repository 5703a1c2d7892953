"""Commands past the client: each gets its own reply, or none."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from service.direct import DirectCommands


@pytest.fixture
async def direct(empty_valkey: str) -> AsyncIterator[DirectCommands]:
    """Commands to a Valkey without keys."""
    pool: ConnectionPool = ConnectionPool.from_url(
        empty_valkey, decode_responses=True, retry=Retry(NoBackoff(), 0)
    )
    commands = DirectCommands(pool)
    yield commands
    await commands.aclose()


async def test_a_reply_that_was_given_up_is_nobodys(direct: DirectCommands) -> None:
    """The next command gets its own, though the other's comes meanwhile."""
    assert await direct.ask("SET", "key", "value") == "OK"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await direct.ask("BLPOP", "nothing", 1)
    await direct.ask("RPUSH", "nothing", "late")
    assert await direct.ask("GET", "key") == "value"


async def test_a_refusal_is_raised(direct: DirectCommands) -> None:
    """And the next command is answered."""
    with pytest.raises(ResponseError):
        await direct.ask("EVALSHA", "0" * 40, 0)
    assert await direct.ask("PING") == "PONG"


async def test_a_lost_connection_costs_one_command(
    direct: DirectCommands, empty_valkey: str
) -> None:
    """It is not sent again by itself, and the next one goes out on a new connection."""
    mine = await direct.ask("CLIENT", "ID")
    async with Redis.from_url(empty_valkey) as client:
        await client.execute_command("CLIENT", "KILL", "ID", mine)  # type: ignore[no-untyped-call]
    with pytest.raises((RedisError, OSError)):
        await direct.ask("PING")
    assert await direct.ask("PING") == "PONG"
    assert await direct.ask("CLIENT", "ID") != mine


async def test_a_map_is_asked_for_again_where_the_connection_is_gone(
    direct: DirectCommands, valkey: Redis
) -> None:
    """A read is: whoever looked last may have been cut off since."""
    await valkey.hset("map", mapping={"a": "1", "b": "2"})
    own = await direct.ask("CLIENT", "ID")
    await valkey.client_kill_filter(_id=own, skipme=False)
    assert await direct.ask_map("HGETALL", "map") == {"a": "1", "b": "2"}
    assert await direct.ask_map("HGETALL", "nothing") == {}
