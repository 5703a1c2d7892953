"""A writer that is behind: load after load, each made ready while the one before is written."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service import ledger
from service.engine import Engine
from service.outbox import Change
from service.record import Application
from service.rows import Rows, chained, rows_of
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, writing
from tests.integration.test_writer import changed, check_record, is_recorded

PEOPLE = 13_000
"""Three full loads and more."""

CROWD = 16
"""So many come at once, for an entry or two."""


@pytest.fixture
async def event_id(engine: Engine) -> int:
    """Have many book, and some of them cancel, while no writer runs."""
    event = await engine.initialize("Event Name", PEOPLE // 2)
    for first in range(0, PEOPLE, CROWD):
        people = [str(person) for person in range(first, first + CROWD)]
        await asyncio.gather(*(engine.book(event.event_id, person) for person in people))
        await asyncio.gather(*(engine.cancel(event.event_id, person) for person in people[::8]))
    return event.event_id


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what was made ready of each commit: `good`, `nothing`, or for `another` head."""
    record = Application.record
    found: list[str] = []

    async def noted(
        self: Application,
        partition: int,
        changes: Sequence[Change],
        *,
        rows: Rows | None = None,
    ) -> Any:
        if rows is None:
            found.append("nothing")
        else:
            found.append("good" if rows.after == self.cursors[partition].head else "another")
        return await record(self, partition, changes, rows=rows)

    monkeypatch.setattr(Application, "record", noted)
    return found


async def test_all_of_a_backlog_comes_on_record_once(
    settings: Settings, event_id: int, record: Record, valkey: Client, recorded: list[str]
) -> None:
    """Journal, chain, bookings and counters are what Redis says; the rows had been made before."""
    async with writing(settings):
        await eventually(lambda: is_recorded(record, valkey))
    assert recorded[:3] == ["good"] * 3
    await check_record(record, valkey, event_id)


async def test_what_was_made_ready_dies_with_the_commit_before_it(
    settings: Settings,
    event_id: int,
    record: Record,
    valkey: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection that is lost in the second commit: what follows is read and made anew."""
    execute = Application.record
    commits = 0

    async def fails_once(self: Application, *arguments: Any, **rows: Any) -> Any:
        nonlocal commits
        commits += 1
        done = await execute(self, *arguments, **rows)
        if commits == 2:
            self.connection.terminate()
        return done

    monkeypatch.setattr(Application, "record", fails_once)
    async with writing(settings):
        await eventually(lambda: is_recorded(record, valkey))
    assert commits > 3
    await check_record(record, valkey, event_id)


async def test_rows_made_for_another_head_are_made_anew(
    settings: Settings, stores: Stores, engine: Engine, record: Record, valkey: Client
) -> None:
    """The chain leads on from the record's own head, whatever was made ready."""
    async with writing(settings):
        event_id = await changed(engine)
        await eventually(lambda: is_recorded(record, valkey))
    seq = await record.fetchval("SELECT seq FROM cursors")
    change = Change(seq + 1, 1, 1_750_000_000_000_000, "waiting", event_id, "late", None)
    other = b"o" * 32
    rows = rows_of(other, [change], chained(other, 0, [change]))
    connection = await ledger.connect(stores.postgresql_url, purpose="test")
    async with connection, connection.applying([0]) as application:
        head = application.cursors[0].head
        await application.record(0, [change], rows=rows)
    wanted = chained(head, 0, [change])[change.seq]
    assert await record.fetchval("SELECT head FROM cursors") == wanted
    assert await record.fetchval("SELECT hash FROM journal WHERE seq = $1", change.seq) == wanted
