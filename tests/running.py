"""A whole service, as `make run` starts it, on a data directory of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.servers import wait_until

STOP_S = 30


@dataclass(frozen=True)
class Running:
    """An `onsale up` of the test's own."""

    data: Path
    process: subprocess.Popen[bytes]

    @property
    def urls(self) -> dict[str, Any]:
        """Return what it says of itself."""
        found = json.loads((self.data / "run" / "service.json").read_text())
        assert isinstance(found, dict)
        return found

    def pid(self, role: str) -> int:
        """Return a role's process id, 0 while there is none."""
        path = self.data / "run" / f"{role}.pid"
        return int(path.read_text().split()[0]) if path.exists() else 0

    def kill(self, role: str) -> None:
        """Kill -9 a role, and wait until another process has its place."""
        pid = self.pid(role)
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: self.pid(role) not in (0, pid) and psutil.pid_exists(self.pid(role)),
            what=f"{role} is back",
        )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A whole service, as `make run` starts it."""
    data = tmp_path_factory.mktemp("kills") / "data"
    environment = {**os.environ, "ONSALE_DATA_DIR": str(data), "PORT": "0"}
    for name in ("REDIS_URL", "DATABASE_URL", "DB_HOST"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "up"], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        shown = b""
        while b"curl" not in shown:
            line = process.stdout.readline()
            assert line, "onsale up ended"
            shown += line
        yield Running(data, process)
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(timeout=STOP_S)
