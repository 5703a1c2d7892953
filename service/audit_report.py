"""What `onsale audit` shows: a progress bar, tables or JSON, heads, one line where it cannot look.

Invariant: of people nothing but user ids, of the store's address nothing.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any

from service import kept_heads
from service.auditor import UnknownEventError, audit
from service.looking import count, looked, printable, rest, say, some, table
from service.violations import RULES, AuditReport, Head, Violation


def run(
    postgresql_url: str,
    event_ids: Sequence[int] | None,
    *,
    machine_readable: bool,
    head: bool,
    kept: Sequence[Head],
) -> int:
    """Audit, print, and return the exit code; what keeps it from that is one line on stderr.

    `head`: heads alone go to stdout, and only those of a record that holds.
    """
    report = looked(
        "replaying",
        lambda on_progress: asyncio.run(
            audit(postgresql_url, event_ids=event_ids, kept=kept, on_progress=on_progress)
        ),
        unknown=UnknownEventError,
    )
    if isinstance(report, int):
        return report
    keep = head and report.verdict == "holds"
    if machine_readable:
        say(json.dumps(as_json(report)))
    elif keep:
        say(kept_heads.as_lines(partition.head for partition in report.partitions))
    else:
        say(render(report), err=head)
    return report.exit_code


def as_json(report: AuditReport) -> dict[str, Any]:
    """Return the report as one JSON object; all violations are counted, the first 10,000 told."""
    return {
        "verdict": report.verdict,
        "exitCode": report.exit_code,
        "seconds": round(report.seconds, 3),
        "keptHeads": report.kept_heads,
        "partitions": [
            {
                "partition": partition.head.partition,
                "epoch": partition.head.epoch,
                "seq": partition.head.seq,
                "hash": partition.head.hash.hex() or None,
                "epochs": partition.epochs,
                "orphans": partition.orphans,
                "deadLetters": partition.dead_letters,
            }
            for partition in report.partitions
        ],
        "events": [
            {
                "event": event.event_id,
                "partition": event.partition,
                "totalTickets": event.capacity,
                "changes": event.changes,
                "users": event.users,
                "booked": event.sold,
                "bookedMost": event.most_sold,
                "waiting": event.waiting,
                "violations": report.violations.by_event[event.event_id],
            }
            for event in report.events
        ],
        "violationsByRule": dict(report.violations.by_rule),
        "violations": [
            {
                "rule": violation.rule,
                "partition": violation.partition,
                "seq": violation.seq,
                "event": violation.event_id,
                "user": violation.user_id,
                "says": violation.says,
            }
            for violation in report.violations.kept
        ],
    }


def render(report: AuditReport) -> str:
    """Return the report for a person: partitions, events, violations, then the verdict."""
    parts = [_partitions(report), _events(report), _violations(report), *_notes(report)]
    return "\n\n".join(part for part in [*parts, _verdict(report)] if part)


def _partitions(report: AuditReport) -> str:
    rows = [
        [
            f"{p.head.partition}",
            f"{p.head.epoch}",
            f"{p.head.seq:,}",
            f"{p.epochs}",
            f"{p.orphans:,}",
            f"{p.dead_letters:,}",
            p.head.hash.hex()[:16] or "-",
        ]
        for p in report.partitions
    ]
    heads = ["partition", "epoch", "seq", "epochs", "orphans", "letters", "hash"]
    return table(heads, rows, ">>>>>><")


def _events(report: AuditReport) -> str:
    by_event = report.violations.by_event
    worst_first = sorted(report.events, key=lambda event: -by_event[event.event_id])
    rows = [
        [
            f"{event.event_id}",
            f"{event.changes:,}",
            f"{event.users:,}",
            f"{event.capacity:,}",
            f"{event.sold:,}",
            f"{event.most_sold:,}",
            f"{event.waiting:,}",
            f"{by_event[event.event_id]:,}",
        ]
        for event in some(worst_first)
    ]
    heads = ["event", "changes", "users", "tickets", "booked", "most", "waiting", "violations"]
    return table(heads, rows, ">>>>>>>>") + rest(len(worst_first), "events")


def _violations(report: AuditReport) -> str:
    rows = [_row(violation) for violation in some(report.violations.kept)]
    heads = ["partition", "seq", "event", "user", "rule", "violation"]
    number = report.violations.number
    return table(heads, rows, ">>><<<") + (rest(number, "violations") if rows else "")


def _row(violation: Violation) -> list[str]:
    return [
        f"{violation.partition}",
        "-" if violation.seq is None else f"{violation.seq}",
        "-" if violation.event_id is None else f"{violation.event_id}",
        "-" if violation.user_id is None else printable(violation.user_id),
        violation.rule,
        printable(violation.says),
    ]


def _notes(report: AuditReport) -> Iterable[str]:
    by_rule = report.violations.by_rule
    yield "\n".join(
        f"{rule}: {says} ({by_rule[rule]:,})." for rule, says in RULES.items() if by_rule[rule]
    )
    orphans = sum(partition.orphans for partition in report.partitions)
    if orphans:
        yield (
            f"orphans: {count(orphans, 'change')} that Redis had made and that no lineage leads to;"
            " kept in the table orphans, never applied, no part of the journal."
        )
    letters = sum(partition.dead_letters for partition in report.partitions)
    if letters:
        yield (
            f"letters: {count(letters, 'change')} that an operator has set aside, with their place"
            " in the chain; `onsale deadletters list` names them, and the events that they freeze."
        )


def _verdict(report: AuditReport) -> str:
    kept = f" and {count(report.kept_heads, 'kept head')}" if report.kept_heads else ""
    replayed = (
        f"{count(report.changes, 'change')}{kept} of {count(len(report.partitions), 'partition')}"
        f" checked, {count(len(report.events), 'event')} replayed, in {report.seconds:.1f} s"
    )
    if report.verdict == "violated":
        return f"violated: {count(report.violations.number, 'violation')}; {replayed}."
    return f"holds: the record proves what was sold, to whom and in which order; {replayed}."
