"""What a booking costs beside a service that does nothing: measured side by side, and verified.

Brings up whole services and what they are compared with in empty directories, sends to one after
the other in interleaved rounds, and prints ratios of neighbours with their spread, the CPU time of
each process, how far the record was behind, and what was verified afterwards.

    .venv/bin/python loadtests/bench.py [--only NAME,…] [--rounds 7] [--seconds 3] [--write]

With `--base COMMIT` it compares this tree with that commit's instead, scenario by scenario, in
alternating rounds (15): whether a change made a difference that is none of the machine's.

Exits 1 when something was not as promised (oversold, an answer that is not on record), never for a
ratio that misses what was hoped for: that is printed beside it.
"""

import argparse
import asyncio
import resource
import signal
import sys
import tempfile
from pathlib import Path

from loadtests.benching import (
    comparing,
    comparison_report,
    groups,
    overload,
    report,
    rounds,
    trees,
    wrk,
)
from loadtests.benching.stage import Options

INTERRUPTED = 130


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", maxsplit=1)[0],
        epilog="Exits 1 when a verification failed, never for a ratio that misses what was hoped.",
    )
    parser.add_argument("--base", metavar="COMMIT", help="compare this tree with that commit's")
    parser.add_argument("--rounds", type=int, help="of each group (7; with --base 15)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run (3)")
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--waiters", type=int, default=1_000_000, help="of `1M waiters`")
    parser.add_argument("--events", type=int, default=10_000, help="of `10k events`")
    parser.add_argument("--only", default="", metavar="NAME,…", help="these variants alone")
    parser.add_argument("--list", action="store_true", help="show the variants, measure nothing")
    parser.add_argument("--own", action="store_true", help="send with the own sender, not with wrk")
    parser.add_argument("--write", action="store_true", help="keep it in loadtests/results/")
    return parser.parse_args()


async def bench(options: Options, only: list[str], *, write: bool) -> int:
    """Measure, print, and return the exit code."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    head = report.head(options, " ".join(["loadtests/bench.py", *sys.argv[1:]]))
    results = []
    print(head, flush=True)
    for group in groups.chosen(only):
        results.append(await rounds.measure(group, options))
        print(report.group(results[-1]), report.ratios(results[-1:]), sep="\n", flush=True)
    if not only or overload.NAME in only:
        results.append(await overload.measure(options))
        print(report.group(results[-1]), flush=True)
    if write:
        report.write(head, results)
    return int(any(result.wrong for result in results))


async def compare(commit: str, options: Options, only: list[str]) -> int:
    """Compare this tree with a commit's, print, and return the exit code."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    found = []
    with tempfile.TemporaryDirectory(prefix="onsale-bench-") as directory:
        base, note = trees.unpack(commit, Path(directory) / "base")
        command = " ".join(["loadtests/bench.py", *sys.argv[1:]])
        print(comparison_report.head(base, note, options, command), flush=True)
        for name in only or comparing.SCENARIOS:
            found.append(await comparing.measure(name, base, options))
            print(comparison_report.comparison(found[-1]), end="\n\n", flush=True)
    if len(found) > 1:
        print(comparison_report.ratios(found))
    return int(any(each.result.wrong for each in found))


def main() -> int:
    """Measure what was asked for."""
    chosen = arguments()
    if chosen.list:
        for group in groups.GROUPS:
            print(f"{group.title}")
            for variant in group.variants():
                print(f"  {variant.name:<16}{variant.what}")
        print(f"Overload\n  {overload.NAME:<16}{overload.WHAT}")
        return 0
    only = [name.strip() for name in chosen.only.split(",") if name.strip()]
    names = comparing.scenarios() if chosen.base else {*groups.names(), overload.NAME}
    if unknown := set(only) - set(names):
        sys.stderr.write(f"bench: no variant {', '.join(sorted(unknown))}; see --list\n")
        return 2
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    options = Options(
        chosen.rounds or (comparing.ROUNDS if chosen.base else 7),
        chosen.seconds,
        chosen.connections,
        wrk=wrk.installed() and not chosen.own,
        waiters=chosen.waiters,
        events=chosen.events,
    )
    try:
        if chosen.base:
            return asyncio.run(compare(chosen.base, options, only))
        return asyncio.run(bench(options, only, write=chosen.write))
    except trees.NoTreeError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 2
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.stderr.write("bench: interrupted; everything is stopped\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
