"""Runs the fault suite, and writes what came of it into docs/reliability.md.

    python -m tests.torture [--full] [--write] [--resume FILE] [--jobs N] [--seed N] [FAULT[=N] ...]

Without `--full` the counts are those of CI; with faults that are named, these alone are done. The
page is written where all was done in full, or where `--write` asks for it; never where anything was
wrong. `--resume` keeps what came of each sale in a file; where it is there already, the faults that
were done whole and in which nothing was wrong are not done again, and the page says which of them
were done on which commit. Exits with 1 unless every sale held and every control was found.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.torture import faults, report, scores, versions
from tests.torture.report import Line

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--full", action="store_true", help="the published counts, and the report")
    parser.add_argument("--write", action="store_true", help="the report of whatever was done")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on where a run ended")
    parser.add_argument("--jobs", type=int, default=2, help="sales at once, each a whole service")
    parser.add_argument("--seed", type=int, help="one seed of the faults that are named")
    parser.add_argument("faults", nargs="*", metavar="FAULT[=COUNT]", help="these alone")
    options = parser.parse_args(arguments)
    size = "full" if options.full else "brief"
    os.environ["ONSALE_TEST_TORTURE"] = " ".join([size, *options.faults])
    os.environ[scores.COMMIT] = versions.commit()
    if options.seed is not None:
        os.environ["ONSALE_TEST_SEED"] = str(options.seed)
    try:
        asked = {name: count for name, count in faults.counts().items() if name in faults.chosen()}
    except ValueError as error:
        parser.error(str(error))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as directory:
        noted: Path = options.resume or Path(directory) / "scores.jsonl"
        noted.touch()
        os.environ[scores.VARIABLE] = str(noted.resolve())
        left = report.left(report.lines(scores.read(noted)), asked)
        if len(left) < len(asked):
            scores.keep(noted, [one for one in scores.read(noted) if one.fault not in left])
            os.environ["ONSALE_TEST_TORTURE"] = " ".join([size, *(f"{n}={asked[n]}" for n in left)])
        code = _pytest(options.jobs) if left else 0
        found = report.lines(scores.read(noted))
    with_controls = any(line.controls for line in found.values())
    took = f"{(time.monotonic() - began) / 60:.0f} min"
    if len(left) < len(asked):
        took += f", for the {len(left)} of {len(asked)} faults that were left to do"
    print(report.table(found))
    short = [] if options.seed is not None else report.shortfalls(found, asked)
    if code:
        short.append("not every test passed: see above")
    elif not short:
        print("Nothing was wrong" + (", and every control was found." if with_controls else "."))
    print("\n".join(short))
    print(took)
    if short:
        return 1
    if options.write or (options.full and not options.faults):
        words = sys.argv[1:] if arguments is None else arguments
        command = " ".join(["python -m tests.torture", *words])
        said = versions.described(command, report.by_commit(found), took)
        PAGE.write_text(_written(PAGE.read_text(), found, said))
        print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


def _pytest(jobs: int) -> int:
    """Run the sales; longer ones first would be better, but their order is drawn like any other."""
    command = (
        *(sys.executable, "-m", "pytest", "-q", "-n", str(jobs), "--dist", "worksteal"),
        *("--no-header", "-p", "no:cacheprovider", "tests/torture", "tests/restores"),
    )
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _written(page: str, found: Mapping[str, Line], made_on: str) -> str:
    """Return the page with the new tables, and on what they were made."""
    tables = {
        "faults": report.table(found),
        "controls": report.controls(found),
        "versions": made_on,
    }
    for name, text in tables.items():
        before, begins, rest = page.partition(f"<!-- {name} -->\n")
        _, ends, after = rest.partition(f"<!-- /{name} -->")
        if not begins or not ends:
            msg = f"{PAGE.name} has no place for {name}"
            raise ValueError(msg)
        page = before + begins + text + ends + after
    return page


if __name__ == "__main__":
    sys.exit(main())
