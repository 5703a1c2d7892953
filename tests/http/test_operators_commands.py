"""The operator's commands beside a service that runs, as `onsale up` starts it."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.running import Running, running

__all__ = ["running"]


@pytest.mark.parametrize(
    "words",
    [
        "reconcile --repair", "rebuild", "confirm-loss", "deadletters list", "audit", "health",
        "restore {backup}", "restore {backup} --apply", "urls", "open",
    ],
)  # fmt: skip
def test_a_command_finds_the_service_that_runs(
    running: Running, tmp_path: Path, words: str
) -> None:
    """With its data directory alone: nobody has to know where the stores are."""
    environment = {**os.environ, "ONSALE_DATA_DIR": str(running.data)}
    environment["PORT"] = str(running.urls["http"]).rpartition(":")[2]
    opening = {"name": "Event Name", "totalTickets": 1}
    opened = httpx.post(f"{running.urls['http']}/initialize", json=opening, trust_env=False)
    assert opened.status_code == 201
    backup = tmp_path / "backup"
    for command in (f"backup {backup}", words.format(backup=backup)):
        ended = subprocess.run(
            [sys.executable, "-m", "service", *command.split()],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
