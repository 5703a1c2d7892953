"""The Redis and the PostgreSQL of the user's own.

Owns what is known of using servers that somebody else runs: nothing is made, started or stopped.
Invariant: one that cannot keep what Onsale promises never gets as far as serving.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import asyncpg

from service.assurance import insist
from service.errors import ConfigurationError
from service.probes import probe_postgresql, probe_redis
from service.processes import Role
from service.settings import Durability
from service.soundness import (
    PostgresqlAsFound,
    judge_limits,
    judge_postgresql,
    judge_redis,
    judge_room,
)


class OwnRedis:
    """The Redis or Valkey that REDIS_URL names."""

    name = "Redis (REDIS_URL)"
    role: Role | None = None

    def __init__(
        self, url: str, durability: Durability, stated: Mapping[str, str], *, room_bytes: int = 0
    ) -> None:
        """Keep the URL, which may hold a password, and what the server has to be for us."""
        self.url = url
        self._room_bytes = room_bytes
        self._durability = durability
        self._stated = stated

    async def prepare(self) -> None:
        """Nothing: the data is the user's."""

    async def probe(self) -> str:
        """Return its name and version."""
        found = await probe_redis(self.url)
        with _named("REDIS_URL"):
            sound = judge_redis(found, self._durability, self._stated)
            insist([*sound, *judge_limits(found), *judge_room(found, self._room_bytes)])
        return str(found)


class OwnPostgres:
    """The PostgreSQL that DATABASE_URL or DB_HOST, the `setting`, names."""

    role: Role | None = None

    def __init__(self, url: str, setting: str) -> None:
        """Keep the URL, which may hold a password."""
        self.url = url
        self.name = f"PostgreSQL ({setting})"
        self._setting = setting

    async def prepare(self) -> None:
        """Nothing: the data is the user's."""

    async def probe(self) -> str:
        """Return its version; the database itself may be missing, the migration makes it."""
        try:
            found = await probe_postgresql(self.url, self._setting)
        except asyncpg.InvalidCatalogNameError:
            found = await self._probe_elsewhere()
        with _named(self._setting):
            insist(judge_postgresql(found))
        return str(found)

    async def _probe_elsewhere(self) -> PostgresqlAsFound:
        """Ask through the database that every server has, but for a few."""
        try:
            return await probe_postgresql(self.url, self._setting, database="postgres")
        except asyncpg.InvalidCatalogNameError:
            msg = (
                f"{self._setting}: the database is missing, and there is no database postgres to"
                " make it from; create it"
            )
            raise ConfigurationError(msg) from None


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """Put the setting that names the store before what is wrong with it."""
    try:
        yield
    except ConfigurationError as error:
        msg = f"{setting}: {error}"
        raise ConfigurationError(msg) from None
