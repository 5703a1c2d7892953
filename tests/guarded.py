"""Servers as somebody else runs them: on TCP, for users with passwords, with TLS if asked for."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import asyncpg
import redis

from service.rights import acl_line
from tests.servers import Servers, free_port

USER = "on-sale@home"
REDIS_PASSWORD = "r3dis p@ss/w:rd?#%41 é+&"
POSTGRESQL_PASSWORD = "p0stgres p@ss/w:rd?#%41 é+&"

_ADMIN = "administrator"

MAY_READ_CONFIGURATION = "+config|get"
# All that Onsale asks of Redis, as the runbook has it: the line without its first six words.
RIGHTS = tuple(word for word in acl_line().split()[6:] if word != MAY_READ_CONFIGURATION)


@dataclass(frozen=True)
class Certificates:
    """Files of a server's certificate, and of the authority that issued it."""

    authority: Path
    certificate: Path
    key: Path


class Guarded:
    """A Redis and a PostgreSQL that let nobody in over TCP without a password."""

    def __init__(self, data: Path, tls: Certificates | None = None) -> None:
        self._redis_port, self._postgresql_port = free_port(), free_port()
        self._tls = tls
        listening: tuple[str, ...] = ("--bind", "127.0.0.1", "--port", str(self._redis_port))
        options: tuple[str, ...] = ()
        if tls is not None:
            listening = (
                *("--bind", "127.0.0.1", "--tls-port", str(self._redis_port)),
                *("--tls-cert-file", str(tls.certificate), "--tls-key-file", str(tls.key)),
                *("--tls-ca-cert-file", str(tls.authority), "--tls-auth-clients", "no"),
            )
            options = (*("ssl=on", f"ssl_cert_file={tls.certificate}", f"ssl_key_file={tls.key}"),)
        self.servers = Servers(
            data,
            redis_options=listening,
            postgresql_options=options,
            postgresql_port=self._postgresql_port,
        )

    def __enter__(self) -> Self:
        try:
            self.servers.start()
            with redis.Redis.from_url(self.servers.redis_url) as stranger:
                stranger.execute_command("ACL", "SETUSER", _ADMIN, "on", "nopass", "~*", "+@all")
                stranger.execute_command("ACL", "SETUSER", "default", "off")
            self.let_in(MAY_READ_CONFIGURATION)
            asyncio.run(self._make_user())
        except BaseException:
            self.servers.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.servers.stop()

    def let_in(self, *more: str) -> None:
        """Give the Redis user its rights and `more`, and no others."""
        words = ("reset", "on", f">{REDIS_PASSWORD}", *RIGHTS, *more)
        with self.administrator() as client:
            client.execute_command("ACL", "SETUSER", USER, *words)

    def administrator(self) -> redis.Redis:
        """Return a client of Redis that may do everything; close it."""
        return redis.Redis.from_url(self.servers.redis_url, username=_ADMIN, password="any")

    def empty_redis(self) -> None:
        """Remove all keys and scripts, for a test with a record of its own."""
        with self.administrator() as client:
            client.flushall()
            client.script_flush()

    async def _make_user(self) -> None:
        admin = await asyncpg.connect(self.servers.postgresql_url)
        await admin.execute(
            f"CREATE ROLE \"{USER}\" LOGIN CREATEDB PASSWORD '{POSTGRESQL_PASSWORD}'"
        )
        await admin.close()

    def redis_url(self, password: str = REDIS_PASSWORD, query: str = "") -> str:
        """Return the URL of its user."""
        scheme = "redis" if self._tls is None else "rediss"
        return f"{scheme}://{_who(password)}@localhost:{self._redis_port}/0{query}"

    def postgresql_url(
        self,
        password: str = POSTGRESQL_PASSWORD,
        query: str = "",
        *,
        name: str = "onsale",
        host: str = "localhost",
    ) -> str:
        """Return the URL of its user; a database that is missing may be made."""
        return f"postgresql://{_who(password)}@{host}:{self._postgresql_port}/{name}{query}"


def _who(password: str) -> str:
    return f"{quote(USER, safe='')}:{quote(password, safe='')}"
