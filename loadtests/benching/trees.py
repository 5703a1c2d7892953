"""The trees of a comparison: this one, and the files of another commit in a directory of their own.

Both are run by the same interpreter with the same locked packages. Where the other commit has
another lock, it has an environment of its own, of the same interpreter.
"""

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from loadtests.benching.processes import ROOT

LOCK = Path("requirements/run.txt")
"""The packages of a running service, with versions and hashes."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Files of the project and the interpreter that runs them."""

    name: str
    path: Path
    python: str

    def command(self, *arguments: str) -> list[str]:
        """Return a command of the service, without its environment."""
        return [self.python, "-m", "service", *arguments]

    def environment(self) -> dict[str, str]:
        """Return the variables with which this tree is imported, and not an installed one."""
        return {"PYTHONPATH": str(self.path)}


HERE = Tree("this tree", ROOT, sys.executable)


class NoTreeError(Exception):
    """The other tree cannot be had; the text is for the terminal."""


def unpack(commit: str, directory: Path, repository: Path = ROOT) -> tuple[Tree, str]:
    """Write a commit's files to a directory; return its tree and a note on its environment.

    Raises NoTreeError.
    """
    git = ["git", "-C", str(repository)]
    named = _run([*git, "rev-parse", "--verify", "--short", f"{commit}^{{commit}}"])
    if named.returncode:
        msg = f"BASE={commit} is no commit of this repository: {named.stderr.strip()}"
        raise NoTreeError(msg)
    directory.mkdir(parents=True)
    archive = directory.with_suffix(".tar")
    for argv in (
        [*git, "archive", "--format=tar", f"--output={archive}", commit],
        ["tar", "-x", "-f", str(archive), "-C", str(directory)],
    ):
        if (done := _run(argv)).returncode:
            msg = f"{' '.join(argv)} failed: {done.stderr.strip()}"
            raise NoTreeError(msg)
    archive.unlink()
    name = named.stdout.strip()
    if (directory / LOCK).read_bytes() == (ROOT / LOCK).read_bytes():
        return Tree(name, directory, sys.executable), f"{LOCK} is the same in both trees."
    tree = Tree(name, directory, str(directory / ".venv/bin/python"))
    _install(directory)
    note = f"{LOCK} differs: {name} runs in an environment of its own, of the same interpreter."
    return tree, note


def _install(directory: Path) -> None:
    """Make the environment of a tree as its own Makefile does."""
    # The interpreter below this environment: a virtual environment is not made from another one.
    python = os.path.realpath(sys.executable)
    kept = {name: text for name, text in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    done = _run(["make", "-C", str(directory), f"PYTHON={python}", ".venv/.run"], kept)
    if done.returncode:
        msg = (
            f"the packages of {LOCK} of the other tree cannot be installed:\n{done.stderr[-2000:]}"
        )
        raise NoTreeError(msg)


def build() -> str:
    """Return the flags of the interpreter, and a warning where it was built without optimisation.

    Debian's interpreter is a static build; the flags that it keeps are those of the shared build
    beside it, and do not tell.
    """
    flags = str(sysconfig.get_config_var("CONFIG_ARGS") or "unknown")
    told = f"Python's build flags (CONFIG_ARGS): `{flags}`."
    if "--enable-optimizations" in flags:
        return told
    if "--enable-shared" in flags and "libpython" not in Path("/proc/self/maps").read_text():
        return f"{told} They are of a shared build, and this interpreter is a static one."
    return (
        f"{told} **Warning**: it was built without --enable-optimizations, and is slower by a fifth"
        " to a third than one with it; use Debian's (`make bench PYTHON=/usr/bin/python3 …`)."
    )


def _run(
    argv: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
