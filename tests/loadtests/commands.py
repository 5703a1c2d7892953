"""The commands that send a crowd, as a user starts them in a checkout."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtests.answers import Answers, read_answers
from tests.running import Running

ROOT = Path(__file__).resolve().parents[2]
PEOPLE, TICKETS = 200, 40
END_S = 60


def environment(data: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user who has set a data directory and nothing else."""
    others = ("REDIS_URL", "DATABASE_URL", "DB_HOST", "HOST", "PORT")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return {**kept, "ONSALE_DATA_DIR": str(data), **more}


def begin(argv: list[str], data: Path, **more: str) -> subprocess.Popen[str]:
    """Start a command in the checkout, with its output on pipes."""
    return subprocess.Popen(
        argv,
        cwd=ROOT,
        env=environment(data, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def demo(data: Path, people: int, **more: str) -> subprocess.Popen[str]:
    """Start `onsale demo`."""
    sizes = ["--people", str(people), "--tickets", "20", "--cancel", "0.2"]
    return begin([sys.executable, "-m", "service", "demo", *sizes], data, **more)


def locust(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start the load test as `make loadtest` does, in small."""
    argv = [sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless"]
    argv += ["--only-summary", "--loglevel", "WARNING", "--html", str(out / "report.html")]
    argv += ["--people", str(PEOPLE), "--tickets", str(TICKETS), "--answers", str(out / "answers")]
    argv += ["--cancel", "0.2", "--repeat", "0.2", "--span", "1", "--think", "0.3"]
    argv += ["--prefer", "recorded"]
    return begin([*argv, *more], data)


def verifier(data: Path, answers: Path) -> subprocess.CompletedProcess[str]:
    """Run the verifier as `make loadtest` does."""
    argv = [sys.executable, "-m", "loadtests.verify", str(answers), "--patience", "20"]
    return subprocess.run(
        argv, cwd=ROOT, env=environment(data), capture_output=True, text=True, check=False
    )


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


def end(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command; one that hangs is told to stop, and fails the test."""
    try:
        out, err = process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise
    return Ended(process.returncode, out, err)


@dataclass(frozen=True)
class Crowds:
    """Two crowds that were at the same service at the same time."""

    running: Running
    out: Path
    locust: Ended
    demo: Ended

    @property
    def answers(self) -> Answers:
        """What Locust's people were told."""
        return read_answers(self.out / "answers")
