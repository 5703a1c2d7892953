"""Many worlds: seeds over several processes, and the score of the mutants.

from tests.simulation.campaign import run, score
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

from tests.simulation.mutants import MUTANTS, named
from tests.simulation.runs import Ran, run_one, standing_in
from tests.simulation.world import ANY, Focus

CHUNK = 50
MUTANT_SEEDS = range(3_000)
"""The seeds that each mutant is given to be caught by."""

Task = TypeVar("Task")
Done = TypeVar("Done")

OnProgress = Callable[[int, int], None]
"""Told how many seeds are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed, and the first invariant that did not hold."""

    seed: int
    invariant: str
    says: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What a campaign came to. `steps` are callbacks of all loops, between any two awaits."""

    seeds: int
    steps: int
    changes: int
    answers: int
    stayed_closed: int
    faults: dict[str, int]
    violations: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Caught:
    """What became of one mutant: the seed and the invariant that caught it, None and empty if none.

    `tried` seeds were run.
    """

    name: str
    seed: int | None
    invariant: str
    says: str
    tried: int


def run(seeds: range, jobs: int, on_progress: OnProgress | None = None) -> Summary:
    """Run seeds, each a world of its own, on so many processes."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    done: list[Summary] = []
    for summary in _over(jobs, run_chunk, chunks):
        done.append(summary)
        if on_progress:
            on_progress(sum(s.seeds for s in done), len(seeds))
    return _joined(done)


def run_chunk(seeds: Sequence[int], focus: Focus = ANY) -> Summary:
    """Run some seeds in this process, all with one `focus` of faults where there is one."""
    with standing_in(), _without_collector():
        return _joined(_summed(run_one(seed, focus=focus)) for seed in seeds)


def score(jobs: int, seeds: range = MUTANT_SEEDS) -> list[Caught]:
    """Try every mutant on the seeds in order, until it is caught."""
    names = [mutant.name for mutant in MUTANTS]
    return list(_over(jobs, partial(catch, seeds=seeds), names))


def catch(name: str, seeds: range = MUTANT_SEEDS) -> Caught:
    """Try one mutant, in this process."""
    for start in range(0, len(seeds), CHUNK):
        mutant = named(name)
        with standing_in(), _without_collector(), mutant.in_force():
            for seed in seeds[start : start + CHUNK]:
                ran = run_one(seed, focus=mutant.focus)
                if ran.broken:
                    broken = ran.broken[0]
                    tried = seed - seeds[0] + 1
                    return Caught(name, seed, broken.invariant, broken.says, tried)
    return Caught(name, None, "", "", len(seeds))


def _over(jobs: int, do: Callable[[Task], Done], tasks: Sequence[Task]) -> Iterator[Done]:
    """Do something with each task, in order, on so many processes."""
    if jobs <= 1:
        yield from map(do, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(do, tasks)


@contextmanager
def _without_collector() -> Iterator[None]:
    """A world is thrown away whole: to look for its garbage meanwhile takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
        gc.collect()


def _summed(ran: Ran) -> Summary:
    failures = tuple(Failure(ran.seed, b.invariant, b.says) for b in ran.broken[:1])
    return Summary(
        1, ran.steps, ran.changes, ran.answers, int(ran.stayed_closed), ran.faults, failures
    )


def _joined(parts: Iterable[Summary]) -> Summary:
    parts, faults = list(parts), Counter[str]()
    for part in parts:
        faults.update(part.faults)
    return Summary(
        sum(part.seeds for part in parts),
        sum(part.steps for part in parts),
        sum(part.changes for part in parts),
        sum(part.answers for part in parts),
        sum(part.stayed_closed for part in parts),
        dict(sorted(faults.items())),
        tuple(failure for part in parts for failure in part.violations),
    )
