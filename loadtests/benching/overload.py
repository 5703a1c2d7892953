"""More than it can do: what a service at twice its capacity still does, and what it answers.

Open loop: requests are due at a fixed rate whatever the answers do, and an answer's time counts
from then. The capacity is what the same sender gets out of the service in a closed loop, with all
that it costs itself: at twice that rate it may send less than it should, and says so.
"""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loadtests.benching import sender
from loadtests.benching.onsale import Onsale
from loadtests.benching.rounds import GroupResult, say, verify
from loadtests.benching.stage import Options, Stage
from loadtests.benching.traffic import booking
from loadtests.benching.variants import TICKETS

NAME = "overload"
WHAT = "open loop at 70 % of the capacity and at twice the capacity"
_CONNECTIONS = 256
_CROWD = 2_000
"""At twice the capacity: enough that the service, not the sender, says how many may wait."""

_GOODPUT_MIN = 0.95
_SLOWER_MAX = 3.0
_REFUSED_P99_MS = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """One run at a rate: due, sent and good per second, and the times of each kind, p50 and p99."""

    due: float
    sent: float
    good: float
    accepted_ms: tuple[float, float]
    refused_ms: tuple[float, float]
    refused_share: float
    late_p99_ms: float

    @classmethod
    def of(cls, due: float, told: Mapping[str, Any], seconds: float) -> "Load":
        """Read what the sender told."""
        by_status = told["by_status"]
        accepted, refused = (by_status.get(status, (0.0, 0.0)) for status in ("201", "503"))
        return cls(
            due=due,
            sent=told["sent"] / seconds,
            good=(told["answers"] - told["refused"]) / told["seconds"],
            accepted_ms=(accepted[0], accepted[1]),
            refused_ms=(refused[0], refused[1]),
            refused_share=told["refused"] / max(1, told["answers"]),
            late_p99_ms=told["late_p99"],
        )


async def measure(options: Options) -> GroupResult:
    """Measure in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="onsale-bench-") as directory:
        async with contextlib.AsyncExitStack() as taken:
            stage = Stage(Path(directory), options, taken)
            say("Overload: bringing up")
            onsale = await stage.onsale()
            bookings = _Bookings(onsale, await onsale.open(TICKETS))
            loads: list[tuple[Load, Load, Load]] = []
            for number in range(options.rounds + 1):
                peak = await bookings.run(_CONNECTIONS, options.seconds, 0.0)
                usual = await bookings.run(_CONNECTIONS, options.seconds, 0.7 * peak.good)
                double = await bookings.run(_CROWD, options.seconds, 2.0 * peak.good)
                say(
                    f"  round {number or 'to warm up'}: peak {peak.good:,.0f}/s, at twice that"
                    f" {double.good:,.0f}/s, {double.refused_share:.0%} refused"
                )
                loads += [(peak, usual, double)] if number else []
            verified, wrong = await verify(stage)
    notes = [table(loads), verdicts(loads)]
    return GroupResult("Overload", {}, (), verified, [*bookings.wrong, *wrong], notes)


class _Bookings:
    """Runs of bookings of one event, each held against the record."""

    def __init__(self, onsale: Onsale, event: int) -> None:
        self._onsale = onsale
        self._event = event
        self._number = 0
        self.wrong: list[str] = []

    async def run(self, connections: int, seconds: float, rate: float) -> Load:
        """Send at a rate, 0 for a closed loop."""
        self._number += 1
        before = await self._onsale.settle()
        traffic = booking(self._event, f"o{self._number:02}-")
        told = await sender.send(
            self._onsale.address, traffic, connections=connections, seconds=seconds, rate=rate
        )
        await self._onsale.settle()
        booked = (await self._onsale.changes_after(before))["booked"]
        good = told["answers"] - told["refused"]
        # A request that was refused with an unknown outcome, or had no answer, may have booked.
        if not good <= booked <= good + told["errors"] + told["statuses"].get("503", 0):
            self.wrong.append(f"{booked} bookings on record after {good} good answers")
        return Load.of(rate, told, seconds)


def table(loads: list[tuple[Load, Load, Load]]) -> str:
    """Return the three loads side by side, medians of the rounds."""
    lines = [
        (
            "| | due/s | sent/s | good/s | accepted p50, p99 ms | refused | refused p50, p99 ms"
            " | sent late, p99 ms |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    names = (
        f"closed loop, {_CONNECTIONS} connections",
        "70 % of that, open loop",
        f"twice that, open loop, {_CROWD:,} connections",
    )
    for name, rounds in zip(names, zip(*loads, strict=True), strict=True):
        cells = [
            name,
            f"{median(each.due for each in rounds):,.0f}" if rounds[0].due else "",
            f"{median(each.sent for each in rounds):,.0f}",
            f"{median(each.good for each in rounds):,.0f}",
            _times([each.accepted_ms for each in rounds]),
            f"{median(each.refused_share for each in rounds):.1%}",
            _times([each.refused_ms for each in rounds]),
            f"{median(each.late_p99_ms for each in rounds):.1f}" if rounds[0].due else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(loads: list[tuple[Load, Load, Load]]) -> str:
    """Hold what is hoped for against the medians."""
    goodput = median(double.good / peak.good for peak, _, double in loads)
    slower = median(
        double.accepted_ms[1] / max(usual.accepted_ms[1], 0.001) for _, usual, double in loads
    )
    refused = [double.refused_ms[1] for *_, double in loads if double.refused_share]
    lines: tuple[tuple[str, str, float, float], ...] = (
        (f"goodput at twice the capacity ÷ peak {goodput:.2f}", "at least", _GOODPUT_MIN, goodput),
        (f"accepted p99 ÷ that at 70 % {slower:.1f}", "at most", _SLOWER_MAX, slower),
    )
    if refused:
        slowest = median(refused)
        lines += ((f"503 p99 {slowest:.1f} ms", "at most", _REFUSED_P99_MS, slowest),)
    told = [] if refused else ["nothing was refused"]
    for text, way, bound, value in lines:
        holds = value >= bound if way == "at least" else value <= bound
        told.append(f"{text} ({way} {bound:g}): {'holds' if holds else 'does not hold'}")
    return "; ".join(told) + "."


def _times(each: list[tuple[float, float]]) -> str:
    p50, p99 = (median(values) for values in zip(*each, strict=True))
    return f"{p50:.1f}, {p99:.1f}" if p99 else ""
