"""The built wheel in an environment of its own, away from the checkout: it sells a ticket.

The wheel is built without network, by the locked build tools. The environment has what the lock
for running names, installed by hash as `make run` installs it, and nothing of the tests' own.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.running import STOP_S, Running

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("REDIS_URL", "DATABASE_URL", "DB_HOST", "HOST")


def environment(**more: str) -> dict[str, str]:
    """Return an environment that leads neither to this checkout nor to stores of one's own."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        kept.pop(name, None)
    return {**kept, **more}


def run(*argv: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=environment(PIP_DISABLE_PIP_VERSION_CHECK="1"),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    built = run(
        sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT
    )
    assert built.returncode == 0, built.stderr
    (found,) = directory.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment that has the wheel and what it needs, and nothing else."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory.parent)
    assert made.returncode == 0, made.stderr
    # A pip from outside, as on a Debian that keeps ensurepip in a package of its own.
    pip = (sys.executable, "-m", "pip", "--python", directory / "bin" / "python", "install", "-q")
    lock = ROOT / "requirements" / "run.txt"
    for what in (("--require-hashes", "-r", lock), ("--no-deps", "--no-index", wheel)):
        # A tenth of the time would be the compiler's.
        done = run(*pip, "--no-compile", *what, cwd=directory.parent)
        assert done.returncode == 0, done.stderr
    return directory / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory that is no checkout."""
    found = tmp_path / "elsewhere"
    found.mkdir()
    return found


class Installed(Running):
    """An `onsale up` of the installed package, run as an operator would."""

    def __init__(self, scripts: Path, data: Path, cwd: Path) -> None:
        """`cwd` is where it is started."""
        super().__init__(data)
        self._scripts = scripts
        self._cwd = cwd

    def start(self, port: int = 0) -> None:
        """Start it, and wait for its first screen."""
        self._process = subprocess.Popen(
            [str(self._scripts / "onsale"), "up"],
            cwd=self._cwd,
            env=environment(ONSALE_DATA_DIR=str(self.data), PORT=str(port)),
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.screen = ""
        while "Ctrl-C" not in self.screen:
            line = self._process.stdout.readline()
            assert line, "onsale up ended"
            self.screen += line.decode()


@pytest.fixture
def service(installed: Path, elsewhere: Path, data_dir: Path) -> Iterator[Installed]:
    """A service of the installed package, not started yet."""
    found = Installed(installed, data_dir, elsewhere)
    try:
        yield found
    finally:
        found.stop()


def files_of(directory: Path) -> set[str]:
    """Return the files below a directory, as the wheel would name them."""
    return {
        f"service/{path.relative_to(ROOT)}"
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_the_package_its_scripts_and_its_migrations(wheel: Path) -> None:
    """Every file of service/, lua/ and sql/, and neither tests nor anything else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {f"service/{path.name}" for path in (ROOT / "service").glob("*.py")}
    assert names == modules | files_of(ROOT / "lua") | files_of(ROOT / "sql")
    assert {"service/lua/book.lua", "service/lua/include/fence.lua"} < names


def test_the_installed_service_sells_a_ticket_and_leaves_nothing(
    service: Installed, installed: Path, elsewhere: Path
) -> None:
    """From first start to end: sold, healthy, and afterwards only data and logs are left."""
    where = run(
        installed / "python", "-c", "import service; print(service.__file__)", cwd=elsewhere
    )
    assert Path(where.stdout).is_relative_to(installed.parent), "the checkout is visible"

    service.start()
    url = str(service.urls["http"])
    opened = post(url, "/initialize", {"name": "First night", "totalTickets": 1})
    event_id = opened.json()["event"]["id"]
    booked = post(url, "/book", {"eventId": event_id, "userId": 1})
    waits = post(url, "/book", {"eventId": event_id, "userId": 2})
    assert (opened.status_code, booked.status_code, waits.status_code) == (201, 201, 202)
    healthy = run(installed / "onsale", "health", "--url", url, cwd=elsewhere)
    assert (healthy.returncode, healthy.stdout) == (0, "ready\n")

    sockets = Path(str(service.urls["redis"]).removeprefix("unix://").partition("?")[0]).parent
    assert sockets.is_dir()
    service.stop()
    assert not sockets.exists()
    assert processes_of(service.data) == []
    assert not list((service.data / "run").iterdir())
    assert {path.name for path in service.data.iterdir()} >= {"log", "postgresql", "valkey"}
    assert list(elsewhere.iterdir()) == []


def test_a_new_migration_belongs_into_a_checkout(installed: Path, elsewhere: Path) -> None:
    """The installed package refuses, writes nothing, and says why."""
    result = run(installed / "onsale", "migrate", "new", "add_something", cwd=elsewhere)
    assert (result.returncode, result.stdout) == (1, "")
    assert "belongs into a checkout" in result.stderr
    assert list(elsewhere.iterdir()) == []


def test_what_is_installed_agrees_with_itself(installed: Path, elsewhere: Path) -> None:
    """The lock names all that the wheel asks for, in versions that it takes."""
    pip = (sys.executable, "-m", "pip", "--python", installed / "python")
    checked = run(*pip, "check", cwd=elsewhere)
    assert checked.returncode == 0, checked.stdout
    listed = run(*pip, "list", "--format=json", cwd=elsewhere)
    names = {found["name"] for found in json.loads(listed.stdout)}
    assert "onsale" in names
    assert not names & {"pytest", "hypothesis", "fakeredis", "locust"}


def post(url: str, path: str, body: dict[str, object]) -> httpx.Response:
    """Send a request as a client would."""
    return httpx.post(f"{url}{path}", json=body, timeout=STOP_S, trust_env=False)


def processes_of(data: Path) -> list[str]:
    """Return every process that runs for a data directory."""
    found = []
    for process in psutil.process_iter(["name", "environ"]):
        marks = process.info["environ"] or {}
        if marks.get("ONSALE_DATA_DIR") == str(data):
            found.append(str(process.info["name"]))
    return found
