"""`onsale deadletters` as an operator runs it: exit codes, and the words that the runbook shows."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.app import Worker
from service.engine import Engine
from service.errors import Problem
from service.settings import Settings
from tests.conftest import Record, Stores
from tests.integration.conftest import eventually, writing

FORBID = "ALTER TABLE bookings ADD CONSTRAINT no_vip CHECK (user_id <> 'vip')"
ALLOW = "ALTER TABLE bookings DROP CONSTRAINT no_vip"


class Operator:
    """Runs the command on this test's stores, as `onsale deadletters …`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end, while the sale goes on."""
        command = (sys.executable, "-m", "service", "deadletters", *arguments)
        return await asyncio.to_thread(
            subprocess.run,
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    async def ask(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run it with --json; return the exit code and what it prints."""
        ended = await self.run(*arguments, "--json")
        printed = json.loads(ended.stdout)
        assert printed["exitCode"] == ended.returncode, ended.stderr
        return ended.returncode, printed


@pytest.fixture
def operator(stores: Stores, tmp_path: Path) -> Operator:
    """An operator of a deployment of two partitions, whose own settings know nothing of that."""
    environment = {**os.environ, **stores.environment, "ONSALE_DATA_DIR": str(tmp_path / "data")}
    environment.pop("ONSALE_PARTITIONS", None)
    return Operator(environment)


@pytest.fixture
async def sold(stores: Stores, record: Record) -> AsyncIterator[tuple[Engine, int]]:
    """A sale of two partitions with its writer, and an event of it; vip cannot be recorded."""
    settings = Settings(
        redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=2
    )
    async with Worker(settings) as engine, writing(settings):
        event = await engine.initialize("Event Name", 2)
        await record.execute(FORBID)
        yield engine, event.event_id


async def test_from_list_to_retry(
    operator: Operator, sold: tuple[Engine, int], record: Record
) -> None:
    """Nothing, a plan, the deed, the same again; a retry refused, planned and done."""
    engine, event_id = sold
    partition = str(event_id % 2)
    assert await operator.ask("list") == (
        0,
        {"exitCode": 0, "events": [], "standing": [], "unknown": []},
    )
    seq = str((await engine.book(event_id, "vip")).at.seq)
    await engine.book(event_id, "b")

    async def stands() -> bool:
        return (await operator.ask("list"))[0] == 1

    await eventually(stands)
    _, listed = await operator.ask("list")
    assert listed["standing"][0]["refused"][0]["user"] == "vip"
    ended = await operator.run("list")
    assert f"onsale deadletters move {partition} {seq} --apply" in ended.stdout
    code, said = await operator.ask("move", partition, str(int(seq) + 1), "--apply")
    assert (code, f"is change {seq}" in said["says"]) == (1, True)
    ended = await operator.run("move", partition, seq)
    assert ended.returncode == 1
    assert f"PostgreSQL refuses\n  change {seq}: booked, event {event_id}, user vip" in ended.stdout
    assert await record.fetchval("SELECT count(*) FROM dead_letters") == 0

    code, said = await operator.ask("move", partition, seq, "--apply")
    assert (code, said["done"], said["frozen"], said["epoch"]) == (0, True, [event_id], 2)
    assert (await operator.ask("move", partition, seq, "--apply"))[0] == 0
    with pytest.raises(Problem, match="frozen"):
        await engine.book(event_id, "c")

    code, said = await operator.ask("retry", str(event_id), "--apply")
    assert (code, said["done"], said["refused"]["seq"]) == (1, False, int(seq))
    await record.execute(ALLOW)
    assert (await operator.ask("retry", str(event_id)))[0] == 1
    ended = await operator.run("retry", str(event_id), "--apply")
    says = f"On record: 2 dead letters of event {event_id}, frozen no more."
    assert ended.returncode == 0
    assert ended.stdout == f"{says} The partition goes on in epoch 3.\n"
    assert (await engine.book(event_id, "c")).status == "waiting"
    code, said = await operator.ask("retry", str(event_id), "--apply")
    assert (code, said["done"], said["letters"], said["says"]) == (0, True, 0, "nothing to retry")
    ended = await operator.run("retry", str(event_id))
    says = f"Event {event_id} has no dead letters: there is nothing to retry.\n"
    assert (ended.returncode, ended.stdout) == (0, says)
    code, said = await operator.ask("retry", "99", "--apply")
    assert (code, said["says"]) == (1, "the record has no event 99")
    ended = await operator.run("list")
    assert (ended.returncode, ended.stdout) == (0, "No dead letters, and no writer stands.\n")


async def test_a_store_that_is_away_is_exit_code_2(operator: Operator) -> None:
    """It is never taken for a finding, nor for a deed."""
    operator.environment["DATABASE_URL"] = "postgresql://onsale@127.0.0.1:1/onsale"
    for arguments in (("list",), ("move", "0", "1", "--apply"), ("retry", "1", "--apply")):
        ended = await operator.run(*arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("onsale: cannot tell: PostgreSQL")
        assert await operator.ask(*arguments) == (2, {"exitCode": 2})
