"""Asks a store whether it serves, and which version it is.

For starting only: connects anew each time and keeps nothing. What it raises holds no password.
"""

import asyncpg
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from service.errors import ConfigurationError

PROBE_SECONDS = 5.0


class NotReadyError(Exception):
    """A store does not answer yet. `recovering`: it runs and is loading what it has."""

    def __init__(self, reason: str, *, recovering: bool = False) -> None:
        """Keep the reason, which must hold no secret."""
        super().__init__(reason)
        self.recovering = recovering


async def redis_version(url: str) -> str:
    """Return "Valkey 9.1.2" or "Redis 7.4.1"; raise NotReadyError until it answers."""
    retry = Retry(NoBackoff(), 0)
    try:
        client = Redis.from_url(url, retry=retry, socket_timeout=PROBE_SECONDS)
    except ValueError:
        msg = "REDIS_URL is not a URL of the form redis://, rediss:// or unix://"
        raise ConfigurationError(msg) from None
    try:
        info = await client.info("server")
    except BusyLoadingError as error:
        raise NotReadyError(str(error), recovering=True) from None
    except AuthenticationError as error:
        msg = f"REDIS_URL: {error}"
        raise ConfigurationError(msg) from None
    except (RedisError, OSError, TimeoutError) as error:
        raise NotReadyError(str(error)) from None
    finally:
        await client.aclose()
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


async def postgresql_version(url: str, database: str | None = None) -> str:
    """Return "PostgreSQL 18.6"; raise NotReadyError until it answers.

    Raises asyncpg.InvalidCatalogNameError where the server serves and the database is missing.
    """
    connection = await _connect(url, database)
    try:
        version = str(connection.get_settings().server_version).partition(" ")[0]
    finally:
        connection.terminate()
    return f"PostgreSQL {version}"


async def create_database(url: str) -> None:
    """Create the database `onsale`; harmless where it is there."""
    connection = await _connect(url, "postgres")
    try:
        await connection.execute("CREATE DATABASE onsale", timeout=PROBE_SECONDS * 6)
    except asyncpg.DuplicateDatabaseError:
        pass
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        raise NotReadyError(str(error)) from None
    finally:
        connection.terminate()


async def _connect(url: str, database: str | None) -> "asyncpg.Connection[asyncpg.Record]":
    try:
        return await asyncpg.connect(url, database=database, timeout=PROBE_SECONDS)
    except asyncpg.InvalidCatalogNameError:
        raise
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        msg = f"DATABASE_URL: {error}"
        raise ConfigurationError(msg) from None
    except asyncpg.CannotConnectNowError as error:
        raise NotReadyError(str(error), recovering=True) from None
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        raise NotReadyError(str(error) or "no answer") from None
    except (ValueError, asyncpg.InterfaceError):
        # The text of these may repeat the URL.
        msg = "DATABASE_URL is not a URL of the form postgresql://user:password@host:port/name"
        raise ConfigurationError(msg) from None
