"""Reads from both stores what their soundness depends on; judges nothing.

Given a connection, asks it and keeps nothing. A Redis that hides its configuration shows none,
which is no error here.
"""

from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from redis.exceptions import ResponseError

from service.settings import REDIS_SETTINGS
from service.soundness import PostgresqlAsFound, RedisAsFound

_POSTGRESQL_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "server_encoding")


async def inspect_redis(client: Any) -> RedisAsFound:
    """Ask a redis.asyncio client that decodes replies. Raises RedisError and OSError."""
    server = await client.info("server")
    replication = await client.info("replication")
    try:
        shown = await client.config_get(*REDIS_SETTINGS, "maxmemory")
    except ResponseError:
        shown = {}
    product = "Valkey" if "valkey_version" in server else "Redis"
    version = str(server[f"{product.lower()}_version"])
    return RedisAsFound(
        product=product,
        version=tuple(int(word) for word in version.split(".") if word.isdecimal()),
        mode=str(server.get("redis_mode") or server.get("server_mode", "standalone")),
        role=str(replication.get("role", "unknown")),
        configuration=dict(shown),
    )


async def inspect_postgresql(
    connection: "asyncpg.Connection | PoolConnectionProxy",
) -> PostgresqlAsFound:
    """Ask a connection. Raises asyncpg.PostgresError, asyncpg.InterfaceError and OSError."""
    row = await connection.fetchrow(
        "SELECT pg_is_in_recovery(), array_agg(current_setting(name) ORDER BY place)"
        " FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, place)",
        ["server_version_num", "server_version", *_POSTGRESQL_SETTINGS],
    )
    assert row is not None  # an aggregate has a row
    in_recovery, (number, version, *values) = row
    return PostgresqlAsFound(
        major=int(number) // 10_000,
        version=version.partition(" ")[0],
        in_recovery=in_recovery,
        settings=dict(zip(_POSTGRESQL_SETTINGS, values, strict=True)),
    )
