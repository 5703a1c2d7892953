"""`onsale reconcile` as an operator runs it: exit codes, and what goes to which stream."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
import redis

from service.app import Worker
from service.keys import event_keys, partition_keys
from service.settings import Settings
from tests.conftest import Stores
from tests.integration.conftest import eventually, writing

ONSALE = (sys.executable, "-m", "service", "reconcile")


@pytest.fixture
def environment(stores: Stores, tmp_path: Path) -> dict[str, str]:
    """The settings of a deployment on this test's stores."""
    return {**os.environ, **stores.environment, "ONSALE_DATA_DIR": str(tmp_path / "data")}


@pytest.fixture
async def event_id(stores: Stores) -> int:
    """An event of 2 tickets, on record: `a` and `b` have them, `c` waits."""
    settings = Settings(redis_url=stores.redis_url, database_url=stores.postgresql_url)
    record = await asyncpg.connect(stores.postgresql_url)
    async with writing(settings), Worker(settings) as engine:
        event = await engine.initialize("Event Name", 2)
        for user in "abc":
            await engine.book(event.event_id, user)

        async def is_recorded() -> bool:
            return bool(await record.fetchval("SELECT seq = 5 FROM cursors"))

        await eventually(is_recorded)
    await record.close()
    return event.event_id


def onsale(
    environment: dict[str, str], *arguments: str, program: tuple[str, ...] = ONSALE
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        (*program, *arguments), env=environment, capture_output=True, text=True, check=False
    )


def test_clean_is_exit_code_0(environment: dict[str, str], event_id: int) -> None:
    """The table goes to stdout; nothing goes to stderr, and no bar is drawn into a file."""
    ended = onsale(environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1].startswith("clean: Redis and the record agree; 3 users")


def test_a_drift_is_exit_code_1(environment: dict[str, str], event_id: int, stores: Stores) -> None:
    """The JSON names who lacks what, for all events or for one."""
    with redis.Redis.from_url(stores.redis_url) as client:
        client.hdel(event_keys(0, event_id).users, "b")
    for arguments in (("--json",), (str(event_id), "--json")):
        ended = onsale(environment, *arguments)
        assert (ended.returncode, ended.stderr) == (1, "")
        assert json.loads(ended.stdout)["drifts"] == [
            {
                "event": event_id,
                "user": "b",
                "kind": "missing_in_redis",
                "redis": None,
                "record": "booked at seq 4",
            }
        ]


def test_what_cannot_be_told_is_exit_code_2(
    environment: dict[str, str], event_id: int, stores: Stores
) -> None:
    """A partition that stays closed is not compared, and says why."""
    with redis.Redis.from_url(stores.redis_url) as client:
        client.hset(partition_keys(0).meta, mapping={"open": "0", "reason": "told so"})
    ended = onsale(environment)
    assert ended.returncode == 2
    assert "partition 0 cannot be compared: it stays closed: told so." in ended.stdout


@pytest.mark.parametrize(
    ("changed", "arguments", "says"),
    [
        ({}, ("98", "99"), "neither store has event 98, 99"),
        ({"REDIS_URL": "redis://:hush@127.0.0.1:1/0"}, (), "cannot tell: Redis: "),
        (
            {"DATABASE_URL": "postgresql://onsale:hush@127.0.0.1:1/onsale"},
            (),
            "cannot tell: PostgreSQL: ",
        ),
        ({"REDIS_URL": "", "DATABASE_URL": ""}, (), "no service runs on "),
        ({"PORT": "x"}, (), "PORT: "),
    ],
)
@pytest.mark.usefixtures("event_id")
def test_what_keeps_it_from_looking_is_one_line_and_exit_code_2(
    environment: dict[str, str], changed: dict[str, str], arguments: tuple[str, ...], says: str
) -> None:
    """Never taken for a drift; without a traceback and without a password."""
    ended = onsale({**environment, **changed}, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"onsale: {says}")
    assert len(ended.stderr.splitlines()) == 1
    assert "hush" not in ended.stderr


def test_a_record_without_tables_is_one_line(environment: dict[str, str], stores: Stores) -> None:
    """It says what to do."""
    url = stores.postgresql_url.partition("?")
    bare = f"{url[0].rpartition('/')[0]}/postgres?{url[2]}"
    ended = onsale({**environment, "DATABASE_URL": bare})
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)
    assert "onsale migrate up" in ended.stderr


@pytest.mark.usefixtures("event_id")
def test_a_failure_of_its_own_is_no_drift(environment: dict[str, str]) -> None:
    """Python ends a traceback with 1; here that would say that the stores differ."""
    broken = "import service.reconcile_report as r, service.cli as c; r.reconcile = None; c.main()"
    ended = onsale(environment, "reconcile", program=(sys.executable, "-c", broken))
    assert ended.returncode == 2
    assert "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("onsale: cannot tell: ")


@pytest.mark.usefixtures("event_id")
def test_what_nobody_can_read_is_no_drift(environment: dict[str, str]) -> None:
    """A disk that is full under the output ends with 2: it said nothing of the stores."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            ONSALE, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 2
    assert ended.stderr == "onsale: cannot tell: No space left on device\n"


@pytest.mark.usefixtures("event_id")
def test_a_bar_is_drawn_on_a_terminal(environment: dict[str, str]) -> None:
    """On stderr, and taken away at the end; stdout stays what it is."""
    ours, theirs = pty.openpty()
    ended = subprocess.run(
        (*ONSALE, "--json"),
        env={**environment, "TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
    )
    os.close(theirs)
    drawn = os.read(ours, 65_536).decode()
    os.close(ours)
    assert "comparing" in drawn
    assert json.loads(ended.stdout)["verdict"] == "clean"


def test_the_service_can_show_what_it_came_to(
    environment: dict[str, str], event_id: int, tmp_path: Path
) -> None:
    """Left where the roles count, once a role counts there; of a comparison of all events only."""
    directory = tmp_path / "data" / "run" / "metrics"
    onsale(environment)
    assert not directory.exists()
    directory.mkdir(parents=True)
    onsale(environment, str(event_id))
    assert not list(directory.glob("*reconcile*.db"))
    onsale(environment)
    assert list(directory.glob("*reconcile*.db"))
