"""Reads from both stores what their soundness depends on; judges nothing.

Given a connection, asks it and keeps nothing. A Redis that hides its configuration shows none,
which is no error here.
"""

from collections.abc import Mapping
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from redis.exceptions import ResponseError

from service.settings import REDIS_SETTINGS
from service.soundness import PostgresqlAsFound, RedisAsFound

_POSTGRESQL_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "server_encoding")

_POSTGRESQL_LOOK = """
WITH given AS (
    SELECT setconfig, setrole, setdatabase FROM pg_db_role_setting
    WHERE setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
    AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
)
SELECT pg_is_in_recovery(),
    (SELECT array_agg(current_setting(name) ORDER BY place)
        FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, place)),
    CASE WHEN EXISTS (SELECT FROM given)
        AND (SELECT source FROM pg_settings WHERE name = 'synchronous_commit') <> 'client'
    THEN (SELECT array_agg(word ORDER BY setrole <> 0, setdatabase <> 0)
        FROM given, unnest(setconfig) AS word)
    END
"""
"""The third: what ALTER ROLE and ALTER DATABASE give to the next session, the one that wins last,
unless the client's own options win. `pg_settings` takes a millisecond and is asked only then."""


async def inspect_redis(client: Any) -> RedisAsFound:
    """Ask a redis.asyncio client that decodes replies. Raises RedisError and OSError."""
    pipeline = client.pipeline(transaction=False)
    pipeline.info("server", "replication", "persistence", "memory")
    pipeline.config_get(*REDIS_SETTINGS, "maxmemory")
    info, shown = await pipeline.execute(raise_on_error=False)
    if isinstance(info, Exception):
        raise info
    if isinstance(shown, ResponseError):
        shown = _told_by_info(info)
    elif isinstance(shown, Exception):
        raise shown
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info[f"{product.lower()}_version"])
    return RedisAsFound(
        product=product,
        version=tuple(int(word) for word in version.split(".") if word.isdecimal()),
        mode=str(info.get("redis_mode") or info.get("server_mode", "standalone")),
        role=str(info.get("role", "unknown")),
        configuration=dict(shown),
        write_failed=info.get("aof_last_write_status") == "err",
        rewrite_failed=info.get("aof_last_bgrewrite_status") == "err",
        rewriting=any(
            info.get(name) for name in ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
        ),
    )


def _told_by_info(info: Mapping[str, object]) -> dict[str, str]:
    """Return what INFO tells of the settings; `appendfsync` is not among it."""
    told = {}
    if "aof_enabled" in info:
        told["appendonly"] = "yes" if info["aof_enabled"] else "no"
    if "maxmemory_policy" in info:
        told["maxmemory-policy"] = str(info["maxmemory_policy"])
    return told


async def inspect_postgresql(
    connection: "asyncpg.Connection | PoolConnectionProxy",
) -> PostgresqlAsFound:
    """Ask a connection. Raises asyncpg.PostgresError, asyncpg.InterfaceError and OSError."""
    row = await connection.fetchrow(
        _POSTGRESQL_LOOK, ["server_version_num", "server_version", *_POSTGRESQL_SETTINGS]
    )
    assert row is not None  # an aggregate has a row
    in_recovery, (number, version, *values), given = row
    return PostgresqlAsFound(
        major=int(number) // 10_000,
        version=version.partition(" ")[0],
        in_recovery=in_recovery,
        settings=dict(zip(_POSTGRESQL_SETTINGS, values, strict=True)),
        next_settings=dict(word.lower().split("=", 1) for word in given or ()),
    )
