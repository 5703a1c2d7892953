"""Clocks that can be moved while a process runs, each by a file: libfaketime, preloaded.

The clock that tells how long something took goes on as it did: setting a clock does not move it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

LIBRARY = "libfaketime.so.1"
VARIABLE = "ONSALE_TEST_FAKETIME"
"""Names the library, or a directory with it, where it is not in a usual place."""

_USUAL = (
    "/usr/lib/*/faketime",
    "/usr/lib/faketime",
    "/usr/lib64/faketime",
    "/usr/local/lib/faketime",
)


def library() -> Path:
    """Return the library; where there is none, fail and say how to get one."""
    if given := os.environ.get(VARIABLE):
        path = Path(given)
        found = [path] if path.is_file() else sorted(path.rglob(LIBRARY))
    else:
        found = [one for place in _USUAL for one in Path("/").glob(f"{place[1:]}/{LIBRARY}")]
    assert found, (
        f"the fault suite moves clocks with {LIBRARY}, which is not here: apt install libfaketime,"
        f" or set {VARIABLE} to a directory in which `.ci/debian-faketime` has put it"
    )
    return found[0]


class Clock:
    """The clock of some processes: what this machine says, and so many seconds more."""

    def __init__(self, path: Path) -> None:
        """`path` is a file that is not there yet."""
        self._path = path
        self.move(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a process has to find in its environment to go by this clock."""
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @property
    def prefix(self) -> Sequence[str]:
        """The command that starts a server on this clock."""
        return ("env", *(f"{name}={value}" for name, value in self.environment.items()))

    def move(self, seconds: int) -> None:
        """Set it, from where this machine's stands; a reader sees the old or the new."""
        beside = self._path.with_suffix(".new")
        beside.write_text(f"{seconds:+d}\n")
        beside.rename(self._path)
