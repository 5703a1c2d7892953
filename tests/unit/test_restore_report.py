"""What `onsale restore` foresees, prints, and ends with."""

from datetime import UTC, datetime

import pytest

from service.backup_files import BackedUpPartition, BackedUpTable, Manifest
from service.handshake import Opened, StaysClosed
from service.lineage import NOWHERE, Epoch, Lineage, Position
from service.restore import Restored
from service.restore_plan import PartitionPlan, Plan, expected
from service.restore_report import as_json, render
from service.restoring import Result

AT = Position(2, 120)
BACKUP = BackedUpPartition(partition=0, epoch=2, seq=120, head="ab" * 32, highest_epoch=2)
MADE = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
MANIFEST = Manifest(
    format=1,
    onsale="0.1.0",
    schema_=["20261122100000"],
    began=MADE,
    ended=MADE,
    partitions=[BACKUP],
    sequences={"events.id": 7},
    tables=[BackedUpTable(table="journal", columns=["seq"], rows=120, bytes=4_096, sha256="")],
)
LINEAGE = Lineage([Epoch(1, 0, 0, "begin"), Epoch(2, 100, 1, "continue")])


@pytest.mark.parametrize(
    ("recorded", "last", "outbox_from", "says"),
    [
        (NOWHERE, NOWHERE, 0, "Redis is rebuilt at 2-120"),
        (AT, AT, 1, "nothing was changed since"),
        (AT, NOWHERE, 0, "Redis is rebuilt at 2-120"),
        (Position(2, 140), AT, 1, "goes on at 2-120: what came after 2-120 is gone; where"),
        (Position(2, 140), Position(2, 110), 1, "Redis is rebuilt at 2-120: what came after 2-120"),
        (Position(2, 140), Position(2, 141), 120, "changes 121 to 141 are replayed"),
        (Position(2, 140), Position(2, 141), 121, "stays closed: the outbox begins behind 2-120"),
        (Position(2, 140), Position(2, 141), 131, "stays closed: changes 121 to 130 are neither"),
        (Position(2, 140), Position(2, 141), 0, "stays closed: changes 121 to 141 are neither"),
    ],
)
def test_what_is_expected(recorded: Position, last: Position, outbox_from: int, says: str) -> None:
    """Where the backup, the record, Redis and its outbox stand says what a comparison comes to."""
    assert says in expected(AT, recorded, last, outbox_from, LINEAGE)


def test_a_backup_of_another_life() -> None:
    """The record that is there went on from an earlier change than the backup's."""
    other = Lineage([Epoch(1, 0, 0, "begin"), Epoch(2, 100, 1, "rebuild"), Epoch(3, 110, 2, "?")])
    assert "2-120 is not on the lineage" in expected(
        AT, Position(3, 140), Position(3, 140), 1, other
    )


def restored(*results: Result, audit: str = "holds", reconcile: str = "clean") -> Restored:
    """Return a restore of one partition, or its plan."""
    at = Position(2, 141)
    partition = PartitionPlan(0, AT, Position(2, 140), at, at, 80, "it is replayed")
    plan = Plan(MANIFEST, [partition], has_schema=True)
    return Restored(plan, dict(enumerate(results)), audit, reconcile)


@pytest.mark.parametrize(
    ("done", "code", "says"),
    [
        (restored(), 0, "Nothing was changed; --apply restores."),
        (restored(Opened(3, "replay")), 0, "restored: audit holds, reconcile clean."),
        (restored(Opened(3, ""), reconcile="frozen"), 0, "restored: audit holds, reconcile frozen"),
        (restored(Opened(3, "replay"), reconcile="drift"), 1, "look at what stands above"),
        (restored(Opened(3, "replay"), audit="violated"), 1, "audit violated"),
        (restored(Opened(3, "replay"), audit="cannot_tell"), 2, "audit cannot tell"),
        (restored(StaysClosed("it went back"), reconcile=""), 1, "stays closed: it went back."),
        (restored("Redis is away", reconcile=""), 2, "can be compared: Redis is away."),
    ],
)
def test_what_it_ends_with(done: Restored, code: int, says: str) -> None:
    """The exit code says how it went, the last lines why."""
    assert done.exit_code == code
    assert says in render(done)
    assert as_json(done)["exitCode"] == code


def test_a_database_without_tables() -> None:
    """The plan says that they are made."""
    plan = Plan(MANIFEST, [], has_schema=False)
    assert "The database has no tables; they are made first." in render(Restored(plan))
