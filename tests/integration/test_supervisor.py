"""The supervisor, the real one, over stand-in processes (stub_service.py)."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import psutil
import pytest

from service.processes import Role, find_leftovers, role_environment
from service.rundir import RunDirectory

T = TypeVar("T")

STUB = Path(__file__).with_name("stub_service.py")
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
ROLES = {"valkey", "postgresql", "writer", "api"}

pytestmark = pytest.mark.timeout(180)


def eventually(look: Callable[[], T | None], what: str) -> T:
    """Look until there is something to see, or fail saying what was expected."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(what)


class Up:
    """One data directory, and the supervisors that a test starts on it."""

    def __init__(self, base: Path) -> None:
        """Keep sockets apart from those of any other service as well, under a short path."""
        self.data = base / "data"
        self.tmp = Path(tempfile.mkdtemp(prefix="up-", dir="/tmp"))
        self.started: list[subprocess.Popen[str]] = []

    def start(self, **more: str) -> subprocess.Popen[str]:
        """Start a supervisor on a free port."""
        env = {
            **os.environ,
            "ONSALE_DATA_DIR": str(self.data),
            "PORT": "0",
            "TMPDIR": str(self.tmp),
            "PYTHONPATH": str(ROOT),
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, str(STUB)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def serving(self, **more: str) -> subprocess.Popen[str]:
        """Start a supervisor and wait for its first screen to end."""
        process = self.start(**more)
        assert process.stdout is not None
        screen = ""
        while "Ctrl-C" not in screen:
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            screen += line
        self.screen = screen
        return process

    def pid(self, role: str) -> int | None:
        """Return a role's process by its pid file."""
        try:
            return int((self.data / "run" / f"{role}.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return None

    def roles(self) -> dict[int, str]:
        """Return every process that carries this data directory as a role."""
        found = {}
        for process in psutil.process_iter():
            try:
                env = process.environ()
            except (psutil.Error, OSError):
                continue
            if env.get("ONSALE_DATA_DIR") == str(self.data) and "ONSALE_ROLE" in env:
                found[process.pid] = env["ONSALE_ROLE"]
        return found

    def get(self) -> str:
        """Ask the API; the stand-in answers with its pid."""
        http_url = json.loads((self.data / "run" / "service.json").read_text())["http"]
        connection = http.client.HTTPConnection(urlsplit(http_url).netloc, timeout=PATIENCE_S)
        connection.request("GET", "/")
        try:
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def assert_nothing_left(self) -> None:
        """Hold that an orderly end leaves data and logs alone."""
        assert self.roles() == {}
        assert list(self.tmp.iterdir()) == []
        assert list((self.data / "run").iterdir()) == []

    def end(self) -> None:
        """Kill what the test left running."""
        for process in self.started:
            process.kill()
            process.communicate()
        for pid in self.roles():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.tmp)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Give a data directory of its own, and end what runs on it."""
    up = Up(tmp_path)
    yield up
    up.end()


def test_a_role_that_somebody_runs_by_hand_is_no_leftover(data_dir: Path) -> None:
    """It has the settings of one, and not the mark that a supervisor's children have."""
    run = RunDirectory(data_dir)
    environment = {**os.environ, "ONSALE_DATA_DIR": str(run.data), "ONSALE_ROLE": "api-east"}
    with (
        subprocess.Popen(["sleep", "60"], env=environment) as by_hand,
        subprocess.Popen(["sleep", "60"], env=role_environment(run, Role("api-2", ()))) as child,
    ):
        try:
            assert [(r, p.pid) for r, p in find_leftovers(run)] == [("api-2", child.pid)]
        finally:
            by_hand.kill()
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(up: Up, number: signal.Signals) -> None:
    """A signal ends every process, removes sockets and run files, and the exit code is 0."""
    process = up.serving()
    assert set(up.roles().values()) == ROLES
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 0
    up.assert_nothing_left()


def test_the_first_screen_has_what_a_first_booking_needs(up: Up) -> None:
    """Address, data, versions and two commands, in no more than fifteen lines."""
    up.serving()
    address = json.loads((up.data / "run" / "service.json").read_text())["http"]
    assert f"curl {address}/initialize" in up.screen
    assert f"curl {address}/book" in up.screen
    assert str(up.data) in up.screen
    assert "valkey 1.0, postgresql 1.0" in up.screen
    assert "authentication" not in up.screen
    assert up.screen.count("\n") <= 15


def test_a_service_that_others_reach_says_so(up: Up) -> None:
    """Where remote addresses are allowed the screen says that there is no authentication."""
    up.serving(ONSALE_ALLOW_REMOTE="1")
    assert "no authentication" in up.screen


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_that_dies_is_started_again(up: Up, role: str) -> None:
    """After a kill -9 of any role there is another process for it, and one line says so."""
    process = up.serving()
    first = up.pid(role)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(lambda: up.pid(role) not in (None, first), f"{role} was not started again")
    assert up.get() == str(up.pid("api"))
    process.terminate()
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert f'"role": "{role}", "why": "was ended by SIGKILL"' in stderr
    up.assert_nothing_left()


def apis(up: Up) -> set[int]:
    """Return the API workers by pid."""
    return {pid for pid, role in up.roles().items() if role == "api"}


def other_apis(up: Up, before: set[int]) -> set[int]:
    """Return the API workers that were not there before."""
    return apis(up) - before


def test_a_role_is_kept_running_without_its_pid_file(up: Up) -> None:
    """The run directory has gone (a full disk is no better): roles live on and end in order."""
    process = up.serving()
    shutil.rmtree(up.data / "run")
    for _ in range(2):
        before = apis(up)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(partial(other_apis, up, before), "another api")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert not up.roles()


def test_a_connection_outlives_the_worker(up: Up) -> None:
    """A request that arrives while no API worker lives is answered by the next one."""
    up.serving()
    first = up.pid("api")
    assert first is not None
    worker = psutil.Process(first)
    os.kill(first, signal.SIGKILL)
    worker.wait(PATIENCE_S)
    assert up.get() not in ("", str(first))


def test_there_are_as_many_api_workers_as_asked_for(up: Up) -> None:
    """WEB_CONCURRENCY=3 makes api, api-2 and api-3."""
    up.serving(WEB_CONCURRENCY="3")
    assert set(up.roles().values()) == ROLES | {"api-2", "api-3"}


@pytest.mark.parametrize("pid_files", ["with pid files", "without pid files"])
def test_a_start_replaces_what_a_killed_supervisor_left(up: Up, pid_files: str) -> None:
    """After a kill -9 of the supervisor the next start stops every role of the first."""
    up.serving().kill()
    left = set(up.roles())
    assert len(left) == len(ROLES)
    if pid_files == "without pid files":
        for path in (up.data / "run").glob("*.pid"):
            path.unlink()
    process = up.serving()
    assert set(up.roles().values()) == ROLES
    assert not left & set(up.roles())
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    up.assert_nothing_left()


def test_a_reused_pid_is_left_alone(up: Up) -> None:
    """A process that has a leftover's pid but not its creation time is not signalled."""
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        (up.data / "run").mkdir(parents=True)
        (up.data / "run" / "writer.pid").write_text(f"{stranger.pid} 1.0\n")
        up.serving()
        assert stranger.poll() is None
        assert up.pid("writer") != stranger.pid
    finally:
        stranger.kill()
        stranger.wait()


def test_another_data_directory_is_left_alone(up: Up, tmp_path: Path) -> None:
    """A start and a stop touch no process of a service beside it."""
    other = Up(tmp_path / "other")
    try:
        other.serving()
        before = other.roles()
        up.serving().terminate()
        up.started[-1].wait(PATIENCE_S)
        assert other.roles() == before
    finally:
        other.end()


def test_a_second_start_is_refused(up: Up) -> None:
    """A second supervisor names the first, ends with 1 and disturbs nothing."""
    first = up.serving()
    roles = up.roles()
    second = up.start()
    _, stderr = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 1
    assert len(stderr.splitlines()) == 1
    assert f"process {first.pid}" in stderr
    assert up.roles() == roles
    assert up.get()


def test_a_port_in_use_is_refused_before_anything_starts(up: Up) -> None:
    """The refusal is one line, exit code 1, and no process was started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = up.start(PORT=str(port))
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert stderr.startswith(f"onsale: PORT={port} is in use on 127.0.0.1")
    assert len(stderr.splitlines()) == 1
    up.assert_nothing_left()
    assert list((up.data / "log").iterdir()) == []


def test_a_signal_during_the_start_leaves_nothing_behind(up: Up) -> None:
    """A SIGTERM while the stores come up ends all of it too, with exit code 0."""
    process = up.start(STUB_MODE="never")
    eventually(lambda: set(up.roles().values()) == {"valkey", "postgresql"}, "no store started")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    up.assert_nothing_left()


def test_a_role_that_refuses_its_settings_ends_the_start(up: Up) -> None:
    """The end of its log is shown, all is stopped, and the exit code is 1."""
    process = up.start(STUB_MODE="refuses")
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "PARTITIONS is another" in stderr
    assert "Traceback" not in stderr
    up.assert_nothing_left()


def test_a_second_signal_kills(up: Up) -> None:
    """A role that ignores SIGTERM holds the end up until the second signal kills it."""
    process = up.serving(STUB_MODE="stubborn")
    process.terminate()
    eventually(lambda: "api" not in up.roles().values(), "the stop did not begin")
    process.terminate()
    assert process.wait(PATIENCE_S) == 1
    up.assert_nothing_left()


def test_an_open_socket_directory_of_somebody_else_is_refused(up: Up) -> None:
    """A socket directory that others may enter is refused with its path, exit code 2."""
    up.serving().terminate()
    up.started[-1].wait(PATIENCE_S)
    process = up.start(STUB_MODE="never")
    # By its name: Python tries a directory for temporary files by writing one.
    made = eventually(lambda: next(up.tmp.glob("onsale-*"), None), "no socket directory")
    process.terminate()
    process.wait(PATIENCE_S)
    made.mkdir()
    made.chmod(0o755)
    process = up.start()
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert str(made) in stderr
    assert len(stderr.splitlines()) == 1
