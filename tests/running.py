"""A whole service, as `make run` starts it, on a data directory of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.servers import wait_until

STOP_S = 60


ROLES = ("api", "writer", "valkey", "postgresql")


class Running:
    """An `onsale up` of the test's own."""

    def __init__(self, data: Path, **settings: str) -> None:
        """Name its data directory and settings beside the defaults; nothing runs before `start`."""
        self.data = data
        self._settings = settings
        self.screen = ""
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, port: int) -> dict[str, str]:
        """Return the environment of a start."""
        environment = {**os.environ, "ONSALE_DATA_DIR": str(self.data), "PORT": str(port)}
        for name in ("REDIS_URL", "DATABASE_URL", "DB_HOST"):
            environment.pop(name, None)
        return environment | self._settings

    def start(self, port: int = 0) -> None:
        """Start it, and wait for its first screen."""
        environment = self.environment(port)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service", "up"], env=environment, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.screen = ""
        while "Ctrl-C" not in self.screen:
            line = self._process.stdout.readline()
            assert line, "onsale up ended"
            self.screen += line.decode()

    def stop(self) -> None:
        """End it in order."""
        if self._process is not None:
            self._process.terminate()
            self._ended()

    def kill_everything(self, roles: Sequence[str] = ROLES) -> None:
        """Kill -9 the supervisor and then the roles, without a moment to react."""
        assert self._process is not None
        self._process.kill()
        for role in roles:
            os.kill(self.pid(role), signal.SIGKILL)
        self._ended()

    def _ended(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait(timeout=STOP_S)
        self._process = None

    @property
    def urls(self) -> dict[str, Any]:
        """Return what it says of itself."""
        found = json.loads((self.data / "run" / "service.json").read_text())
        assert isinstance(found, dict)
        return found

    @property
    def parent_pid(self) -> int:
        """The process id of `onsale up` itself, which is running."""
        assert self._process is not None
        return self._process.pid

    def pid(self, role: str) -> int:
        """Return a role's process id, 0 while there is none."""
        try:
            return int((self.data / "run" / f"{role}.pid").read_text().split()[0])
        except FileNotFoundError:
            return 0

    def kill(self, role: str) -> None:
        """Kill -9 a role, and wait until another process has its place."""
        # Without a process there is no pid, and a signal to pid 0 goes to this test's whole group.
        wait_until(lambda: self.pid(role), what=f"{role} runs")
        pid = self.pid(role)
        assert pid
        os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: self.pid(role) not in (0, pid) and psutil.pid_exists(self.pid(role)),
            what=f"{role} is back",
        )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A whole service, as `make run` starts it."""
    service = Running(tmp_path_factory.mktemp("running") / "data")
    try:
        service.start()
        yield service
    finally:
        service.stop()
