"""What came of each sale, a line of JSON each, for the report; nowhere unless a run asks for it."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "ONSALE_TORTURE_SCORES"
"""Names the file. Each line is appended with one write, so several processes can share it."""


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


def note(score: Score) -> None:
    """Add one sale to the file."""
    path = os.environ.get(VARIABLE)
    if path:
        line = json.dumps(asdict(score)) + "\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def read(path: Path) -> Iterator[Score]:
    """Yield what a run has noted."""
    for line in path.read_text().splitlines():
        yield Score(**json.loads(line))
