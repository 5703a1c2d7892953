"""Owns what is known of a running service on disk: lock, pid files, `service.json`, sockets.

One supervisor serves a data directory at a time, and the lock says which. Everything here is gone
after an orderly end; after a kill -9 the next start finds it and clears it away. Data and logs are
never removed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from service.errors import ConfigurationError

SOCKET_PATH_BYTES_MAX = 103
"""The limit of macOS; Linux allows 107."""

_LONGEST_SOCKET_NAME = ".s.PGSQL.5432.lock"
_PLAIN_PATH = re.compile(r"[\w/.+ -]+")


class AlreadyRunningError(Exception):
    """Another supervisor serves this data directory."""


@dataclass(frozen=True, slots=True)
class Service:
    """What a running supervisor says of itself in `service.json`."""

    pid: int
    http: str
    redis: str
    postgresql: str


class RunDirectory:
    """The places under one data directory, and the lock on it."""

    def __init__(self, data: Path) -> None:
        """Name the places; nothing is made before `acquire`."""
        self.data = data.expanduser().resolve()
        self.run = self.data / "run"
        self.log = self.data / "log"
        self._service = self.run / "service.json"
        self._lock_path = self.run / "lock"
        self._lock: int | None = None

    def acquire(self) -> None:
        """Make the directories and take the lock, which ends with the process at the latest.

        Raises AlreadyRunningError, naming the holder, and ConfigurationError where the data
        directory cannot be written.
        """
        try:
            for directory in (self.data, self.run, self.log):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            while self._lock is None:
                self._lock = self._try_lock()
        except OSError as error:
            msg = f"ONSALE_DATA_DIR={self.data} cannot be used: {error.strerror}"
            raise ConfigurationError(msg) from None

    def release(self) -> None:
        """Remove the lock file and give the lock up; harmless where it is not held."""
        if self._lock is not None:
            # Removed while still held: who opened it meanwhile notices in _try_lock.
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _try_lock(self) -> int | None:
        """Return the locked descriptor, or None if the file was replaced under our hands."""
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            msg = f"{self.data} is already served by process {holder}; stop that one first"
            raise AlreadyRunningError(msg) from None
        if not _is_same_file(descriptor, self._lock_path):
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def log_file(self, role: str) -> Path:
        """Return where a role's output goes."""
        return self.log / f"{role}.log"

    def write_pid(self, role: str, pid: int) -> None:
        """Record a role's process; its creation time tells it from a later owner of the pid."""
        with contextlib.suppress(psutil.Error):
            created = psutil.Process(pid).create_time()
            _write_atomically(self._pid_file(role), f"{pid} {created!r}\n")

    def remove_pid(self, role: str) -> None:
        """Forget a role's process, which has ended."""
        self._pid_file(role).unlink(missing_ok=True)

    def read_pids(self) -> dict[str, tuple[int, float]]:
        """Return pid and creation time by role; a file that makes no sense is passed over."""
        found: dict[str, tuple[int, float]] = {}
        for path in self.run.glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pid, created = path.read_text().split()
                found[path.stem] = (int(pid), float(created))
        return found

    def clear(self) -> None:
        """Remove what an earlier supervisor could not; only under the lock."""
        self.remove_service()
        for path in (*self.run.glob("*.pid"), *self.run.glob("*.tmp")):
            path.unlink(missing_ok=True)

    def write_service(self, service: Service) -> None:
        """Publish the addresses for `onsale urls`; they may hold passwords, so 0600."""
        _write_atomically(self._service, json.dumps(asdict(service)) + "\n")

    def remove_service(self) -> None:
        """Withdraw what `write_service` published."""
        self._service.unlink(missing_ok=True)

    def read_service(self) -> Service | None:
        """Return what the running supervisor published, or None where none is running."""
        try:
            written = self._service.stat().st_mtime
            service = Service(**json.loads(self._service.read_text()))
            # A process younger than the file only reuses the pid.
            alive = psutil.Process(service.pid).create_time() <= written + 2
        except (OSError, ValueError, TypeError, psutil.NoSuchProcess):
            return None
        return service if alive else None

    def _pid_file(self, role: str) -> Path:
        return self.run / f"{role}.pid"


def make_sockets(data: Path) -> Path:
    """Make the private directory for the sockets of one data directory, empty, and return it.

    It cannot lie in the data directory, whose path may be longer than a socket's may be. It lies in
    TMPDIR, or in /tmp where TMPDIR is too long or has signs that clients take for several paths.
    Raises ConfigurationError where another user owns that name, or it cannot be made.
    """
    uid = os.geteuid()
    name = f"onsale-{uid}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:10]}"
    try:
        path = Path(tempfile.gettempdir()).resolve() / name
        if not _can_hold_sockets(path):
            path = Path("/tmp") / name  # noqa: S108  # ownership and mode are checked below
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        msg = (
            f"no directory for the sockets of the stores can be made: {error.strerror or error};"
            " set TMPDIR to a directory that can be written"
        )
        raise ConfigurationError(msg) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        msg = f"{path} belongs to somebody else or is open to others; remove it or set TMPDIR"
        raise ConfigurationError(msg)
    for leftover in path.iterdir():
        leftover.unlink()
    return path


def _can_hold_sockets(path: Path) -> bool:
    """Tell whether each client and each server takes the path for one path.

    unix_socket_directories is a list, and so is `host` for lib/pq, both with commas; quotes and
    backslashes mean something to one of them.
    """
    short = len(os.fsencode(path / _LONGEST_SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX
    return short and _PLAIN_PATH.fullmatch(str(path)) is not None


def remove_sockets(path: Path) -> None:
    """Remove the directory that `make_sockets` made."""
    shutil.rmtree(path, ignore_errors=True)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _write_atomically(path: Path, text: str) -> None:
    """Write a 0600 file that readers see whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
