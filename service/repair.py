"""What `onsale reconcile --repair` does: finds drift, and has Redis made anew from the record.

Not code of its own: it is the handshake with the verdict rebuild, for each partition with a drift,
and a comparison before and after. Invariant: Redis is never set to a record that does not hold, and
nothing is changed unless that was asked for.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from service import given_verdicts, reconcile_report
from service.auditor import audit
from service.findings import Report
from service.given_verdicts import Given, give, reaching
from service.looking import OnProgress, count, cut_short, looked, say
from service.orders import Order
from service.reconciler import UnknownEventError, reconcile
from service.settings import Settings
from service.violations import Violation

_REASON = "an operator ordered a repair"


@dataclass(slots=True)
class Repair:
    """One repair: what was found, what stands against it, what was done, what is found now."""

    before: Report
    partitions: list[int] = field(default_factory=list)
    damaged: dict[int, Violation] = field(default_factory=dict)
    given: list[Given] = field(default_factory=list)
    after: Report | None = None

    @property
    def exit_code(self) -> int:
        """What the last comparison says; 1 for a drift that stands; 2 where it was not done."""
        if any(one.result is None for one in self.given):
            return 2
        code = (self.after or self.before).exit_code
        return code if not self.given or all(one.is_open for one in self.given) else 1


async def repair(
    settings: Settings,
    redis_url: str,
    postgresql_url: str,
    event_ids: Sequence[int] | None,
    on_progress: OnProgress | None,
    *,
    apply: bool,
) -> Repair:
    """Compare; where there is a drift, hold the record to the audit; applied, rebuild and compare.

    Raises what `reconcile` and `audit` raise.
    """
    before = await reconcile(
        redis_url, postgresql_url, event_ids=event_ids, on_progress=on_progress
    )
    found = Repair(before)
    found.partitions = [p.partition for p in before.partitions if any(e.drifts for e in p.events)]
    if not found.partitions:
        return found
    for violation in (await audit(postgresql_url, on_progress=on_progress)).violations.kept:
        if violation.partition in found.partitions:
            found.damaged.setdefault(violation.partition, violation)
    if not apply or found.damaged:
        return found
    progress = on_progress or (lambda _, __: None)
    async with reaching(settings, redis_url, postgresql_url) as handshakes:
        order = Order(_REASON, "rebuild", progress=progress)
        found.given = await give(handshakes, found.partitions, order)
    found.after = await reconcile(
        redis_url, postgresql_url, event_ids=event_ids, on_progress=on_progress
    )
    return found


def run(
    settings: Settings,
    redis_url: str,
    postgresql_url: str,
    event_ids: Sequence[int] | None,
    *,
    apply: bool,
    machine_readable: bool,
) -> int:
    """Repair or plan to, print, and return the exit code."""
    found = looked(
        "comparing",
        lambda on_progress: asyncio.run(
            repair(settings, redis_url, postgresql_url, event_ids, on_progress, apply=apply)
        ),
        unknown=UnknownEventError,
    )
    if isinstance(found, int):
        return cut_short(found, machine_readable=machine_readable)
    show(found, machine_readable=machine_readable)
    return found.exit_code


def show(found: Repair, *, machine_readable: bool) -> None:
    """Print the comparison, the plan or what was done, and what the comparison says then."""
    if machine_readable:
        say(json.dumps(as_json(found)))
        return
    parts = [reconcile_report.render(found.before), _plan(found)]
    if found.given:
        parts.append("\n".join(given_verdicts.line(one) for one in found.given))
    if found.after:
        parts.append(reconcile_report.render(found.after))
    say("\n\n".join(part for part in parts if part))


def as_json(found: Repair) -> dict[str, Any]:
    """Return all of it as one JSON object."""
    return {
        "exitCode": found.exit_code,
        "before": reconcile_report.as_json(found.before),
        "partitions": found.partitions,
        "refused": [
            {"partition": partition, "rule": violation.rule, "says": violation.says}
            for partition, violation in sorted(found.damaged.items())
        ],
        "repaired": [given_verdicts.as_json(one) for one in found.given],
        "after": reconcile_report.as_json(found.after) if found.after else None,
    }


def _plan(found: Repair) -> str:
    if not found.partitions:
        return "There is nothing to repair."
    lines = []
    for partition in found.partitions:
        finding = next(p for p in found.before.partitions if p.partition == partition)
        drifts = count(sum(len(event.drifts) for event in finding.events), "drift")
        violation = found.damaged.get(partition)
        if violation is not None:
            lines.append(
                f"partition {partition}, {drifts}: refused, the record itself does not hold:"
                f" {violation.rule}: {violation.says}; see `onsale audit`"
            )
        elif not found.given:
            lines.append(
                f"partition {partition}, {drifts}: what Redis has and the record lacks is put on"
                " record, then all of this partition's Redis is made anew from the record;"
                " requests wait meanwhile"
            )
    if found.damaged:
        lines.append("Nothing was changed: Redis is not set to a damaged record.")
    elif not found.given:
        lines.append("Nothing was changed; --apply does it.")
    return "\n".join(lines)
