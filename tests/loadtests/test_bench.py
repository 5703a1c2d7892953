"""The bench as a user runs it, in small: what comes up, what is verified, and that all goes."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.loadtests.commands import ROOT

END_S = 100


def working_in(directory: Path) -> list[list[str]]:
    """Return the commands of all processes that name a directory."""
    commands = (each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(directory) in " ".join(command)]


def test_a_booking_is_measured_beside_a_no_op_and_found_on_record(tmp_path: Path) -> None:
    """It prints the ratio and what it has verified, exits 0, and leaves no process behind."""
    argv = [sys.executable, "loadtests/bench.py", "--own", "--rounds", "1", "--seconds", "0.5"]
    process = subprocess.run(
        [*argv, "--connections", "8", "--only", "book,no-op"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=END_S,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "| book ÷ no-op | " in process.stdout
    assert "0 of them oversold" in process.stdout
    assert "`onsale audit` replayed" in process.stdout
    assert "**Wrong**" not in process.stdout
    assert working_in(tmp_path) == []
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "bok"], "bench: no variant bok; see --list\n"),
        (["--only", "no-op", "--base", "HEAD"], "bench: no variant no-op; see --list\n"),
        (["--base", "no-such"], "bench: BASE=no-such is no commit of this repository: "),
    ],
)
def test_a_variant_or_a_commit_that_there_is_not_is_refused(
    arguments: list[str], told: str
) -> None:
    """Nothing is brought up for a name with a slip."""
    argv = [sys.executable, "loadtests/bench.py", *arguments]
    process = subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=END_S,
    )
    assert process.returncode == 2
    assert process.stderr.startswith(told)
