"""The servers from the wheels come up, keep what they were given and listen to nobody else."""

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import cast

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from service import embedded
from service.embedded import EmbeddedPostgres, EmbeddedValkey, Store, drop_stale_lock
from service.errors import ConfigurationError
from service.probes import NotReadyError
from service.processes import Keeper
from service.rundir import RunDirectory, make_sockets, remove_sockets

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]


@contextlib.asynccontextmanager
async def running(store: Store, run: RunDirectory) -> AsyncIterator[Keeper]:
    """Keep a store running until the end of the block."""
    await store.prepare()
    assert store.role is not None
    keeper = Keeper(store.role, run)
    keeper.start()
    try:
        await serving(store)
        yield keeper
    finally:
        await keeper.stop()


async def serving(store: Store) -> str:
    """Wait until the store serves; return its version."""
    async with asyncio.timeout(90):
        while True:
            try:
                return await store.probe()
            except NotReadyError:
                await asyncio.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Give a locked data directory under a path too long for a socket."""
    run = RunDirectory(tmp_path / ("deep-" * 25) / "data")
    run.acquire()
    return run


@pytest.fixture
def sockets(run: RunDirectory) -> Iterator[Path]:
    """Give its directory for sockets."""
    path = make_sockets(run.data)
    yield path
    remove_sockets(path)
    run.release()


async def kill(keeper: Keeper) -> None:
    """Kill the server as a power cut would, and wait until it is gone."""
    assert keeper.pid is not None
    process = psutil.Process(keeper.pid)
    process.kill()
    while keeper.pid == process.pid:  # ends with the process
        await asyncio.sleep(0.01)


async def test_valkey_keeps_every_answered_write(run: RunDirectory, sockets: Path) -> None:
    """A write that was answered is there after kill -9 and after an orderly restart."""
    store = EmbeddedValkey(run, sockets)
    async with running(store, run) as keeper, Redis.from_url(store.url) as redis:
        await redis.set("a", "1")
        await kill(keeper)
        assert (await serving(store)).startswith("Valkey 9.")
        await redis.set("b", "2")
    async with running(store, run), Redis.from_url(store.url) as redis:
        assert await redis.mget("a", "b") == [b"1", b"2"]


async def test_valkey_is_set_to_lose_nothing(run: RunDirectory, sockets: Path) -> None:
    """AOF is on, synced before each answer, and nothing is ever evicted."""
    store = EmbeddedValkey(run, sockets)
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "maxmemory-policy": "noeviction",
        "save": "",
        "port": "0",
    }
    async with running(store, run), Redis.from_url(store.url) as redis:
        have = cast("dict[str, str]", await cast("Awaitable[object]", redis.config_get(*wanted)))
    assert have == wanted


async def test_postgresql_keeps_what_was_committed(run: RunDirectory, sockets: Path) -> None:
    """A committed row is there after kill -9 of the postmaster and after an orderly restart."""
    store = EmbeddedPostgres(run, sockets)
    async with running(store, run) as keeper:
        await execute(store, "CREATE TABLE kept (x int)", "INSERT INTO kept VALUES (1)")
        await kill(keeper)
        assert (await serving(store)).startswith("PostgreSQL 18.")
        await execute(store, "INSERT INTO kept VALUES (2)")
    async with running(store, run):
        connection = await asyncpg.connect(store.url)
        assert await connection.fetchval("SELECT array_agg(x ORDER BY x) FROM kept") == [1, 2]
        await connection.close()


async def execute(store: Store, *statements: str) -> None:
    """Run statements on a connection of their own."""
    connection = await asyncpg.connect(store.url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


async def test_postgresql_listens_on_its_private_socket_alone(
    run: RunDirectory, sockets: Path
) -> None:
    """No TCP port is open, and only the owner can enter the directory of the socket."""
    store = EmbeddedPostgres(run, sockets)
    async with running(store, run) as keeper:
        assert psutil.Process(keeper.pid).net_connections("tcp") == []
        assert mode(sockets) == 0o700
        assert mode(sockets / ".s.PGSQL.5432") == 0o700
        connection = await asyncpg.connect(store.url)
        safe = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums")
        assert {await connection.fetchval(f"SHOW {name}") for name in safe} == {"on"}
        assert await connection.fetchval("SHOW timezone") == "UTC"
        await connection.close()


async def test_an_initdb_that_was_killed_leaves_nothing_half_made(
    run: RunDirectory, sockets: Path
) -> None:
    """A cancelled preparation makes no data directory, and the next one makes a whole one."""
    store = EmbeddedPostgres(run, sockets)
    preparing = asyncio.create_task(store.prepare())
    unfinished = run.data / "postgresql.init"
    while not (unfinished / "PG_VERSION").exists():  # initdb tells nobody
        await asyncio.sleep(0.005)
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)
    assert not (run.data / "postgresql").exists()
    async with running(store, run):
        assert not unfinished.exists()


async def test_another_major_version_is_refused(run: RunDirectory, sockets: Path) -> None:
    """Data of another PostgreSQL is refused with both versions, before the server sees it."""
    store = EmbeddedPostgres(run, sockets)
    (run.data / "postgresql").mkdir()
    (run.data / "postgresql" / "PG_VERSION").write_text("17\n")
    with pytest.raises(ConfigurationError, match="PostgreSQL 17 and this Onsale brings 18"):
        await store.prepare()


async def test_root_without_user_namespaces_is_told_what_to_do(
    run: RunDirectory, sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where unshare is refused, root reads of an ordinary user and of DATABASE_URL."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(embedded, "_AS_ORDINARY_USER", ("unshare", "--no-such-option"))
    with pytest.raises(ConfigurationError, match="ordinary user, or set DATABASE_URL"):
        EmbeddedPostgres(run, sockets)


@pytest.mark.parametrize(
    ("pid", "stays"), [(os.getpid(), False), (2**22 - 1, True)], ids=["reused", "free"]
)
async def test_a_lock_file_with_a_reused_pid_is_dropped(
    tmp_path: Path,
    pid: int,
    stays: bool,
) -> None:
    """A postmaster.pid that names a live stranger goes; one of a dead process is PostgreSQL's."""
    lock = tmp_path / "postmaster.pid"
    lock.write_text(f"{pid}\n{tmp_path}\n")
    drop_stale_lock(tmp_path)
    assert lock.exists() == stays


async def test_a_keeper_stops_what_it_started_at_any_moment(
    run: RunDirectory, sockets: Path
) -> None:
    """A stop right after the start leaves no process and no pid file."""
    store = EmbeddedValkey(run, sockets)
    await store.prepare()
    assert store.role is not None
    keeper = Keeper(store.role, run)
    keeper.start()
    await asyncio.sleep(0)
    await keeper.stop()
    assert keeper.pid is None
    assert list(run.run.glob("*.pid")) == []
    assert keeper.last_code in (0, -signal.SIGTERM, None)
