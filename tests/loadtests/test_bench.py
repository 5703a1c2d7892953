"""The bench as a user runs it, in small: what comes up, what is verified, and that all goes."""

import os
import subprocess
import sys

import psutil

from tests.loadtests.commands import ROOT

END_S = 100


def test_a_booking_is_measured_beside_a_no_op_and_found_on_record() -> None:
    """It prints the ratio and what it has verified, exits 0, and leaves no process behind."""
    argv = [sys.executable, "loadtests/bench.py", "--own", "--rounds", "1", "--seconds", "0.5"]
    process = subprocess.run(
        [*argv, "--connections", "8", "--only", "book,no-op"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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
    children = [each.name() for each in psutil.Process().children(recursive=True)]
    assert not {"valkey-server", "postgres"} & set(children)


def test_a_variant_that_there_is_not_is_refused() -> None:
    """Nothing is brought up for a name with a slip."""
    argv = [sys.executable, "loadtests/bench.py", "--only", "bok"]
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
    assert process.stderr == "bench: no variant bok; see --list\n"
