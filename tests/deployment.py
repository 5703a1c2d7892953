"""A whole service of a test's own, whose processes can be killed, and whose stores put back."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis
from redis.asyncio import Redis

from service import outbox
from service.keys import partition_keys
from service.listener import bind, http_url, readiness
from service.outbox import Change
from service.redis_store import RedisStore
from tests.conftest import Client as RedisClient
from tests.http.conftest import LoggedRole
from tests.servers import Servers, wait_until

META, _, OUTBOX = partition_keys(0)
API_PROCESSES = ("api0", "api1")


@dataclass(frozen=True)
class Fault:
    """Something done to a store: nothing was answered by its old life after `until`.

    What was sent after `until` can only have been answered by a life after it. `had` is what Redis
    had in its outbox when it lost it, empty where it lost nothing.
    """

    since: float
    until: float
    had: list[Change] = field(default_factory=list)
    writer_was_frozen: bool = False


@dataclass(frozen=True)
class Build:
    """How a deployment differs from the usual one. The words are those of `Servers`.

    `settings` are the service's, or whatever else its processes shall find in their environment;
    `redis_url` is another way to Valkey, for the service alone.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    redis_options: Sequence[str] = ()
    redis_prefix: Sequence[str] = ()
    postgresql_options: Sequence[str] = ()
    postgresql_prefix: Sequence[str] = ()
    redis_url: str = ""


USUAL = Build()


class Deployment:
    """Two API processes, a writer, Valkey and PostgreSQL, on one directory.

    `answered` is how many requests a crowd had answers to, once it has left.
    """

    def __init__(
        self,
        directory: Path,
        template: Path,
        build: Build = USUAL,
        *,
        api: type[LoggedRole] = LoggedRole,
        writer: type[LoggedRole] = LoggedRole,
    ) -> None:
        """Begin with a migrated, empty record: a copy of `template`."""
        data = directory / "data"
        data.mkdir(parents=True)
        shutil.copytree(template, data / "postgresql", symlinks=True)
        self.directory = directory
        self._data = data
        self.servers = Servers(
            data,
            redis_options=build.redis_options,
            redis_prefix=build.redis_prefix,
            postgresql_options=build.postgresql_options,
            postgresql_prefix=build.postgresql_prefix,
        )
        self._listener = bind("127.0.0.1", 0)
        self.url = http_url(self._listener)
        self.environment = {
            "REDIS_URL": build.redis_url or self.servers.redis_url,
            "DATABASE_URL": self.servers.postgresql_url,
            "ONSALE_DATA_DIR": str(data),
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            **build.settings,
        }
        self.partitions = int(self.environment.get("ONSALE_PARTITIONS", "1"))
        descriptor = str(self._listener.fileno())
        self.apis = [
            api("api", self.environment, directory / f"{name}.log", "--fd", descriptor)
            for name in API_PROCESSES
        ]
        self.writer = writer("writer", self.environment, directory / "writer.log")
        self._writer_is_frozen = False
        self.answered = 0

    def start(self) -> None:
        """Start everything, and wait until it sells."""
        self.servers.start()
        self.writer.start()
        for api in self.apis:
            self.start_api(api)
        wait_until(lambda: asyncio.run(readiness(self._listener)).ready, what="it is ready")

    @property
    def roles(self) -> list[LoggedRole]:
        """Its processes, the stores apart."""
        return [*self.apis, self.writer]

    def start_api(self, api: LoggedRole) -> None:
        """Start one API process on the socket that all share."""
        api.start(pass_fds=(self._listener.fileno(),))

    def stop(self) -> None:
        """Stop everything."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._listener.close)
            stack.callback(self.servers.stop)
            for role in (self.writer, *self.apis):
                stack.callback(role.stop)

    @contextlib.contextmanager
    def writer_frozen(self) -> Iterator[None]:
        """Have nothing put on record meanwhile."""
        os.kill(self.writer.pid, signal.SIGSTOP)
        self._writer_is_frozen = True
        try:
            yield
        finally:
            self._writer_is_frozen = False
            os.kill(self.writer.pid, signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def valkey(self) -> AsyncIterator[RedisClient]:
        """Connect to Valkey."""
        client = Redis.from_url(self.servers.redis_url, decode_responses=True)
        try:
            yield client
        finally:
            await client.aclose()

    async def epoch(self) -> int:
        """Return the epoch that is open, 0 for none."""
        store = RedisStore(self.servers.redis_url)
        try:
            meta = await store.meta(0)
        finally:
            await store.aclose()
        return meta.epoch if meta and meta.open else 0

    async def is_recorded(self) -> None:
        """Wait until Redis knows that all it has is on record."""
        async with asyncio.timeout(90), self.valkey() as client:
            for partition in range(self.partitions):
                meta = partition_keys(partition).meta
                while True:
                    seq, recorded = await client.hmget(meta, "seq", "recorded")
                    if seq is not None and seq == recorded:
                        break
                    await asyncio.sleep(0.02)

    async def begin_another_epoch(self) -> None:
        """Have the processes shake hands: their scripts are gone."""
        before = await self.epoch()
        async with self.valkey() as client:
            await client.script_flush()
        async with asyncio.timeout(60):
            while await self.epoch() <= before:
                await asyncio.sleep(0.01)

    def onsale(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command as an operator does."""
        return subprocess.run(
            [sys.executable, "-m", "service", *arguments],
            env={**os.environ, **self.environment},
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )

    # What is done to the stores.

    def restart_valkey(self) -> None:
        """Kill -9, and start it again on what it has on disk."""
        self.servers.kill("valkey")
        self.servers.start_valkey()

    def kill_postgresql(self, kill: Callable[[psutil.Process], None] = psutil.Process.kill) -> None:
        """End it by what `kill` does to its first process; wait until its sessions have ended."""
        first = psutil.Process(self.servers.pid("postgresql"))
        sessions = first.children(recursive=True)
        kill(first)
        self.servers.wait_for_end("postgresql")
        psutil.wait_procs(sessions, timeout=20)

    def freeze(self, store: str, seconds: float) -> None:
        """Have a store do nothing for so long, with all its processes."""
        with frozen(self.servers.pid(store)):
            time.sleep(seconds)

    def restart_api(self, api: LoggedRole) -> None:
        """Kill -9 of one API process, and another in its place."""
        api.kill()
        self.start_api(api)

    def restart_postgresql(self, kill: Callable[[psutil.Process], None]) -> None:
        """End PostgreSQL by what `kill` does to its first process; start it on what it has."""
        self.kill_postgresql(kill)
        self.servers.start_postgres()

    def copy(self, store: str) -> None:
        """Copy a store's data directory as a disk would: all of one moment, the store at work."""
        with frozen(self.servers.pid(store)):
            shutil.copytree(self._data / store, self.directory / store, symlinks=True)

    async def wipe_valkey(self) -> Fault:
        """FLUSHALL, and what there was the moment before."""
        since = time.monotonic()
        async with self.valkey() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.xrange(OUTBOX)
            pipeline.flushall()
            found = await pipeline.execute()
        changes = [change for entry in found[0] for change in outbox.decode(*entry).changes]
        return Fault(since, time.monotonic(), changes, self._writer_is_frozen)

    def restore_valkey(self) -> Fault:
        """Kill it, and start it on the copy."""
        since = time.monotonic()
        self.servers.kill("valkey")
        until = time.monotonic()
        self._put_back("valkey")
        self.servers.start_valkey()
        had = _outbox_of(self._data / "valkey.lost", self.directory)
        return Fault(since, until, had, self._writer_is_frozen)

    async def changes(self) -> list[Change]:
        """Return every change in the outbox."""
        async with self.valkey() as client:
            return [c for e in await client.xrange(OUTBOX) for c in outbox.decode(*e).changes]

    async def trim(self) -> list[Change]:
        """Drop all of the outbox but its last entry; return what there was."""
        async with self.valkey() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.xrange(OUTBOX)
            pipeline.xtrim(OUTBOX, maxlen=1, approximate=False)
            found = await pipeline.execute()
        return [change for entry in found[0] for change in outbox.decode(*entry).changes]

    def restore_postgresql(self) -> Fault:
        """Kill it with all its sessions, and start it on the copy."""
        since = time.monotonic()
        self.kill_postgresql()
        self._put_back("postgresql")
        (self._data / "postgresql" / "postmaster.pid").unlink()
        self.servers.start_postgres()
        return Fault(since, time.monotonic())

    def _put_back(self, store: str) -> None:
        (self._data / store).rename(self._data / f"{store}.lost")
        (self.directory / store).rename(self._data / store)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process and its children, the parent first: it can make no more of them."""
    process = psutil.Process(pid)
    process.suspend()
    children = process.children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.suspend()
    try:
        yield
    finally:
        for child in (*children, process):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()


def _outbox_of(data: Path, directory: Path) -> list[Change]:
    """Return every change in the outbox of a Valkey that was killed, by starting it elsewhere."""
    lost = directory / "lost"
    servers = Servers(lost)
    (lost / "valkey").symlink_to(data)
    try:
        servers.start_valkey()
        with redis.Redis.from_url(servers.redis_url, decode_responses=True) as client:
            found = client.xrange(OUTBOX)
        assert isinstance(found, list)
        return [change for entry in found for change in outbox.decode(*entry).changes]
    finally:
        servers.stop()
