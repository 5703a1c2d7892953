"""A backup of a sale that goes on: what was answered before it began is in it, of one moment."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from service.backing_up import CannotBackUpError
from service.backup_files import BackupRefusedError, read_manifest
from service.engine import Engine
from service.errors import Problem
from service.keys import partition_keys
from service.ledger import TABLES
from service.record_tables import RecordTables
from service.redis_store import RedisStore
from service.settings import Settings
from tests.conftest import Client, Record, Stores
from tests.integration.backups import booked, elsewhere, is_sound, made, modes, restored, until
from tests.integration.conftest import confirm_loss, eventually, writing
from tests.integration.restoring import RecordCopies, caught_up, crowding

META, _, OUTBOX = partition_keys(0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the backup goes; it does not exist yet."""
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "backup"


@pytest.fixture
async def event_id(engine: Engine, settings: Settings, stores: Stores,
                   redis_store: RedisStore) -> int:  # fmt: skip
    """Two of three tickets sold, on record; no writer runs any more."""
    async with writing(settings):
        event = await engine.initialize("Event Name", 3)
        for user in ("1", "2"):
            await engine.book(event.event_id, user)
        await caught_up(RecordCopies(stores), redis_store)
    return event.event_id


async def test_every_table_of_the_record_is_in_it(record: Record) -> None:
    """A migration that makes a table puts it into TABLES, or its rows would not be backed up."""
    rows = await record.fetch(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'm')"
        " AND relnamespace = current_schema()::regnamespace"
    )
    assert {row["relname"] for row in rows} == {*TABLES, "schema_migrations"}


@pytest.mark.parametrize("seed", range(3))
async def test_a_backup_under_load(
    settings: Settings, stores: Stores, engine: Engine, directory: Path, seed: int
) -> None:
    """All that was answered before is in it; nobody is refused meanwhile; its copy is sound."""
    event = await engine.initialize("Event Name", 40)
    async with writing(settings), crowding(engine, event.event_id) as crowd:
        await crowd.grow(20 + 37 * seed)
        answered, gone = {*crowd.booked}, {*crowd.cancelled}
        await made(stores, directory)
        await crowd.grow(5)
        assert crowd.refusals == set()
    copy = await elsewhere(stores)
    assert (await restored(copy, directory)).exit_code == 0
    await is_sound(copy)
    states = await booked(copy)
    assert states.keys() >= answered
    assert {states[user] for user in gone} <= {"cancelled", "left_waiting_list"}


async def test_all_tables_are_of_one_moment(
    settings: Settings, stores: Stores, engine: Engine, redis_store: RedisStore, event_id: int,
    directory: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What goes on record while one table is copied is in none that come after it."""
    hand_out = RecordTables.hand_out

    async def slowly(self: RecordTables, table: str, *rest: Any) -> int:
        rows = await hand_out(self, table, *rest)
        await engine.book(event_id, f"during-{table}")
        await caught_up(RecordCopies(stores), redis_store)
        return rows

    monkeypatch.setattr(RecordTables, "hand_out", slowly)
    async with writing(settings):
        manifest = await made(stores, directory)
    assert {table.table: table.rows for table in manifest.tables}["journal"] == 4
    copy = await elsewhere(stores)
    assert (await restored(copy, directory)).exit_code == 0
    assert await booked(copy) == {"1": "booked", "2": "booked"}


async def test_a_record_that_is_being_replaced_is_waited_for(
    stores: Stores, event_id: int, directory: Path, record: Record
) -> None:
    """A snapshot from before the tables were emptied would find them empty, and not fail."""
    journal = await record.fetch("SELECT * FROM journal")
    async with record.transaction():
        await record.execute("TRUNCATE journal")
        backup = asyncio.create_task(made(stores, directory))
        await asyncio.sleep(0.3)
        await record.executemany(
            "INSERT INTO journal VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            [tuple(row) for row in journal],
        )
    manifest = await backup
    assert {table.table: table.rows for table in manifest.tables}["journal"] == len(journal)


async def test_a_writer_that_has_stopped(
    stores: Stores, engine: Engine, event_id: int, directory: Path
) -> None:
    """What is answered and not on record is waited for, so long and no longer; nothing is left."""
    await engine.book(event_id, "3")
    says = r"up to 1-5, the record ends at 1-4 after 0\.2 s"
    async with asyncio.timeout(30):
        with pytest.raises(CannotBackUpError, match=says):
            await made(stores, directory, patience_s=0.2)
    assert [*directory.parent.iterdir()] == []


async def test_a_writer_that_is_behind_is_waited_for(
    settings: Settings, stores: Stores, engine: Engine, event_id: int, directory: Path
) -> None:
    """And no longer than for what was answered before the backup began."""
    await engine.book(event_id, "3")
    backup = asyncio.create_task(made(stores, directory))
    await asyncio.sleep(0.2)
    assert not backup.done()
    async with writing(settings):
        assert (await backup).partitions[0].seq == 5


async def test_a_sale_that_is_closed(
    stores: Stores, event_id: int, directory: Path, valkey: Client
) -> None:
    """What Redis has answered cannot be told from it."""
    await valkey.hset(META, mapping={"open": "0", "reason": "somebody has to look"})
    with pytest.raises(CannotBackUpError, match="partition 0 is closed: somebody has to look"):
        await made(stores, directory)
    await valkey.flushall()
    with pytest.raises(CannotBackUpError, match="partition 0 is closed: Redis is empty"):
        await made(stores, directory)


async def test_an_answer_that_was_lost_meanwhile(
    settings: Settings, stores: Stores, engine: Engine, event_id: int, directory: Path,
    valkey: Client,
) -> None:  # fmt: skip
    """Redis was wiped while the record was waited for: a backup without the answer is none."""
    await engine.book(event_id, "3")
    backup = asyncio.create_task(made(stores, directory))
    await asyncio.sleep(0.2)
    await valkey.flushall()
    with pytest.raises(Problem, match="answers were lost: changes 1-5 to 1-5"):
        await engine.book(event_id, "3")
    await confirm_loss(settings)
    async with writing(settings):
        await eventually(lambda: _is_booked(engine, event_id, "4"))
        await eventually(lambda: _is_booked(engine, event_id, "5"))
        with pytest.raises(CannotBackUpError, match=r"1-5 is not on record any more|closed: "):
            await backup
    assert [*directory.parent.iterdir()] == []


async def test_a_record_that_was_never_begun(stores: Stores, directory: Path) -> None:
    """There is nothing in it that could be restored."""
    with pytest.raises(CannotBackUpError, match="never begun"):
        await made(stores, directory)


async def _is_booked(engine: Engine, event_id: int, user: str) -> bool:
    """Whether a booking is answered by now, at the table or in the line."""
    try:
        await engine.book(event_id, user)
    except Problem:
        return False
    return True


@pytest.mark.usefixtures("event_id")
class TestDirectory:
    """What lies where, and who can read it."""

    async def test_only_its_owner_can_read_it(self, stores: Stores, directory: Path) -> None:
        """It holds who bought what."""
        await made(stores, directory)
        files = {"manifest.json", *(f"{table}.gz" for table in TABLES)}
        assert modes(directory) == (0o700, dict.fromkeys(files, 0o600))

    async def test_an_existing_directory_is_refused(self, stores: Stores, directory: Path) -> None:
        """An empty one too; nothing in it is touched."""
        mine = directory.parent
        (mine / "mine").write_text("mine")
        with pytest.raises(BackupRefusedError, match="exists"):
            await made(stores, mine)
        assert [*modes(mine)[1]] == ["mine"]

    async def test_a_directory_that_cannot_be_made_is_refused(
        self, stores: Stores, tmp_path: Path
    ) -> None:
        """Before anybody is asked anything."""
        with pytest.raises(BackupRefusedError, match="No such file or directory"):
            await made(stores, tmp_path / "nowhere" / "backup")

    async def test_what_a_killed_backup_left_is_replaced(
        self, stores: Stores, directory: Path
    ) -> None:
        """It never had the name of a whole one."""
        partial = directory.with_name("backup.partial")
        partial.mkdir()
        (partial / "journal.gz").write_bytes(b"half")
        await made(stores, directory)
        assert not partial.exists()
        assert read_manifest(directory).partitions[0].seq == 4

    async def test_two_backups_at_once_do_not_share_a_directory(
        self, stores: Stores, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second is refused, and the first is whole."""
        copying = asyncio.Event()
        going_on = asyncio.Event()
        hand_out = RecordTables.hand_out

        async def held(self: RecordTables, *arguments: Any) -> int:
            copying.set()
            await going_on.wait()
            return await hand_out(self, *arguments)

        monkeypatch.setattr(RecordTables, "hand_out", held)
        first = asyncio.create_task(made(stores, directory))
        await until(copying.is_set)
        async with asyncio.timeout(30):
            with pytest.raises(BackupRefusedError, match="another backup writes"):
                await made(stores, directory)
        going_on.set()
        await first
        assert read_manifest(directory).partitions[0].seq == 4

    async def test_nothing_is_left_where_the_record_goes_away(
        self, stores: Stores, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the directory nor a part of it."""

        async def lost(*_: Any) -> int:
            raise ConnectionResetError

        monkeypatch.setattr(RecordTables, "hand_out", lost)
        with pytest.raises(ConnectionResetError):
            await made(stores, directory)
        assert [*directory.parent.iterdir()] == []
