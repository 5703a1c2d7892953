"""What `onsale reconcile` shows: a progress bar, a table or JSON, one line where it cannot look.

Invariant: of people nothing but user ids, of the stores' addresses nothing.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from service import metrics
from service.findings import KINDS, EventFinding, Report
from service.looking import count, looked, printable, rest, say, some, table
from service.reconciler import UnknownEventError, reconcile

_WORST_FIRST = ("drift", "frozen", "cannot_tell", "clean")


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
    exit_code = report.exit_code if isinstance(report, Report) else report
    if isinstance(report, Report):
        say(json.dumps(as_json(report)) if machine_readable else render(report))
    elif machine_readable:
        say(json.dumps({"verdict": "cannot_tell", "exitCode": exit_code}))
    if event_ids is None and metrics_directory.expanduser().is_dir():
        drifts = len(report.drifts) if isinstance(report, Report) else 0
        metrics.note_reconcile(metrics_directory, exit_code=exit_code, drifts=drifts)
    return exit_code


def _compared(redis_url: str, postgresql_url: str, event_ids: Sequence[int] | None) -> Report | int:
    """Return the report, or the exit code after a line that says why there is none."""
    return looked(
        "comparing",
        lambda on_progress: asyncio.run(
            reconcile(redis_url, postgresql_url, event_ids=event_ids, on_progress=on_progress)
        ),
        unknown=UnknownEventError,
    )


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
                "deadLetters": event.frozen,
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
    return table(["partition", "epoch", "Redis at seq", "record at", "in flight"], rows, ">>>>>")


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
        for event in some(worst_first)
    ]
    heads = ["event", "at seq", "users", "booked", "waiting", "in flight", "verdict"]
    return table(heads, rows, ">>>>>><") + rest(len(worst_first), "events")


def _word(event: EventFinding) -> str:
    return "not in Redis" if event.absent else event.verdict.replace("_", " ")


def _drifts(report: Report) -> str:
    drifts = report.drifts
    rows = [
        [
            f"{drift.event_id}",
            printable(drift.user_id or "-"),
            drift.kind,
            printable(drift.redis or "nothing"),
            printable(drift.record or "nothing"),
        ]
        for drift in some(drifts)
    ]
    heads = ["event", "user", "drift", "Redis says", "the record says"]
    return table(heads, rows, "><<<<") + rest(len(drifts), "drifts")


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
        f"event {event.event_id}: {count(len(event.unsettled), 'user')} changed in every pass, so"
        " that no place in the waiting list can be told:"
        f" {', '.join(map(printable, event.unsettled[:5]))}."
        for event in some([event for event in report.events if event.unsettled])
    ]
    lines += [
        f"event {event.event_id} is frozen: {count(event.frozen, 'change')} of it could not go on"
        " record; its users are not compared. `onsale deadletters list` says why."
        for event in some([event for event in report.events if event.frozen])
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
        f"{count(sum(event.users for event in events), 'user')} of"
        f" {count(len(events), 'event')} compared in {report.seconds:.1f} s"
    )
    if report.verdict == "drift":
        number = sum(event.verdict == "drift" for event in events)
        return f"drift: {len(report.drifts):,} in {count(number, 'event')}; {compared}."
    if report.verdict == "frozen":
        number = sum(event.verdict == "frozen" for event in events)
        return f"frozen: {count(number, 'event')}, the others agree; {compared}."
    if report.verdict == "clean":
        return f"clean: Redis and the record agree; {compared}."
    return f"cannot tell: what could be compared agrees; {compared}."
