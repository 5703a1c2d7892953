"""On what a run was made: servers, libraries, machine and commit, as a table in Markdown."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version

from service import embedded

LIBRARIES = ("redis", "asyncpg", "uvicorn", "uvloop", "httptools", "starlette", "hypothesis")


def described(command: str, took_s: float) -> str:
    """Return the table; `command` repeats the run, and `took_s` is how long that took."""
    kernel = platform.release().partition("-")[0]
    rows = {
        "command": f"`{command}`",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _first_line("git", "describe", "--always", "--dirty"),
        "Valkey": _first_line(str(embedded._valkey_binary()), "--version"),
        "PostgreSQL": _first_line(str(embedded._postgres_bin() / "postgres"), "--version"),
        "Python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "machine": f"{platform.system()} {kernel}, {os.cpu_count()} cores",
        "took": f"{took_s / 60:.0f} min",
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def _first_line(*command: str) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[0].strip()
