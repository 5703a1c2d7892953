"""Asks a store whether it serves, which version it is, and whether it is sound.

For starting only: connects anew each time and keeps nothing. What a repeat cannot mend is a
ConfigurationError that names the setting; the rest is NotReadyError. Neither holds a password.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, NoPermissionError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import ConfigurationError
from service.inspection import inspect_postgresql, inspect_redis
from service.rights import complaint, missing_rights
from service.sessions import SharedSessionError, open_session
from service.soundness import PostgresqlAsFound, RedisAsFound
from service.store_urls import FILES

PROBE_SECONDS = 5.0

_NO_TLS = "rejected SSL upgrade"
"""How asyncpg puts it that a server has no TLS and was asked for it."""


class NotReadyError(Exception):
    """A store does not answer yet. `recovering`: it runs and is loading what it has."""

    def __init__(self, reason: str, *, recovering: bool = False) -> None:
        """Keep the reason, which must hold no secret."""
        super().__init__(reason)
        self.recovering = recovering


async def probe_redis(url: str, setting: str = "REDIS_URL") -> RedisAsFound:
    """Return what a Redis says of itself.

    Raises NotReadyError until it answers, and ConfigurationError, which begins with the setting.
    """
    _readable_files(url, setting)
    retry = Retry(NoBackoff(), 0)
    client: Any = Redis.from_url(
        url,
        retry=retry,
        socket_timeout=PROBE_SECONDS,
        socket_connect_timeout=PROBE_SECONDS,
        decode_responses=True,
    )
    try:
        if missing := await missing_rights(client, 0):
            msg = f"{setting}: {complaint(missing)}"
            raise ConfigurationError(msg)
        return await inspect_redis(client)
    except BusyLoadingError as error:
        raise NotReadyError(str(error), recovering=True) from None
    except (AuthenticationError, NoPermissionError) as error:
        msg = f"{setting}: {error}"
        raise ConfigurationError(msg) from None
    except (RedisError, OSError, TimeoutError) as error:
        _refuse_bad_tls(error, setting, "ssl_ca_certs")
        reason = str(error) or "no answer"
        if url.startswith("rediss:") and isinstance(error, RedisTimeoutError):
            # A Redis without TLS takes the greeting for half a line and waits for the rest.
            reason = f"{reason}; does it speak TLS at this port?"
        raise NotReadyError(reason) from None
    finally:
        await client.aclose()


async def probe_postgresql(
    url: str, setting: str = "DATABASE_URL", database: str | None = None
) -> PostgresqlAsFound:
    """Return what a PostgreSQL says of itself; raise as `probe_redis` does.

    Raises asyncpg.InvalidCatalogNameError where the server serves and the database is missing.
    """
    async with _connected(url, setting, database) as connection:
        return await inspect_postgresql(connection)


async def create_database(url: str) -> None:
    """Create the database `onsale`; harmless where it is there."""
    async with _connected(url, "DATABASE_URL", "postgres") as connection:
        with suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
            await connection.execute("CREATE DATABASE onsale", timeout=PROBE_SECONDS * 6)


async def applied_migrations(url: str) -> set[str]:
    """Return the versions in the database that a role would use; raise as `probe_redis` does."""
    try:
        async with _connected(url, "DATABASE_URL", None) as connection:
            rows = await connection.fetch("SELECT version FROM schema_migrations")
    except asyncpg.UndefinedTableError:
        return set()
    return {row["version"] for row in rows}


@asynccontextmanager
async def _connected(
    url: str, setting: str, database: str | None
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    _readable_files(url, setting)
    connection = None
    try:
        # As the roles connect, so that what they would meet is met here.
        connection = await open_session(
            url, "probe", timeout_s=PROBE_SECONDS, database=database, certain=True
        )
        yield connection
    except SharedSessionError as error:
        msg = f"{setting}: {error}"
        raise ConfigurationError(msg) from None
    except (asyncpg.InvalidCatalogNameError, asyncpg.UndefinedTableError):
        raise
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InsufficientPrivilegeError,
        # A parameter that neither the client nor the server knows, or no value of it.
        asyncpg.UndefinedObjectError,
        asyncpg.InvalidParameterValueError,
    ) as error:
        msg = f"{setting}: {error}"
        raise ConfigurationError(msg) from None
    except asyncpg.CannotConnectNowError as error:
        raise NotReadyError(str(error), recovering=True) from None
    except (asyncpg.PostgresError, OSError, TimeoutError) as error:
        _refuse_bad_tls(error, setting, "sslrootcert")
        raise NotReadyError(str(error) or "no answer") from None
    except (ValueError, asyncpg.InterfaceError):
        # The text of these may repeat the URL.
        msg = f"{setting} is not a URL of the form postgresql://user:password@host:port/name"
        raise ConfigurationError(msg) from None
    finally:
        if connection is not None:
            connection.terminate()


def _readable_files(url: str, setting: str) -> None:
    """Name the certificate that cannot be read, which the clients do not."""
    for name, path in parse_qsl(urlsplit(url).query):
        if name in FILES:
            try:
                with open(path, "rb"):  # noqa: PTH123  # only whether it can be
                    pass
            except OSError as error:
                msg = f"{setting}: {name} {path} cannot be read: {error.strerror}"
                raise ConfigurationError(msg) from None


def _refuse_bad_tls(error: BaseException, setting: str, names_authority: str) -> None:
    """Raise ConfigurationError where TLS is what failed: no repeat will mend it."""
    if _NO_TLS in str(error):
        msg = f"{setting} asks for TLS and the server has none"
        raise ConfigurationError(msg) from None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            msg = (
                f"{setting}: the server's certificate is not trusted ({cause.verify_message});"
                f" {names_authority} names the file of its authority"
            )
            raise ConfigurationError(msg) from None
        if isinstance(cause, ssl.SSLError):
            msg = f"{setting}: TLS failed: {cause.reason or cause}"
            raise ConfigurationError(msg) from None
        cause = cause.__cause__ or cause.__context__
