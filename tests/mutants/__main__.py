"""Takes the checks out of the code one at a time, and looks whether a test notices each.

    python -m tests.mutants [--name PART OF A NAME] [--rule NUMBER] [--jobs NUMBER]

The tests are run on the sound tree first, so that what is red anyway is not taken for a catch. Then
each mutant of the lists beside this file gets a copy of the tree, in which one text is replaced and
its tests must fail. Exits with 1 unless every one was caught.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.lists import Mutant, mistakes, read
from tests.mutants.trial import copy_tree, end_all_in, run_tests, try_one

_SOUND_LIMIT_S = 900


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants that are asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--name", default="", help="those with this in their names, or of a list")
    parser.add_argument("--rule", type=int, help="those of one rule of PROTOCOL.md")
    parser.add_argument("--jobs", type=int, default=2, help="at once, each on servers of its own")
    options = parser.parse_args(arguments)
    wanted = [
        mutant
        for mutant in read()
        if options.name.lower() in f"{mutant.part}: {mutant.name}".lower()
        and options.rule in (None, mutant.rule)
    ]
    wrong = [f"{m.part}: {m.name}: {what}" for m in wanted for what in mistakes(m)]
    if wrong or not wanted:
        print("\n".join(wrong) or "there is no such mutant")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as name:
        directory = Path(name).resolve()
        try:
            return _try_all(wanted, directory, options.jobs)
        finally:
            end_all_in(directory)


def _try_all(mutants: Sequence[Mutant], directory: Path, jobs: int) -> int:
    began = time.monotonic()
    sound = directory / "sound"
    copy_tree(sound / "tree")
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    told = run_tests(tests, sound, limit_s=_SOUND_LIMIT_S, processes=jobs)
    if told.code != 0:
        print(f"{told.text}\nThe tests do not pass on the sound tree; nothing can be caught.")
        return 1
    print(f"sound: the tests pass on the tree as it is ({told.took_s:.0f} s)\n")
    width = max(len(mutant.name) for mutant in mutants)
    print(f"rule  {'mutant':{width}}  caught by")
    caught = 0
    pool = ThreadPoolExecutor(jobs)
    trials = pool.map(
        lambda at: try_one(at[1], sound / "tree", directory / str(at[0])), enumerate(mutants)
    )
    try:
        for trial in trials:
            caught += trial.caught
            print(
                f"{trial.mutant.rule or '-':>4}  {trial.mutant.name:{width}}"
                f"  {'' if trial.caught else 'NOT CAUGHT: '}{trial.by}",
                flush=True,
            )
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    print(f"\n{time.monotonic() - began:.0f} s")
    print(f"{caught} of {len(mutants)} mutants caught")
    return 0 if caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
