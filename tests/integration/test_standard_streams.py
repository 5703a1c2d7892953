"""Commands whose standard streams are closed, full, or read by a process that has ended."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.health import ask
from service.rundir import RunDirectory
from tests.servers import wait_until

FULL = "No space left on device"


def onsale(arguments: str, redirections: str, data: Path) -> subprocess.Popen[str]:
    """Start a command of `onsale` with a shell's redirections."""
    return subprocess.Popen(
        ["bash", "-c", f'exec "$0" -m service {arguments} {redirections}', sys.executable],
        env={"PATH": "/usr/bin:/bin", "ONSALE_DATA_DIR": str(data), "PORT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )


@pytest.mark.parametrize(
    ("arguments", "redirections", "code", "said"),
    [
        ("settings", ">&-", 0, ""),
        ("settings", "<&- >&- 2>&-", 0, ""),
        ("urls", ">&-", 1, "no service runs on"),
        ("settings", ">/dev/full", 1, FULL),
        ("--help", ">/dev/full", 1, FULL),
        ("urls", "2>/dev/full", 1, ""),
    ],
)
def test_a_command_ends_with_a_line_and_a_code(
    data_dir: Path, arguments: str, redirections: str, code: int, said: str
) -> None:
    """Whatever its streams are: one line at most, and 1 where the output was lost."""
    process = onsale(arguments, redirections, data_dir)
    _, error = process.communicate(timeout=90)
    assert process.returncode == code
    assert said in error
    assert error.count("\n") == bool(said)


def test_a_service_without_standard_streams_serves(data_dir: Path) -> None:
    """All three are closed: no socket and no lock has their numbers."""
    process = onsale("up", "<&- >&- 2>&-", data_dir)
    try:
        run = RunDirectory(data_dir)
        wait_until(lambda: run.read_service() or process.poll(), what="it serves")
        service = run.read_service()
        assert service is not None
        for descriptor in (0, 1, 2):
            assert Path(f"/proc/{service.pid}/fd/{descriptor}").readlink() == Path("/dev/null")
        wait_until(lambda: asyncio.run(ask(service.http, "/readyz")).healthy, what="it is ready")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=90)
    assert process.returncode == 0
