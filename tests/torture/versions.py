"""On what a run was made: servers, libraries, machine and commit, as a table in Markdown."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from service import embedded

LIBRARIES = ("redis", "asyncpg", "uvicorn", "uvloop", "httptools", "starlette", "hypothesis")


def commit() -> str:
    """Return the commit that is checked out, and whether anything was changed since."""
    return _first_line("git", "describe", "--always", "--dirty")


def described(command: str, commits: Mapping[str, Sequence[str]], took: str) -> str:
    """Return the table; `command` repeats the run, and `took` says how long that took.

    `commits`: what was done on each, where it was gone on with after something was mended.
    """
    kernel = platform.release().partition("-")[0]
    rows = {
        "command": f"`{command}`",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _in_words(commits),
        "Valkey": _first_line(str(embedded._valkey_binary()), "--version"),
        "PostgreSQL": _first_line(str(embedded._postgres_bin() / "postgres"), "--version"),
        "Python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "machine": f"{platform.system()} {kernel}, {os.cpu_count()} cores",
        "took": took,
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _in_words(commits: Mapping[str, Sequence[str]]) -> str:
    """Name the commit of most kinds, and of the others which."""
    most, *others = sorted(commits, key=lambda name: -len(commits[name]))
    return "; ".join([most, *(f"{name} for {', '.join(commits[name])}" for name in others)])


def _first_line(*command: str) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[0].strip()
