"""A directory in memory for the temporary files of a test run.

The stores of the tests sync each change, as they must. On a disk that other processes use, a sync
takes from milliseconds to seconds, and most of a run would be spent on waiting for it.
"""

import os
import shutil
from pathlib import Path

import psutil

_MEMORY = Path("/dev/shm")
_PREFIX = "onsale-tests-"
_NEEDED_BYTES = 4 << 30
"""A run takes 1.5 GB at most, with the stores of all its processes."""


def directory() -> str | None:
    """Return a directory for this process; None, for the usual one, where there is no room.

    Directories of runs that were killed are removed.
    """
    try:
        found = os.statvfs(_MEMORY)
    except OSError:
        return None
    # Some tests run programs out of their directory.
    if found.f_flag & os.ST_NOEXEC or not os.access(_MEMORY, os.W_OK):
        return None
    for path in _MEMORY.glob(f"{_PREFIX}*"):
        if not psutil.pid_exists(int(path.name.removeprefix(_PREFIX))):
            shutil.rmtree(path, ignore_errors=True)
    if found.f_bavail * found.f_frsize < _NEEDED_BYTES:
        return None
    return str(_MEMORY / f"{_PREFIX}{os.getpid()}")


def remove(path: str | None) -> None:
    """Remove a directory that `directory` returned for this process, and no other."""
    if path == str(_MEMORY / f"{_PREFIX}{os.getpid()}"):
        shutil.rmtree(path, ignore_errors=True)
