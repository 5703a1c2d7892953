"""Valkey's append-only file when it cannot be read: it is set aside, and the sale goes on.

Valkey ends on a file with a broken middle, end or manifest, and the tool that it names would cut
changes off without a word. Here the directory of the file gets another name, nothing is deleted,
and Valkey begins empty. What then holds is decided as after any loss: the partitions are rebuilt
from PostgreSQL, and one whose answers are not on record stays closed and names them.
"""

import re
from datetime import UTC, datetime
from pathlib import Path

import structlog

log = structlog.stdlib.get_logger("onsale.supervisor")

_UNREADABLE = re.compile(
    r"Bad file format reading the append only file"
    r"|Unexpected end of file reading the append only file"
    r"|Unknown command '.*' reading the append only file"
    r"|Invalid AOF manifest|Found an empty AOF manifest"
    r"|Unable to obtain the AOF file .* length\. stat: No such file"
    r"|Internal error in RDB reading|Wrong signature trying to load DB|Wrong RDB checksum"
)
"""Fatal lines of Valkey and Redis that mean these bytes.

A file that may not be opened, a disk that fails and the format of a newer version are none: there
the operator has to act, and the file is good.
"""

_DIRECTORY = "appendonlydir"
_TAIL_BYTES = 64 << 10


class AofQuarantine:
    """Looks at the log of Valkey's last life before each start."""

    def __init__(self, data: Path, log_file: Path) -> None:
        """Take Valkey's directory, and the file that its output goes to."""
        self._data = data
        self._log_file = log_file
        self._read = self._size()

    def before_start(self) -> None:
        """Set the file aside if the life before ended because of it. Raises OSError."""
        size, begin = self._size(), self._read
        self._read = size
        if size <= begin:
            return
        with self._log_file.open("rb") as file:
            file.seek(max(begin, size - _TAIL_BYTES))
            said = file.read().decode(errors="replace")
        found = next((line for line in said.splitlines() if _UNREADABLE.search(line)), None)
        directory = self._data / _DIRECTORY
        if found is None or not directory.exists():
            return
        at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = directory.with_name(f"{_DIRECTORY}.broken-{at}")
        directory.rename(aside)
        log.error("append-only file set aside", kept=str(aside), why=found.partition(" # ")[2])

    def _size(self) -> int:
        return self._log_file.stat().st_size if self._log_file.exists() else 0
