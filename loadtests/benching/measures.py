"""The arithmetic of a bench: what a run gave, ratios of neighbours, medians and spread. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb
from statistics import median


@dataclass(frozen=True, slots=True)
class Sent:
    """What a load generator tells of one run.

    `answers`: complete ones; `refused`: those of 400 and above among them. `errors`: connections
    that broke and requests that had no answer in time. `in_flight_max`: requests that had no answer
    yet when it hung up, at most: each may have had its effect. `statuses` where they were counted.
    """

    seconds: float
    answers: int
    refused: int
    errors: int
    p50_ms: float
    p99_ms: float
    in_flight_max: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)

    @property
    def good(self) -> int:
        """How many were below 400."""
        return self.answers - self.refused

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.good / self.seconds


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the record was behind, in milliseconds, looked at so many times."""

    looks: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one variant.

    `cpu_us`: of each process, per good answer, until all was on record. `drain_s`: from the last
    answer until then. `others`: the share of the machine's time that other processes and
    other machines took, `idle` that in which nothing ran. `wrong`: what was not as promised, in
    words.
    """

    sent: Sent
    cpu_us: Mapping[str, float] = field(default_factory=dict)
    lag: Lag | None = None
    drain_s: float | None = None
    others: float = 0.0
    idle: float = 0.0
    wrong: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two variants that run next to each other; `at_least` is what is hoped for, 0 for nothing."""

    over: str
    under: str
    at_least: float = 0.0


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the rounds' ratios, with the smallest and the greatest of them."""

    pair: Pair
    median: float
    least: float
    most: float

    @property
    def verdict(self) -> str:
        """Say whether what is hoped for holds, nothing where nothing is."""
        if not self.pair.at_least:
            return ""
        return "holds" if self.median >= self.pair.at_least else "does not hold"


def ratio(pair: Pair, over: Sequence[Measured], under: Sequence[Measured]) -> Ratio:
    """Return the ratio of two variants' rates, round by round."""
    each = [a.sent.rate / b.sent.rate for a, b in zip(over, under, strict=True) if b.sent.rate]
    return Ratio(pair, median(each), min(each), max(each)) if each else Ratio(pair, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Change:
    """The rounds' ratios of two trees: median, its 95 % interval, the smallest and the greatest.

    The interval is that of the order statistics, which assume nothing of how the ratios are
    distributed; fewer than six rounds have none.
    """

    rounds: int
    median: float
    interval: tuple[float, float] | None
    least: float
    most: float

    @property
    def verdict(self) -> str:
        """Tell a change from noise: noise has 1 inside of the interval."""
        if self.interval is None:
            return "too few rounds"
        low, high = self.interval
        return "noise" if low <= 1 <= high else "a change"


def change(here: Sequence[float], base: Sequence[float]) -> Change:
    """Return one tree's numbers over the other's, round by round. Raises ValueError for none."""
    each = sorted(a / b for a, b in zip(here, base, strict=True) if b)
    if not each:
        msg = "no round has a number to compare with"
        raise ValueError(msg)
    tail = interval_tail(len(each))
    interval = (each[tail - 1], each[-tail]) if tail else None
    return Change(len(each), median(each), interval, each[0], each[-1])


def interval_tail(many: int, outside_max: float = 0.05) -> int:
    """Return which of the ordered values, from either end, bound the median's 95 % interval.

    The true median lies outside of the k-th values from both ends with twice the probability of
    fewer than k heads in so many tosses. 0 where even the ends are not enough.
    """
    tail, outside = 0, 2 * comb(many, 0) / 2**many
    while outside <= outside_max:
        tail += 1
        outside += 2 * comb(many, tail) / 2**many
    return tail


def summed_us(measured: Measured) -> float:
    """Return the CPU time of all processes of the service per good answer, in microseconds."""
    return sum(us for process, us in measured.cpu_us.items() if process != "generator")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that is not exceeded by this share of all, 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each name's numbers."""
    return {name: median(each[name] for each in rounds) for name in (rounds[0] if rounds else ())}
