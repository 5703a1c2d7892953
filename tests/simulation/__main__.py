"""Runs simulated worlds, and says which seed breaks what.

    python -m tests.simulation [--seeds A-B] [--jobs N]
    python -m tests.simulation --seed N [--trace]
    python -m tests.simulation --mutants [--jobs N]

Exits with 1 when an invariant does not hold, or a mutant is not caught.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.campaign import Summary, run, score
from tests.simulation.runs import run_one, standing_in


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", default="0-9999", help="from A up to B, both included")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: all that happened")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--mutants", action="store_true", help="the twelve broken variants")
    options = parser.parse_args(arguments)
    if options.mutants:
        return _score(options.jobs)
    if options.seed is not None:
        return _one(options.seed, traced=options.trace)
    first, _, last = options.seeds.partition("-")
    return _many(range(int(first), int(last or first) + 1), options.jobs)


def _one(seed: int, *, traced: bool) -> int:
    with standing_in():
        ran = run_one(seed, traced=traced)
    print(*ran.trace, sep="\n", end="\n" if ran.trace else "")
    print(f"seed {seed}: {ran.steps:,} steps, digest {ran.digest:08x}, faults {ran.faults}")
    for broken in ran.broken:
        print(f"  {broken.invariant}: {broken.says}")
    return 1 if ran.broken else 0


def _many(seeds: range, jobs: int) -> int:
    began = time.monotonic()

    def progress(done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {of:,} seeds", end="", file=sys.stderr, flush=True)

    summary = run(seeds, jobs, progress)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(_in_words(summary, time.monotonic() - began))
    for failure in summary.violations:
        print(f"seed {failure.seed}: {failure.invariant}: {failure.says}")
        print(f"  python -m tests.simulation --seed {failure.seed} --trace")
    return 1 if summary.violations else 0


def _in_words(summary: Summary, seconds: float) -> str:
    faults = ", ".join(f"{name} {count:,}" for name, count in summary.faults.items())
    return (
        f"{summary.seeds:,} seeds, {summary.steps:,} steps, {summary.answers:,} answers,"
        f" {summary.changes:,} changes on record, in {seconds:.0f} s:"
        f" {len(summary.violations)} broken; {summary.stayed_closed} stayed closed at the end\n"
        f"faults: {faults}"
    )


def _score(jobs: int) -> int:
    results = score(jobs)
    for caught in results:
        said = "NOT CAUGHT" if caught.seed is None else f"caught by seed {caught.seed}"
        print(f"{caught.name:40} {said}: {caught.invariant} {caught.says}"[:160])
    count = sum(caught.seed is not None for caught in results)
    print(f"{count} of {len(results)} caught")
    return 0 if count == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
