"""A comparison of two trees in Markdown: how it was run, the ratios, each tree's own numbers."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from statistics import median

from loadtests.benching import report, trees
from loadtests.benching.comparing import Comparison
from loadtests.benching.measures import Change
from loadtests.benching.stage import Options
from loadtests.benching.trees import HERE, Tree


def head(base: Tree, note: str, options: Options, command: str) -> str:
    """Return the title, and what it takes to repeat it."""
    generator = "wrk -t1" if options.wrk else "the bench's own sender"
    return f"""# {HERE.name} ({report.commit()}) beside {base.name}, {datetime.now(UTC):%Y-%m-%d}

Command: `{command}`.
Machine: {report.machine()}, which load generator, API, Valkey, writer and PostgreSQL share.
{report.versions()}. {note}
{trees.build()}
{options.rounds} rounds of {options.seconds:g} s for each tree after half a one to warm up, in the
order A B, B A; closed loop, {options.connections} connections from {generator}. Both services stay
up, one is loaded at a time.

A ratio is this tree's number ÷ the other's in one round. CPU is the summed time of API, Valkey,
writer and PostgreSQL per good answer, until all was on record. The 95 % interval is that of the
median, by order statistics; where 1 is inside, the rounds do not tell the two trees apart.
"""


def comparison(found: Comparison) -> str:
    """Return one scenario: the ratios, each tree's own numbers, how busy the machine was."""
    return "\n".join(_lines(found))


def ratios(found: Sequence[Comparison]) -> str:
    """Return the ratios of all scenarios in one table."""
    return "\n".join(
        [
            "| | ratio of | median | 95 % interval | spread | |",
            "|---|---|---|---|---|---|",
            *(line for each in found for line in _ratios(each)),
        ]
    )


def _lines(found: Comparison) -> Iterator[str]:
    yield report.group(found.result)
    idle = [each.idle for rounds in found.result.rounds.values() for each in rounds]
    yield (
        f"The processors were idle {found.idle_before:.0%} of the time with both services up and"
        f" unasked, and {median(idle):.0%} (median) while one was loaded.\n"
    )
    yield ratios([found])


def _ratios(found: Comparison) -> Iterator[str]:
    yield _line(found.scenario, "good answers/s", found.rate)
    yield _line(found.scenario, "CPU µs per answer", found.cpu)


def _line(scenario: str, what: str, change: Change) -> str:
    interval = "{:.3f} to {:.3f}".format(*change.interval) if change.interval else ""
    spread = f"{change.least:.3f} to {change.most:.3f}"
    cells = (scenario, what, f"{change.median:.3f}", interval, spread, change.verdict)
    return f"| {' | '.join(cells)} |"
