"""Heads of the journal as lines of text: what `audit --head` prints and `--since-head` reads.

A head vouches for every row up to it, as long as it is kept where who can write to the record
cannot write. A line for each partition; files may be added to, line after line. Pure; no I/O.
"""

import re
from collections.abc import Iterable

from service.errors import ConfigurationError
from service.violations import Head

_FIRST = "# partition epoch seq sha256"
_LINE = re.compile(r"(\d{1,9}) (\d{1,18}) (\d{1,18}) ([0-9a-f]{64})", re.ASCII)


def as_lines(heads: Iterable[Head]) -> str:
    """Return heads as text; a partition without a row has none."""
    lines = [f"{h.partition} {h.epoch} {h.seq} {h.hash.hex()}" for h in heads if h.seq]
    return "\n".join([_FIRST, *lines])


def parse(text: str) -> list[Head]:
    """Return the heads of a text. Raises ConfigurationError for a line that is none, or no line."""
    heads = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            msg = f"line {number} of the kept heads is no head: {line[:80]!r}"
            raise ConfigurationError(msg)
        partition, epoch, seq = map(int, match.groups()[:3])
        heads.append(Head(partition, epoch, seq, bytes.fromhex(match[4])))
    if not heads:
        msg = "there is no head among the kept heads"
        raise ConfigurationError(msg)
    return heads
