"""Names in a directory that processes share: each is held by one living process, by a file lock.

The lock ends with the process, however that ends; a later one takes the name over, and what was
kept under it. Knows nothing of what is kept.
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

_SLOTS_MAX = 256


def take_slot(
    directory: Path, role: str, *, fit: Callable[[str], bool] = lambda _: True
) -> tuple[str, int]:
    """Return a name that no living process has, the role's own if that is free, and its lock.

    The lock is a descriptor, and is held until that is closed. Names that are not `fit` are passed
    over. Raises OSError, also when there are too many.
    """
    for number in range(1, _SLOTS_MAX + 1):
        slot = role if number == 1 else f"{role}.{number}"
        if fit(slot) and (descriptor := lock_slot(directory, slot)) is not None:
            return slot, descriptor
    msg = f"{_SLOTS_MAX} processes count as {role} already"
    raise OSError(msg)


def lock_slot(directory: Path, slot: str) -> int | None:
    """Return a descriptor that holds the slot's lock, or None where another process does."""
    path = directory / f"{slot}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # whoever clears the directory has removed the file that was opened
