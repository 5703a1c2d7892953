"""One mutant tried: a copy of the tree, broken, and what its tests say to that.

Works in a directory of its own, which holds the copy, all temporary files and so every server that
a test starts: whatever still works in there when the tests are over is ended. Never touches the
tree that is copied.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.lists import ROOT, Mutant

LIMIT_S = 150
"""How long the tests of one mutant may take. Who is not done by then has noticed nothing."""

_PATIENCE_S = 15
_OURS = ("ONSALE_TEST_TORTURE", "ONSALE_TEST_SEED", "PYTEST_")
"""What the environment says to whoever tries mutants is not said to the tests that try them."""

_BROKEN = re.compile(
    r"\b(NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError|IndentationError"
    r"|AttributeError|\w*PostgresSyntaxError|Undefined(?:Column|Table|Function)Error"
    r"|Error compiling script|nonexistent global variable|attempt to (?:call|index))\b"
)
"""What only a text says that is wrong in itself: no test has looked at what it does."""


@dataclass(frozen=True, slots=True)
class Told:
    """What pytest told: its exit code (None: not done in time), the test that failed, its text."""

    code: int | None
    failed: str
    text: str
    took_s: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a mutant. `by` says which test noticed, or why it does not count."""

    mutant: Mutant
    caught: bool
    by: str


def copy_tree(target: Path) -> None:
    """Copy what is tracked, and what is new and not ignored, as it stands now."""
    listed = subprocess.run(
        ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, copy = ROOT / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)


def try_one(mutant: Mutant, sound: Path, room: Path) -> Trial:
    """Break a copy of the sound tree in a new directory, and run the mutant's tests there."""
    tree = room / "tree"
    shutil.copytree(sound, tree, symlinks=True)
    mutant.apply(tree)
    # Python tells a compiled file's age in whole seconds: one of the sound text could be taken.
    broken = tree / mutant.file
    for compiled in (broken.parent / "__pycache__").glob(f"{broken.stem}.*"):
        compiled.unlink()
    try:
        told = run_tests(mutant.tests, room, limit_s=mutant.hangs_s or LIMIT_S)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return judge(mutant, told)


def judge(mutant: Mutant, told: Told) -> Trial:
    """Only a test that ran and failed has caught a mutant; or that hangs, where that is stated."""
    if told.code is None:
        return Trial(mutant, bool(mutant.hangs_s), f"not done after {told.took_s:.0f} s")
    if told.code == 0:
        return Trial(mutant, caught=False, by="NO TEST: all of them pass")
    if told.code != 1:
        return Trial(mutant, caught=False, by=f"ERROR: no test ran (pytest says {told.code})")
    if odd := _BROKEN.search(told.text):
        return Trial(mutant, caught=False, by=f"ERROR: the text itself is wrong: {odd[0]}")
    return Trial(mutant, caught=not mutant.hangs_s, by=told.failed)


def run_tests(tests: Sequence[str], room: Path, *, limit_s: float, processes: int = 1) -> Told:
    """Run tests in `room`/tree with the code that lies there; leave no process behind."""
    tree, temporary = room / "tree", room / "tmp"
    temporary.mkdir(exist_ok=True)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "timeout=0", "--tb=short"]
    if processes > 1:
        options += ["-n", str(processes), "--dist", "loadfile"]
    began = time.monotonic()
    with (room / "output").open("w+") as output:
        pytest = subprocess.Popen(
            (sys.executable, "-m", "pytest", *options, *tests),
            cwd=tree,
            env={
                **{name: text for name, text in os.environ.items() if not name.startswith(_OURS)},
                "PYTHONPATH": str(tree),
                "TMPDIR": str(temporary),
                "ONSALE_TEST_POINTS": "2",  # what is random catches a mutant at one of them
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = pytest.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            pytest.send_signal(signal.SIGINT)  # it stops the servers that it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.wait(_PATIENCE_S)
        finally:
            end_all_in(room)
            pytest.wait()
        took_s = time.monotonic() - began
        output.seek(0)
        text = output.read()
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(\S+)", text, re.MULTILINE)
    return Told(code, failed[1] if failed else "?", text, took_s)


def end_all_in(room: Path) -> None:
    """End every process that works in this directory: politely, then not."""
    for number in (signal.SIGINT, signal.SIGKILL):
        until = time.monotonic() + _PATIENCE_S
        while (left := _working_in(room)) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, number)
            time.sleep(0.1)


def _working_in(room: Path) -> list[int]:
    """Return the processes whose working directory lies there; servers work in their data's."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if entry.readlink().is_relative_to(room):
                found.append(int(entry.parent.name))
    return found
