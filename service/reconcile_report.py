"""What `onsale reconcile` shows: a progress bar, a table or JSON, one line where it cannot look.

Invariant: of people nothing but user ids, of the stores' addresses nothing.
"""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import asyncpg
import click
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from service import metrics
from service.findings import EXIT_CODES, KINDS, EventFinding, Report
from service.ledger import UNAVAILABLE
from service.reconciler import OnProgress, UnknownEventError, reconcile

_LINES_MAX = 100
_WORST_FIRST = ("drift", "cannot_tell", "clean")
_CANNOT_TELL = EXIT_CODES["cannot_tell"]


def run(
    redis_url: str,
    postgresql_url: str,
    event_ids: Sequence[int] | None,
    *,
    machine_readable: bool,
    metrics_directory: Path,
) -> int:
    """Compare, print, and return the exit code; what keeps it from that is one line on stderr.

    What a comparison of all events came to is left for the metrics of a service that shares the
    directory.
    """
    report = _compared(redis_url, postgresql_url, event_ids)
    exit_code = report.exit_code if report else _CANNOT_TELL
    try:
        if report:
            click.echo(json.dumps(as_json(report)) if machine_readable else render(report))
        elif machine_readable:
            click.echo(json.dumps({"verdict": "cannot_tell", "exitCode": _CANNOT_TELL}))
    except OSError as error:
        # Nobody could read it; and Python's own exit code for that would read as a drift.
        click.echo(f"onsale: cannot tell: {error.strerror or error}", err=True)
        os._exit(_CANNOT_TELL)  # without another attempt to write what is left in the buffer
    if event_ids is None and metrics_directory.expanduser().is_dir():
        drifts = len(report.drifts) if report else 0
        metrics.note_reconcile(metrics_directory, exit_code=exit_code, drifts=drifts)
    return exit_code


def _compared(
    redis_url: str, postgresql_url: str, event_ids: Sequence[int] | None
) -> Report | None:
    """Return the report, or None after a line that says why there is none."""
    try:
        with _progress() as on_progress:
            return asyncio.run(
                reconcile(redis_url, postgresql_url, event_ids=event_ids, on_progress=on_progress)
            )
    except UnknownEventError as error:
        why = str(error)
    except asyncpg.UndefinedTableError:
        why = "the record has no tables; apply the migrations with `onsale migrate up`"
    except RedisError as error:
        why = f"cannot tell: Redis: {_what(error)}"
    except UNAVAILABLE as error:
        why = f"cannot tell: PostgreSQL: {_what(error)}"
    except KeyboardInterrupt:
        why = "cannot tell: interrupted"
    except Exception as error:  # a failure of ours must not pass for a drift, which is exit code 1
        traceback.print_exc()
        why = f"cannot tell: {_what(error)}"
    click.echo(f"onsale: {' '.join(why.split())}", err=True)
    return None


def _what(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Bar(AbstractContextManager[OnProgress]):
    """A bar on stderr, which goes when the work is done."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("comparing"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def __enter__(self) -> OnProgress:
        self._bar.start()
        task = self._bar.add_task("")
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _progress() -> AbstractContextManager[OnProgress | None]:
    """Show how far it is, where somebody watches."""
    return _Bar() if sys.stderr.isatty() else nullcontext()


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as one JSON object, with every drift and every event."""
    return {
        "verdict": report.verdict,
        "exitCode": report.exit_code,
        "seconds": round(report.seconds, 3),
        "partitions": [
            {
                "partition": partition.partition,
                "epoch": partition.epoch,
                "recorded": partition.recorded,
                "last": partition.last,
                "inFlight": partition.in_flight,
                "reason": partition.reason or None,
            }
            for partition in report.partitions
        ],
        "events": [
            {
                "event": event.event_id,
                "verdict": event.verdict,
                "seq": event.seq,
                "users": event.users,
                "booked": event.booked,
                "waiting": event.waiting,
                "inFlight": event.in_flight,
                "absent": event.absent,
                "unsettled": list(event.unsettled),
            }
            for event in report.events
        ],
        "drifts": [
            {
                "event": drift.event_id,
                "user": drift.user_id,
                "kind": drift.kind,
                "redis": drift.redis,
                "record": drift.record,
            }
            for drift in report.drifts
        ],
    }


def render(report: Report) -> str:
    """Return the report for a person: tables of partitions, events and drifts, then the verdict."""
    parts = [_partitions(report), _events(report), _drifts(report), *_notes(report)]
    return "\n\n".join(part for part in [*parts, _verdict(report)] if part)


def _partitions(report: Report) -> str:
    rows = [
        [f"{p.partition}", f"{p.epoch}", f"{p.last:,}", f"{p.recorded:,}", f"{p.in_flight:,}"]
        for p in report.partitions
    ]
    return _table(["partition", "epoch", "Redis at seq", "record at", "in flight"], rows, ">>>>>")


def _events(report: Report) -> str:
    worst_first = sorted(report.events, key=lambda event: _WORST_FIRST.index(event.verdict))
    rows = [
        [
            f"{event.event_id}",
            f"{event.seq:,}",
            f"{event.users:,}",
            f"{event.booked:,}",
            f"{event.waiting:,}",
            f"{event.in_flight:,}",
            _word(event),
        ]
        for event in _some(worst_first)
    ]
    heads = ["event", "at seq", "users", "booked", "waiting", "in flight", "verdict"]
    return _table(heads, rows, ">>>>>><") + _rest(len(worst_first), "events")


def _word(event: EventFinding) -> str:
    return "not in Redis" if event.absent else event.verdict.replace("_", " ")


def _printable(text: str) -> str:
    """Return what somebody put into a store by hand so that it cannot pass for a line of ours."""
    return text if text.isprintable() else repr(text)[1:-1]


def _drifts(report: Report) -> str:
    drifts = report.drifts
    rows = [
        [
            f"{drift.event_id}",
            _printable(drift.user_id or "-"),
            drift.kind,
            _printable(drift.redis or "nothing"),
            _printable(drift.record or "nothing"),
        ]
        for drift in _some(drifts)
    ]
    heads = ["event", "user", "drift", "Redis says", "the record says"]
    return _table(heads, rows, "><<<<") + _rest(len(drifts), "drifts")


def _notes(report: Report) -> Iterable[str]:
    """Say what each word that stands above means."""
    kinds = {drift.kind for drift in report.drifts}
    yield "\n".join(f"{kind}: {says}." for kind, says in KINDS.items() if kind in kinds)
    lines = [
        f"partition {p.partition} cannot be compared: {p.reason}."
        for p in report.partitions
        if p.reason
    ]
    lines += [
        f"event {event.event_id}: {_count(len(event.unsettled), 'user')} changed in every pass, so"
        " that no place in the waiting list can be told:"
        f" {', '.join(map(_printable, event.unsettled[:5]))}."
        for event in _some([event for event in report.events if event.unsettled])
    ]
    if any(event.absent for event in report.events):
        lines.append(
            "not in Redis: nothing to compare; the event comes back from the record when it is"
            " asked for."
        )
    if any(p.in_flight for p in report.partitions):
        lines.append(
            "in flight: changes that Redis had made and the writer had not put on record yet;"
            " they were taken into account."
        )
    yield "\n".join(lines)


def _verdict(report: Report) -> str:
    events = [event for event in report.events if not event.absent]
    compared = (
        f"{_count(sum(event.users for event in events), 'user')} of"
        f" {_count(len(events), 'event')} compared in {report.seconds:.1f} s"
    )
    if report.verdict == "drift":
        number = sum(event.verdict == "drift" for event in events)
        return f"drift: {len(report.drifts):,} in {_count(number, 'event')}; {compared}."
    if report.verdict == "clean":
        return f"clean: Redis and the record agree; {compared}."
    return f"cannot tell: what could be compared agrees; {compared}."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _some(rows: Sequence[Any]) -> Sequence[Any]:
    return rows[:_LINES_MAX]


def _rest(number: int, what: str) -> str:
    more = number - _LINES_MAX
    return f"\n... and {more:,} more {what}: --json has all." if more > 0 else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Return columns under their heads, empty without rows; `align` has a `<` or `>` for each."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in [heads, *rows]
    )
