"""`onsale up` on stores of the user's own: what it refuses, and where passwords never appear."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import pytest

from service import supervisor
from service.settings import Settings
from tests.guarded import POSTGRESQL_PASSWORD, REDIS_PASSWORD, USER, Guarded
from tests.servers import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 30
SECRETS = {
    form
    for password in (REDIS_PASSWORD, POSTGRESQL_PASSWORD)
    # Each piece that an unquoted sign would have cut off, too.
    for form in (password, quote(password), quote(password, safe=""), *password.split("@"))
}


def leaked(text: str) -> list[str]:
    """Return the passwords, or their pieces, that a text holds."""
    return [secret for secret in SECRETS if secret in text]


class Up:
    """One `onsale up`, with all that it says and all that its processes are called."""

    def __init__(self, base: Path, **settings: str) -> None:
        """Start it in a directory without a `.env`."""
        self.data = base / "data"
        self._screen = base / "screen"
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ONSALE_", "PG", "DB_"))},
            "ONSALE_DATA_DIR": str(self.data),
            "PORT": "0",
            "PYTHONPATH": str(ROOT),
            **settings,
        }
        with self._screen.open("wb") as screen:
            self._process = subprocess.Popen(
                self._onsale("up"),
                env=self._environment,
                stdout=screen,
                stderr=screen,
                cwd=base,
            )
        self.command_lines: set[str] = set()

    @staticmethod
    def _onsale(*words: str) -> list[str]:
        return [sys.executable, "-m", "service", *words]

    @property
    def screen(self) -> str:
        """Return what the terminal shows, both streams."""
        return self._screen.read_text()

    def serving(self) -> "Up":
        """Wait for the first screen, taking down what `ps` would show meanwhile."""

        def served() -> bool:
            assert self._process.poll() is None, self.screen
            self.command_lines |= {line for _, line in self.processes()}
            return "Ctrl-C" in self.screen

        wait_until(served, what="the first screen")
        return self

    def refused(self) -> str:
        """Wait for its end; return the last line of the screen. Nothing may be left running."""
        assert self._process.wait(STOP_S) in (1, 2)
        assert [line for _, line in self.processes()] == []
        assert list((self.data / "run").iterdir()) == []
        assert "Traceback" not in self.screen
        return self.screen.splitlines()[-1]

    def processes(self) -> list[tuple[int, str]]:
        """Return pid and command line of everything that serves this data directory."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("ONSALE_DATA_DIR") == str(self.data):
                    found.append((process.pid, " ".join(process.cmdline())))
        return found

    def run(self, *words: str) -> str:
        """Run another command with the same settings; return what it prints on both streams."""
        done = subprocess.run(
            self._onsale(*words),
            env=self._environment,
            cwd=self.data.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    @property
    def http(self) -> str:
        """Return where it serves."""
        return str(json.loads((self.data / "run" / "service.json").read_text())["http"])

    def logs(self) -> str:
        """Return all logs."""
        return "\n".join(path.read_text() for path in (self.data / "log").iterdir())

    def stop(self) -> None:
        """End it, in order if that is possible."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    """Servers that ask for passwords."""
    with Guarded(tmp_path / "servers") as running:
        yield running


@pytest.fixture
def ups() -> Iterator[list[Up]]:
    """What a test starts, ended afterwards."""
    started: list[Up] = []
    yield started
    for up in started:
        up.stop()


def test_passwords_appear_nowhere(guarded: Guarded, ups: list[Up], tmp_path: Path) -> None:
    """Not on the screen, in no log, in no command line, in no answer, also when stores are away."""
    up = Up(
        tmp_path,
        REDIS_URL=guarded.redis_url(),
        DATABASE_URL=guarded.postgresql_url(name="sales"),
        ONSALE_LOG_LEVEL="debug",
    )
    ups.append(up)
    up.serving()
    answers = []
    with httpx.Client(base_url=up.http, trust_env=False, timeout=30) as client:

        def ask(method: str, path: str, **body: object) -> int:
            answer = client.request(method, path, json=body or None)
            answers.append(answer.text + str(answer.headers))
            return answer.status_code

        assert ask("POST", "/initialize", name="First night", totalTickets=1) == 201
        assert ask("POST", "/book", eventId=1, userId=1) == 201
        shown = up.run("urls") + up.run("urls", "--json") + up.run("migrate", "status")
        guarded.servers.kill("postgresql")
        assert ask("POST", "/initialize", name="Second night", totalTickets=1) == 503
        guarded.servers.kill("valkey")
        assert ask("POST", "/book", eventId=1, userId=2) == 503
        assert ask("GET", "/readyz") == 503
        ask("GET", "/metrics")
    wait_until(lambda: "cannot" in up.logs() or "refused" in up.logs(), what="an error is logged")
    up.command_lines |= {line for _, line in up.processes()}
    assert leaked(up.screen + shown + "".join(answers)) == []
    assert leaked(up.logs()) == []
    assert leaked("\n".join(up.command_lines)) == []
    # All of it was looked at: each place holds what stands right beside the passwords.
    assert any("dbmate" in line for line in up.command_lines)
    assert quote(USER, safe="") in shown
    assert "[X]" in shown
    assert {path.name for path in (up.data / "log").iterdir()} == {"api.log", "writer.log"}
    service = up.data / "run" / "service.json"
    assert service.stat().st_mode & 0o777 == 0o600
    assert len(leaked(up.run("urls", "--with-passwords"))) >= 2
    ups.pop().stop()
    assert leaked(up.screen + up.logs()) == []


@pytest.mark.parametrize("store", ["redis", "postgresql"])
def test_a_wrong_password_ends_the_start(
    guarded: Guarded, ups: list[Up], tmp_path: Path, store: str
) -> None:
    """One line that names the setting, at once, with nothing left running."""
    wrong = "wr0ng/p@ss"
    up = Up(
        tmp_path,
        REDIS_URL=guarded.redis_url(*([wrong] if store == "redis" else [])),
        DATABASE_URL=guarded.postgresql_url(*([wrong] if store == "postgresql" else [])),
    )
    ups.append(up)
    last = up.refused()
    assert last.startswith(f"onsale: {'REDIS_URL' if store == 'redis' else 'DATABASE_URL'}: ")
    assert leaked(up.screen) == []
    assert "wr0ng" not in up.screen


def test_an_unsound_redis_ends_the_start(guarded: Guarded, ups: list[Up], tmp_path: Path) -> None:
    """One line that says what to set; the PostgreSQL that had been started is stopped again."""
    with guarded.administrator() as client:
        client.config_set("appendfsync", "everysec")
    up = Up(tmp_path, REDIS_URL=guarded.redis_url())
    ups.append(up)
    last = up.refused()
    assert last.startswith("onsale: REDIS_URL: ")
    assert "appendfsync 'everysec'; fsync needs 'always'" in last


def test_an_unsound_postgresql_ends_the_start(
    guarded: Guarded, ups: list[Up], tmp_path: Path
) -> None:
    """What counts is what our own sessions have, wherever it was set."""
    query = "?options=-c%20synchronous_commit%3Doff"
    up = Up(tmp_path, DATABASE_URL=guarded.postgresql_url(query=query, name="sales"))
    ups.append(up)
    last = up.refused()
    assert last.startswith("onsale: DATABASE_URL: ")
    assert "synchronous_commit 'off'; 'on' is needed" in last


def test_a_store_that_stays_away_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for, which a line says; then the refusal names the setting."""
    monkeypatch.setattr(supervisor, "START_SECONDS", 0.3)
    settings = Settings(
        redis_url=f"redis://u:topsecret@127.0.0.1:{free_port()}",
        database_url=f"postgresql://u:topsecret@127.0.0.1:{free_port()}/d",
        data_dir=tmp_path / "data",
        port=0,
    )
    with pytest.raises(supervisor.StartError) as caught:
        asyncio.run(supervisor.Supervisor(settings, supervisor.DEFAULT_PLAN).serve())
    text = str(caught.value)
    assert "(REDIS_URL) cannot be reached: " in text or "(DATABASE_URL) cannot be" in text
    assert "topsecret" not in text + caplog.text
    assert "waiting for a store" in caplog.text
