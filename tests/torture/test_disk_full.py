"""A disk that is full: Valkey's file cannot grow, or PostgreSQL's tables and WAL cannot."""

import asyncio
import resource
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from tests.crowd import Answer, connected
from tests.deployment import USUAL, Build, Deployment
from tests.servers import wait_until
from tests.torture.broken import without
from tests.torture.faults import in_one_sale
from tests.torture.people import PATIENCE_S
from tests.torture.preloads import compiled
from tests.torture.sale import Sale, deployed, holds, judge, selling, until_it_sells

LIMITED = ("sh", "-c", 'trap "" XFSZ; exec "$@"', "sh")
"""A write beyond RLIMIT_FSIZE is an error then, and not the end."""

EVERYSEC = Build({"ONSALE_DURABILITY": "memory"}, redis_options=("--appendfsync", "everysec"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is preloaded into PostgreSQL."""
    return compiled("full", tmp_path_factory.mktemp("full"))


@pytest.mark.torture("valkey_disk_full")
async def test_the_disk_of_valkey_is_full(template: Path, tmp_path: Path, seed: int) -> None:
    """Valkey ends, whatever was answered is in its file, and the sale goes on with more room."""
    holds(await _valkey_full(tmp_path, template, seed))


@pytest.mark.torture("valkey_disk_full")
async def test_control_of_valkey_disk_full(template: Path, tmp_path: Path) -> None:
    """One that answers before it syncs stays up, and has not written what it answered."""
    assert await _valkey_full(tmp_path, template, 0, EVERYSEC, control=True)


async def _valkey_full(
    directory: Path, template: Path, seed: int, build: Build = USUAL, *, control: bool = False
) -> list[str]:
    build = Build(build.settings, build.redis_options, redis_prefix=LIMITED)
    async with deployed(directory, template, build) as deployment:
        patience_s = 10.0 if control else PATIENCE_S
        async with selling("valkey_disk_full", seed, deployment, patience_s=patience_s) as sale:
            for number in range(10 if control else in_one_sale(sale.fault)):
                await sale.some(20, 120)
                fill = partial(_fill_and_kill if control else _fill, sale, asks=number == 0)
                await sale.do(fill)
        return await judge(sale, control=control)


def _fill(sale: Sale, *, asks: bool) -> None:
    """Let its file grow by some bytes and no more; start it on that once more, then with room."""
    deployment = sale.deployment
    _leave(deployment, sale.chance.randint(0, 2_000))
    wait_until(lambda: deployment.servers.ended("valkey"), what="Valkey has ended")
    if asks:
        told = asyncio.run(_ask(deployment))
        assert (told.status, told.body["code"]) == (503, "unavailable"), told
    deployment.servers.start_valkey()
    _leave(deployment, sale.chance.randint(0, 2_000))
    wait_until(lambda: deployment.servers.ended("valkey"), what="Valkey has ended again")
    deployment.servers.start_valkey()


def _fill_and_kill(sale: Sale, *, asks: bool) -> None:
    """The same for one that goes on without its file, until it is killed."""
    deployment = sale.deployment
    said = _says(deployment, "valkey", "writing to the AOF file")
    _leave(deployment, 100)
    wait_until(lambda: _says(deployment, "valkey", "writing to the AOF file") > said)
    deployment.restart_valkey()
    until_it_sells(deployment)


def _leave(deployment: Deployment, room: int) -> None:
    """Let no file of Valkey grow by more than so many bytes beyond the one that it writes to."""
    file = max(
        (deployment.servers.run.data / "valkey" / "appendonlydir").glob("*.incr.aof"),
        key=lambda path: path.stat().st_mtime,
    )
    limits = (file.stat().st_size + room, resource.RLIM_INFINITY)
    resource.prlimit(deployment.servers.pid("valkey"), resource.RLIMIT_FSIZE, limits)


def _says(deployment: Deployment, store: str, text: str) -> int:
    """Return how often a store's log says something."""
    return deployment.servers.run.log_file(store).read_text(errors="replace").count(text)


async def _ask(deployment: Deployment) -> Answer:
    async with connected(deployment.url, 1) as (client,):
        return await client.get("/status/1")


@pytest.mark.torture("postgresql_disk_full")
async def test_the_disk_of_postgresql_is_full(
    template: Path, tmp_path: Path, library: Path, seed: int
) -> None:
    """Bookings go on; with more room, and where need be another start, all comes on record."""
    holds(await _postgresql_full(tmp_path, template, library, seed))


@pytest.mark.torture("postgresql_disk_full")
async def test_control_of_postgresql_disk_full(
    template: Path, tmp_path: Path, library: Path
) -> None:
    """With a writer that ends at the first error not everything comes on record."""
    tries = ("service/writer.py", "except (*UNAVAILABLE, RedisError) as", "except RedisError as")
    build = without(tmp_path, tries)
    assert await _postgresql_full(tmp_path / "service", template, library, 0, build, control=True)


async def _postgresql_full(
    directory: Path,
    template: Path,
    library: Path,
    seed: int,
    build: Build = USUAL,
    *,
    control: bool = False,
) -> list[str]:
    flag = directory.with_name("full")
    prefix = ("env", f"LD_PRELOAD={library}", f"ONSALE_TEST_DISK_FULL={flag}")
    build = Build(build.settings, postgresql_prefix=prefix)
    async with deployed(directory, template, build) as deployment:
        patience_s = 5.0 if control else PATIENCE_S
        async with selling("postgresql_disk_full", seed, deployment, patience_s=patience_s) as sale:
            for number in range(1 if control else in_one_sale(sale.fault)):
                await sale.some(20, 120)
                fill = _fill_wal if number % 2 else _fill_tables
                await sale.do(partial(fill, deployment, flag), 0 if control else 30)
        return await judge(sale, control=control)


def _fill_tables(deployment: Deployment, flag: Path) -> None:
    """No table grows until the writer has met it."""
    said = _says(deployment, "postgresql", "No space left on device")
    flag.touch()
    wait_until(lambda: _says(deployment, "postgresql", "No space left on device") > said)
    flag.unlink()


def _fill_wal(deployment: Deployment, flag: Path) -> None:
    """No file of the WAL can be made: PostgreSQL ends, and is started when there is room."""
    flag.touch()
    asyncio.run(_need_a_file(deployment))
    wait_until(lambda: deployment.servers.ended("postgresql"), what="PostgreSQL has ended")
    flag.unlink()
    deployment.servers.start_postgres()


async def _need_a_file(deployment: Deployment) -> None:
    """Have the WAL go on in another file, again and again."""
    try:
        connection = await asyncpg.connect(deployment.servers.postgresql_url)
        while True:
            await connection.execute("SELECT pg_switch_wal()")
            await connection.execute("SELECT pg_logical_emit_message(false, 'full', 'x')")
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return  # that is it
