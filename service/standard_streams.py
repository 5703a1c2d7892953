"""Standard streams that are missing or cannot be written to: a command ends with one line.

A process may be started with its first three descriptors closed. What it opens next would get their
numbers, and a child's redirection, or a line of a log, would go into a socket or a lock file.
"""

import os
import sys
from typing import TextIO

_MODES = ((0, os.O_RDONLY, "stdin"), (1, os.O_WRONLY, "stdout"), (2, os.O_WRONLY, "stderr"))


def open_missing() -> None:
    """Open the null device on each standard descriptor that is closed. To be called first."""
    for descriptor, mode, name in _MODES:
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is given, and all below this one are taken.
            opened = os.open(os.devnull, mode)
            assert opened == descriptor
            os.set_inheritable(descriptor, True)  # as all three are
        if getattr(sys, name) is None:
            stream = os.fdopen(descriptor, "r" if mode == os.O_RDONLY else "w", closefd=False)
            setattr(sys, name, stream)


def flush() -> str:
    """Write what is buffered; return why that failed, empty where it did not.

    A stream that failed is replaced by the null device, or the interpreter would fail on it again
    as it ends.
    """
    why = ""
    for name in ("stdout", "stderr"):
        stream: TextIO = getattr(sys, name)
        try:
            stream.flush()
        except OSError as error:
            why = why or error.strerror or str(error)
            _silence(name)
        except ValueError:  # closed by the program itself
            continue
    return why


def _silence(name: str) -> None:
    setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  # for good
