"""What `onsale backup` shows: a progress bar, a table or JSON, one line where there is none.

Invariant: of people and of the stores' addresses nothing.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from service.backing_up import CannotBackUpError, back_up
from service.backup_files import BackupRefusedError, Manifest
from service.looking import CANNOT_TELL, OnProgress, count, cut_short, looked, refuse, say, table
from service.welcome import onsale_version

REFUSED = 1


def run(
    redis_url: str,
    postgresql_url: str,
    directory: Path,
    *,
    patience_s: float,
    machine_readable: bool,
) -> int:
    """Back up, print, and return the exit code; what keeps it from that is one line on stderr."""

    async def make(on_progress: OnProgress | None) -> Manifest | CannotBackUpError:
        try:
            return await back_up(
                redis_url,
                postgresql_url,
                directory,
                version=onsale_version(),
                patience_s=patience_s,
                on_progress=on_progress,
            )
        except CannotBackUpError as error:
            return error

    made = looked(
        "backing up",
        lambda on_progress: asyncio.run(make(on_progress)),
        unknown=BackupRefusedError,
        unknown_code=REFUSED,
    )
    if isinstance(made, CannotBackUpError):
        refuse(f"no backup was made: {made}")
        made = CANNOT_TELL
    if isinstance(made, int):
        return cut_short(made, machine_readable=machine_readable)
    say(json.dumps(as_json(made)) if machine_readable else render(made, directory))
    return 0


def as_json(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest, and the exit code."""
    return {"exitCode": 0, **manifest.model_dump(mode="json", by_alias=True)}


def render(manifest: Manifest, directory: Path) -> str:
    """Return the tables and where each partition stood, for a person."""
    tables = table(
        ["table", "rows", "bytes"],
        [[t.table, f"{t.rows:,}", f"{t.bytes:,}"] for t in manifest.tables],
        "<>>",
    )
    partitions = table(
        ["partition", "epoch", "seq", "hash"],
        [
            [f"{p.partition}", f"{p.epoch}", f"{p.seq:,}", p.head[:16] or "-"]
            for p in manifest.partitions
        ],
        ">>><",
    )
    seconds = (manifest.ended - manifest.began).total_seconds()
    changes = sum(partition.seq for partition in manifest.partitions)
    verdict = (
        f"backed up: {directory} has {count(changes, 'change')} of"
        f" {count(len(manifest.partitions), 'partition')}, all that was answered before it began;"
        f" {manifest.size:,} bytes in {seconds:.1f} s."
    )
    return f"{tables}\n\n{partitions}\n\n{verdict}"
