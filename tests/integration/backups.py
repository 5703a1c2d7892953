"""Backups made and restored in the test's own process: what the tests of both share."""

import asyncio
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg

from service.auditor import audit
from service.backing_up import back_up
from service.backup_files import MANIFEST, Manifest
from service.reconciler import reconcile
from service.restore import Restore, Restored
from service.settings import Settings
from service.violations import AuditReport
from tests.conftest import Stores
from tests.servers import fresh_database


async def made(stores: Stores, directory: Path, *, patience_s: float = 10) -> Manifest:
    """Back up these stores."""
    return await back_up(
        stores.redis_url,
        stores.postgresql_url,
        directory,
        version="test",
        patience_s=patience_s,
    )


async def restored(
    settings: Settings, directory: Path, *, apply: bool = True, even_if_violated: bool = False
) -> Restored:
    """Plan or restore a backup onto the stores of these settings."""
    restore = Restore(settings, directory, even_if_violated=even_if_violated, on_progress=None)
    return await restore.run(apply=apply)


async def is_sound(settings: Settings) -> AuditReport:
    """Hold both stores to audit and reconcile."""
    assert settings.own_redis_url is not None
    assert settings.postgresql_url is not None
    report = await audit(settings.postgresql_url)
    assert report.verdict == "holds"
    assert (await reconcile(settings.own_redis_url, settings.postgresql_url)).verdict == "clean"
    return report


async def elsewhere(stores: Stores, suffix: str = "elsewhere", **others: Any) -> Settings:
    """Return the settings of an empty deployment, in another database and keyspace."""
    name = database_of(stores) + f"_{suffix}"
    await fresh_database(
        stores.postgresql_url.replace(f"/{database_of(stores)}?", "/onsale?"), name
    )
    return on_database(stores, name, **others)


def on_database(stores: Stores, name: str, **others: Any) -> Settings:
    """Return the settings of another host: another database, and Valkey's second keyspace."""
    return Settings(
        data_dir=Path(os.environ["ONSALE_DATA_DIR"]).with_name(name),
        redis_url=stores.redis_url.replace("db=0", "db=1"),
        database_url=stores.postgresql_url.replace(f"/{database_of(stores)}?", f"/{name}?"),
        **others,
    )


def database_of(stores: Stores) -> str:
    """Return the name of this test's database."""
    return stores.postgresql_url.partition("?")[0].rpartition("/")[2]


async def booked(settings: Settings) -> dict[str, str]:
    """Return each user's status on record."""
    assert settings.postgresql_url is not None
    connection = await asyncpg.connect(settings.postgresql_url)
    try:
        rows = await connection.fetch("SELECT user_id, status FROM bookings")
    finally:
        await connection.close()
    return {row["user_id"]: row["status"] for row in rows}


def rewrite_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit what a backup says of itself."""
    found = json.loads((directory / MANIFEST).read_text())
    change(found)
    (directory / MANIFEST).write_text(json.dumps(found))


async def content(settings: Settings) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables but for those that every handshake adds."""
    assert settings.postgresql_url is not None
    connection = await asyncpg.connect(settings.postgresql_url)
    tables = ("epochs", "cursors", "journal", "events", "bookings", "orphans", "deployment")
    try:
        return {
            table: sorted(tuple(map(str, row)) for row in await connection.fetch(f"TABLE {table}"))
            for table in tables
        }
    finally:
        await connection.close()


def modes(directory: Path) -> tuple[int, dict[str, int]]:
    """Return who may do what with a directory, and with each of its files."""
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    return stat.S_IMODE(directory.stat().st_mode), files


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
