"""`onsale backup` and `onsale restore` as an operator runs them: exit codes, streams, JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.app import Worker
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Client, Stores
from tests.integration.conftest import writing
from tests.integration.restoring import RecordCopies, caught_up


@pytest.fixture
def environment(stores: Stores, tmp_path: Path) -> dict[str, str]:
    """The settings of a deployment on this test's stores."""
    return {**os.environ, **stores.environment, "ONSALE_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
async def event_id(settings: Settings, stores: Stores, redis_store: RedisStore) -> int:
    """An event of 2 tickets, on record: `a` and `b` have them, `c` waits."""
    async with writing(settings), Worker(settings) as engine:
        event = await engine.initialize("Event Name", 2)
        for user in "abc":
            await engine.book(event.event_id, user)
        await caught_up(RecordCopies(stores), redis_store)
    return event.event_id


def onsale(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        (sys.executable, "-m", "service", *map(str, arguments)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("event_id")
def test_made_planned_and_restored_is_exit_code_0(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Three commands; what they print ends with what came of it."""
    backup = tmp_path / "backup"
    ended = onsale(environment, "backup", backup)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"backed up: {backup} has 5 changes of 1 partition" in ended.stdout
    planned = onsale(environment, "restore", backup)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert planned.stdout.splitlines()[-1] == "Nothing was changed; --apply restores."
    assert "partition 0: nothing was changed since." in planned.stdout
    done = onsale(environment, "restore", backup, "--apply")
    assert done.returncode == 0
    assert "partition 0: open in epoch 2, continue." in done.stdout
    assert done.stdout.splitlines()[-1] == "restored: audit holds, reconcile clean."


@pytest.mark.usefixtures("event_id")
def test_json(environment: dict[str, str], tmp_path: Path) -> None:
    """One object each, with the exit code."""
    backup = tmp_path / "backup"
    made = json.loads(onsale(environment, "backup", backup, "--json").stdout)
    assert (made["exitCode"], made["partitions"][0]["seq"]) == (0, 5)
    assert made == {"exitCode": 0, **json.loads((backup / "manifest.json").read_text())}
    planned = json.loads(onsale(environment, "restore", backup, "--json").stdout)
    assert (planned["applied"], planned["audit"]) == (False, None)
    done = json.loads(onsale(environment, "restore", backup, "--json", "--apply").stdout)
    assert done["partitions"] == [
        {
            "partition": 0,
            "backup": {"epoch": 1, "seq": 5},
            "recorded": {"epoch": 1, "seq": 5},
            "redis": {"epoch": 1, "seq": 5},
            "watermark": {"epoch": 1, "seq": 5},
            "outboxFrom": 1,
            "expected": "nothing was changed since",
            "result": {"verdict": "continue", "epoch": 2, "reason": None},
        }
    ]
    assert (done["exitCode"], done["audit"], done["reconcile"]) == (0, "holds", "clean")


@pytest.mark.usefixtures("event_id")
async def test_what_is_refused_is_exit_code_1(
    environment: dict[str, str], tmp_path: Path, valkey: Client
) -> None:
    """One line on stderr, which names the file; a partition that stays closed is one as well."""
    backup = tmp_path / "backup"
    backup.mkdir()
    ended = onsale(environment, "backup", backup)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"onsale: {backup} exists; a backup wants a directory of its own\n"
    backup.rmdir()
    assert onsale(environment, "backup", backup).returncode == 0
    whole = (backup / "journal.gz").read_bytes()
    (backup / "journal.gz").write_bytes(whole[:-1])
    ended = onsale(environment, "restore", backup, "--apply", "--json")
    assert (ended.returncode, json.loads(ended.stdout)) == (1, {"exitCode": 1})
    assert ended.stderr.startswith("onsale: journal.gz is not what was backed up: ")
    (backup / "journal.gz").write_bytes(whole)
    await valkey.hset("{p00}:meta", "recorded", "9")
    ended = onsale(environment, "restore", backup, "--apply")
    assert ended.returncode == 1
    assert "partition 0: stays closed: PostgreSQL went back: Redis knows 1-9" in ended.stdout
    assert ended.stdout.splitlines()[-1] == (
        "restored, but look at what stands above: audit holds."
    )


@pytest.mark.usefixtures("event_id")
async def test_what_cannot_be_told_is_exit_code_2(
    environment: dict[str, str], tmp_path: Path, valkey: Client
) -> None:
    """No service, no store, a writer that does not come: nothing is left, nothing was changed."""
    backup = tmp_path / "backup"
    assert onsale(environment, "backup", backup).returncode == 0
    nowhere = {**environment, "REDIS_URL": "unix:///nowhere/valkey.sock"}
    for arguments in (("backup", tmp_path / "other"), ("restore", backup, "--apply")):
        ended = onsale(nowhere, *arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("onsale: cannot tell: Redis: ")
        ended = onsale({**environment, "REDIS_URL": "", "DATABASE_URL": ""}, *arguments)
        assert ended.returncode == 2
        assert "no service runs on" in ended.stderr
    await valkey.hset("{p00}:meta", "seq", "6")
    ended = onsale(environment, "backup", tmp_path / "other", "--patience", "0.1", "--json")
    assert (ended.returncode, json.loads(ended.stdout)) == (2, {"exitCode": 2})
    assert ended.stderr == (
        "onsale: no backup was made: partition 0: Redis has answered up to 1-6, the record ends at"
        " 1-5 after 0.1 s: is the writer running?\n"
    )
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "other.partial").exists()
