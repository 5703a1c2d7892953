"""The `onsale` command, as far as it goes without a server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from service.cli import main
from service.rundir import RunDirectory, Service

VARIABLES = ("REDIS_URL", "DATABASE_URL", "DB_HOST", "HOST", "PORT", "ONSALE_ALLOW_REMOTE")
SERVICE = Service(os.getpid(), "http://127.0.0.1:1", "unix:///s?db=0", "postgresql://o@/o?host=/s")


pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a data directory, and an environment with nothing else in it that Onsale reads."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONSALE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def onsale(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, arguments)


def publish(data: Path, service: Service) -> None:
    """Write what a running supervisor writes."""
    run = RunDirectory(data)
    run.run.mkdir(parents=True)
    run.write_service(service)


def every_command(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    """Return every command as its words."""
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        found.append((*path, name))
        if isinstance(command, click.Group):
            found += every_command(command, *path, name)
    return found


@pytest.mark.parametrize("command", every_command(main), ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    """`--help` of each command prints a sentence of its own."""
    result = onsale(*command, "--help")
    assert result.exit_code == 0
    described = result.output.split("\n\n")[1].strip()
    assert described[0].isupper()
    assert "Options:" not in described


def test_help_imports_no_heavy_module() -> None:
    """`onsale --help` answers without the stores' clients, pydantic and the web server."""
    heavy = ("asyncpg", "redis", "pydantic", "starlette", "uvicorn")
    code = (
        "import sys; from service.cli import main; main(['--help'], standalone_mode=False);"
        f"sys.exit(', '.join(sorted(set({heavy!r}) & set(sys.modules))))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ended.stderr.strip() == ""


def test_version_is_one_line() -> None:
    """`--version` names the program and its version."""
    result = onsale("--version")
    assert result.exit_code == 0
    assert result.output.startswith("onsale ")
    assert len(result.output.splitlines()) == 1


READS_SETTINGS = [
    *(("up",), ("api",), ("writer",), ("settings",), ("urls",), ("health",), ("demo",)),
    *(("migrate", "up"), ("migrate", "down"), ("migrate", "status"), ("reconcile",), ("audit",)),
    *(("history", "1"), ("deadletters", "list"), ("backup", "x"), ("close", "--reason", "x")),
]


@pytest.mark.parametrize("command", READS_SETTINGS)
def test_a_name_that_is_no_setting_ends_each_command(
    command: tuple[str, ...], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the nearest name, and no start on defaults that were not asked for."""
    monkeypatch.setenv("ONSALE_DURABILTY", "recorded")
    result = onsale(*command)
    assert result.exit_code == 2
    assert result.stderr.startswith("onsale: ONSALE_DURABILTY: there is no such setting; the near")
    assert len(result.stderr.splitlines()) == 1
    assert not data.exists()


def test_a_command_forgets_what_the_clients_would_read(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PG* and the file of TLS secrets; the settings stay."""
    forgotten = {"PGHOSTADDR", "PGOPTIONS", "SSLKEYLOGFILE"}
    for name in forgotten:
        monkeypatch.setenv(name, "elsewhere")
    assert onsale("settings").exit_code == 0
    assert not forgotten & os.environ.keys()
    assert os.environ["ONSALE_DATA_DIR"] == str(data)


@pytest.mark.parametrize("command", [("up",), ("api",), ("writer",), ("urls",), ("migrate", "up")])
@pytest.mark.usefixtures("data")
def test_a_refused_setting_is_one_line(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that cannot work ends every command with 2 and its name, no traceback."""
    monkeypatch.setenv("PORT", "99999")
    result = onsale(*command)
    assert result.exit_code == 2
    assert result.stderr.startswith("onsale: PORT: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [("urls",), ("urls", "--json"), ("migrate", "status")])
def test_where_nothing_runs_one_line_says_so(command: tuple[str, ...], data: Path) -> None:
    """Without a service and without settings the exit code is 1 and stdout is empty."""
    result = onsale(*command)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"onsale: no service runs on {data}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_urls_of_a_service_that_has_ended_are_not_printed(data: Path) -> None:
    """What a killed supervisor left in service.json is not taken for a running service."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    publish(data, Service(ended.pid, SERVICE.http, SERVICE.redis, SERVICE.postgresql))
    assert onsale("urls").exit_code == 1


def test_urls_prints_those_of_the_running_service(data: Path) -> None:
    """As JSON an object with exactly two keys, otherwise two assignments for a shell."""
    publish(data, SERVICE)
    assert json.loads(onsale("urls", "--json").stdout) == {
        "redis": SERVICE.redis,
        "postgresql": SERVICE.postgresql,
    }
    assert onsale("urls").stdout == (
        f"REDIS_URL='{SERVICE.redis}'\nDATABASE_URL='{SERVICE.postgresql}'\n"
    )


@pytest.mark.usefixtures("data")
def test_urls_prints_the_stores_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where settings name both stores nothing needs to run; passwords only when asked for."""
    monkeypatch.setenv("REDIS_URL", "redis://:secret@r:1/0")
    monkeypatch.setenv("DB_HOST", "p")
    monkeypatch.setenv("DB_PASSWORD", "a/b")
    assert json.loads(onsale("urls", "--json", "--with-passwords").stdout) == {
        "redis": "redis://:secret@r:1/0",
        "postgresql": "postgresql://onsale:a%2Fb@p/onsale",
    }
    assert json.loads(onsale("urls", "--json").stdout) == {
        "redis": "redis://:***@r:1/0",
        "postgresql": "postgresql://onsale:***@p/onsale",
    }
    assert "secret" not in onsale("urls").stdout
    assert "REDIS_URL=redis://:secret@r:1/0\n" in onsale("urls", "--with-passwords").stdout


def test_service_json_is_for_the_owner_alone(data: Path) -> None:
    """The file may hold passwords: mode 0600."""
    publish(data, SERVICE)
    assert (data / "run" / "service.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "command", ["rebuild", "confirm-loss", "reconcile --repair", "deadletters list"]
)
def test_a_machine_is_told_that_nothing_can_be_told(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One JSON object on stdout and a line on stderr, as ever, where the stores are away."""
    monkeypatch.setenv("ONSALE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("REDIS_URL", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("DATABASE_URL", f"postgresql://onsale@/onsale?host={tmp_path}")
    result = onsale(*command.split(), "--json")
    assert result.exit_code == 2, result.output
    assert json.loads(result.stdout)["exitCode"] == 2
