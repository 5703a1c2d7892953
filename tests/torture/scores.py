"""What came of each sale, a line of JSON each, for the report; nowhere unless a run asks for it."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

VARIABLE = "ONSALE_TEST_TORTURE_SCORES"
"""Names the file. Each line is appended with one write, so several processes can share it."""

COMMIT = "ONSALE_TEST_TORTURE_COMMIT"
"""Says which commit the sales are held on."""


@dataclass(frozen=True)
class Score:
    """One sale, or a negative control's. `runs` is how often the fault was done in it.

    `measured` holds seconds by what they are of. `wrong` are sentences: nothing may be wrong in a
    sale, and something must be in a control.
    """

    fault: str
    seed: int
    runs: int
    operations: int
    wrong: Sequence[str] = ()
    control: bool = False
    measured: Sequence[float] = ()
    commit: str = ""


def note(score: Score) -> None:
    """Add one sale to the file."""
    path = os.environ.get(VARIABLE)
    if path:
        line = _line(replace(score, commit=os.environ.get(COMMIT, "")))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def keep(path: Path, kept: Iterable[Score]) -> None:
    """Have a file hold these alone."""
    path.write_text("".join(map(_line, kept)))


def _line(score: Score) -> str:
    return json.dumps(asdict(score)) + "\n"


def read(path: Path) -> Iterator[Score]:
    """Yield what a run has noted."""
    for line in path.read_text().splitlines():
        yield Score(**json.loads(line))
