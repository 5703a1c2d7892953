"""What `onsale restore` shows: a progress bar, the plan, what came of it; tables or JSON.

Invariant: of people and of the stores' addresses nothing.
"""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from service.backup_files import BackupRefusedError
from service.handshake import Opened, StaysClosed
from service.lineage import NOWHERE, Position
from service.looking import CANNOT_TELL, OnProgress, count, cut_short, looked, refuse, say, table
from service.restore import REFUSED, Restore, Restored
from service.restore_plan import PartitionPlan
from service.restoring import CannotReplaceError, Result
from service.settings import Settings


def run(
    settings: Settings,
    directory: Path,
    *,
    apply: bool,
    even_if_violated: bool,
    machine_readable: bool,
) -> int:
    """Plan or restore, print, and return the exit code; `settings` name both stores."""

    async def restore(on_progress: OnProgress | None) -> Restored | CannotReplaceError:
        restoring = Restore(
            settings, directory, even_if_violated=even_if_violated, on_progress=on_progress
        )
        try:
            return await restoring.run(apply=apply)
        except CannotReplaceError as error:
            return error

    done = looked(
        "restoring",
        lambda on_progress: asyncio.run(restore(on_progress)),
        unknown=BackupRefusedError,
        unknown_code=REFUSED,
    )
    if isinstance(done, CannotReplaceError):
        refuse(str(done))
        done = CANNOT_TELL
    if isinstance(done, int):
        return cut_short(done, machine_readable=machine_readable)
    say(json.dumps(as_json(done)) if machine_readable else render(done))
    return done.exit_code


def as_json(done: Restored) -> dict[str, Any]:
    """Return the plan and what came of it as one JSON object."""
    return {
        "exitCode": done.exit_code,
        "applied": bool(done.results),
        "backup": done.plan.manifest.model_dump(mode="json", by_alias=True),
        "partitions": [
            {
                "partition": p.partition,
                "backup": _pair(p.backup),
                "recorded": _pair(p.recorded),
                "redis": _pair(p.last),
                "watermark": _pair(p.watermark),
                "outboxFrom": p.outbox_from or None,
                "expected": p.expected,
                "result": _result(done.results.get(p.partition)),
            }
            for p in done.plan.partitions
        ],
        "audit": done.audit or None,
        "reconcile": done.reconcile or None,
    }


def _pair(at: Position) -> dict[str, int] | None:
    return None if at == NOWHERE else {"epoch": at.epoch, "seq": at.seq}


def _result(result: Result | None) -> dict[str, Any] | None:
    """Return what a comparison came to: a verdict with its epoch, or a reason."""
    if result is None:
        return None
    if isinstance(result, Opened):
        return {"verdict": result.how, "epoch": result.epoch, "reason": None}
    verdict, why = (
        ("stay_closed", result.reason) if isinstance(result, StaysClosed) else ("unknown", result)
    )
    return {"verdict": verdict, "epoch": None, "reason": why}


def render(done: Restored) -> str:
    """Return the backup, the plan, and what came of it, for a person."""
    manifest = done.plan.manifest
    made = (
        f"whole: {count(sum(t.rows for t in manifest.tables), 'row')} in"
        f" {count(len(manifest.tables), 'file')}, {manifest.size:,} bytes, made"
        f" {manifest.ended:%Y-%m-%d %H:%M:%S} UTC by Onsale {manifest.onsale}"
    )
    parts = [made, _partitions(done.plan.partitions), "\n".join(_outcomes(done)), _end(done)]
    return "\n\n".join(part for part in parts if part)


def _partitions(partitions: Iterable[PartitionPlan]) -> str:
    rows = [
        [
            f"{p.partition}",
            _place(p.backup),
            _place(p.recorded),
            _place(p.last),
            f"{p.outbox_from}" if p.outbox_from else "-",
        ]
        for p in partitions
    ]
    heads = ["partition", "backup at", "record at", "Redis at", "outbox from seq"]
    return table(heads, rows, ">>>>>")


def _place(at: Position) -> str:
    return "-" if at == NOWHERE else at.entry_id


def _outcomes(done: Restored) -> Iterable[str]:
    """Say of each partition what came of it, or what probably will."""
    for p in done.plan.partitions:
        result = done.results.get(p.partition)
        if result is None:
            yield f"partition {p.partition}: {p.expected}."
        elif isinstance(result, Opened):
            yield f"partition {p.partition}: open in epoch {result.epoch}, {result.how}."
        elif isinstance(result, StaysClosed):
            yield f"partition {p.partition}: stays closed: {result.reason}."
        else:
            yield f"partition {p.partition}: closed until it can be compared: {result}."


def _end(done: Restored) -> str:
    if not done.results:
        replaced = (
            "The tables on record are replaced by it: take a backup of them first if they are worth"
            " one.\n"
            if done.plan.has_schema
            else "The database has no tables; they are made first.\n"
        )
        return f"{replaced}Nothing was changed; --apply restores."
    said = [f"audit {done.audit.replace('_', ' ')}"]
    if done.reconcile:
        said.append(f"reconcile {done.reconcile.replace('_', ' ')}")
    word = "restored" if done.exit_code == 0 else "restored, but look at what stands above"
    return f"{word}: {', '.join(said)}."
