"""The report of a run: what was done, how often, and what came of it. Pure; text in, text out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.torture.faults import FAULTS
from tests.torture.scores import Score

_HEAD = ("fault", "workload", "runs", "seeds", "operations", "wrong", "recovery", "control")

_CHARS_MAX = 200


@dataclass
class Line:
    """All sales of one fault, and its negative controls."""

    runs: int = 0
    operations: int = 0
    seeds: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    controls: list[Sequence[str]] = field(default_factory=list)
    commit: str = ""

    def add(self, score: Score) -> None:
        """Count one sale in, or one control."""
        self.commit = score.commit
        if score.control:
            self.controls.append(score.wrong)
            return
        self.runs += score.runs
        self.operations += score.operations
        self.seeds.add(score.seed)
        self.wrong += score.wrong
        self.measured += score.measured


def lines(scores: Iterable[Score]) -> dict[str, Line]:
    """Return what came of each fault, in the order of the list."""
    found = {name: Line() for name in FAULTS}
    for score in scores:
        found[score.fault].add(score)
    return {name: line for name, line in found.items() if line.runs or line.controls}


def table(found: Mapping[str, Line]) -> str:
    """Return the table of faults, in Markdown."""
    rows = [_HEAD, ("---",) * len(_HEAD)]
    for name, line in found.items():
        fault = FAULTS[name]
        rows.append(
            (
                fault.title,
                fault.workload,
                f"{line.runs:,}",
                _span(line.seeds),
                f"{line.operations:,}" if line.operations else "",
                str(len(line.wrong)),
                _recovery(line.measured),
                _control(fault.control, line),
            )
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def shortfalls(found: Mapping[str, Line], asked: Mapping[str, int]) -> list[str]:
    """Return what a run did not come to: runs, wrong answers, a control that saw nothing."""
    says = []
    for name, count in asked.items():
        line = found.get(name, Line())
        if line.runs < count:
            says.append(f"{name}: {line.runs:,} of {count:,} runs")
        says += [f"{name}: {wrong}" for wrong in line.wrong]
        if not all(line.controls):
            says.append(f"{name}: the negative control found nothing")
    return says


def by_commit(found: Mapping[str, Line]) -> dict[str, list[str]]:
    """Return which faults were done on which commit."""
    commits: dict[str, list[str]] = {}
    for name, line in found.items():
        commits.setdefault(line.commit, []).append(name)
    return commits


def left(found: Mapping[str, Line], asked: Mapping[str, int]) -> list[str]:
    """Return the faults that a run which was ended, or found something, has left to do."""
    return [name for name, count in asked.items() if shortfalls(found, {name: count})]


def _span(seeds: set[int]) -> str:
    if not seeds:
        return ""
    whole = [*range(min(seeds), max(seeds) + 1)] == sorted(seeds) and len(seeds) > 1
    return f"{min(seeds)} to {max(seeds)}" if whole else ", ".join(map(str, sorted(seeds)))


def _recovery(measured: Sequence[float]) -> str:
    """Return how long nobody was answered: the median and the longest."""
    if not measured:
        return ""
    return f"{median(measured):.2f} s, at most {max(measured):.1f} s"


def _control(says: str, line: Line) -> str:
    if not line.controls:
        return says
    found = sum(map(bool, line.controls))
    return f"{says}: {found} of {len(line.controls)} found"


def controls(found: Mapping[str, Line]) -> str:
    """Return what each negative control came to, the first thing that was wrong, in Markdown."""
    rows = [("fault", "what was wrong without the protection"), ("---", "---")]
    for name, line in found.items():
        rows += [(FAULTS[name].title, brief) for brief in sorted(map(_brief, line.controls))]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _brief(wrong: Sequence[str]) -> str:
    text = " ".join(wrong[0].split()).replace("|", "\\|") if wrong else "NOTHING"
    return text if len(text) <= _CHARS_MAX else text[: _CHARS_MAX - 1] + "…"
