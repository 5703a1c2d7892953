"""Migrations on a real PostgreSQL, with files of the test's own."""

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from service import migrations, supervisor
from service.migrations import (
    MigrationError,
    migrate_down,
    migrate_up,
    migration_status,
    new_migration,
)
from service.probes import applied_migrations
from service.resources import sql_directory
from service.rundir import RunDirectory
from tests.servers import Servers

pytestmark = pytest.mark.timeout(180)

FIRST = "-- migrate:up\nCREATE TABLE first ();\n-- migrate:down\nDROP TABLE first;\n"
SECOND = "-- migrate:up\nCREATE TABLE second ();\n-- migrate:down\nDROP TABLE second;\n"


@pytest.fixture
def url(servers: Servers, request: pytest.FixtureRequest) -> str:
    """Give a database of the test's own, which does not exist yet."""
    return servers.postgresql_url.replace("/onsale?", f"/{request.node.name[:60]}?")


@pytest.fixture
def sql(tmp_path: Path) -> Path:
    """Give a directory with two migrations."""
    (tmp_path / "20260101000000_first.sql").write_text(FIRST)
    (tmp_path / "20260102000000_second.sql").write_text(SECOND)
    return tmp_path


async def tables(url: str) -> set[str]:
    """Return the tables but dbmate's own."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    return {row["tablename"] for row in rows} - {"schema_migrations"}


@pytest.mark.asyncio
async def test_up_makes_the_database_and_applies_all(url: str, sql: Path) -> None:
    """Up on a missing database makes it; up again changes nothing."""
    assert "Applied: 20260102000000_second.sql" in await migrate_up(url, sql)
    assert await tables(url) == {"first", "second"}
    assert await migrate_up(url, sql) == ""


@pytest.mark.asyncio
async def test_the_search_path_of_a_database_is_the_same_for_both(url: str, sql: Path) -> None:
    """Where its schema is missing that is the whole message; where it is there, all goes there."""
    await migrate_up(url, sql)
    await migrate_down(url, sql)
    connection = await asyncpg.connect(url)
    await connection.execute("DROP TABLE schema_migrations, first")
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET search_path = tickets')
    with pytest.raises(MigrationError) as failure:
        await migrate_up(url, sql)
    assert str(failure.value).endswith(
        "no schema in the search_path of this user and database exists"
    )
    assert "WARNING" not in str(failure.value)
    await connection.execute("CREATE SCHEMA tickets")
    await migrate_up(url, sql)
    assert migrations.missing(await applied_migrations(url), sql) == []
    assert await tables(url) == set()
    await connection.close()


@pytest.mark.asyncio
async def test_down_takes_the_latest_back(url: str, sql: Path) -> None:
    """Each down takes one migration back, the latest first."""
    await migrate_up(url, sql)
    await migrate_down(url, sql)
    assert await tables(url) == {"first"}
    await migrate_down(url, sql)
    assert await tables(url) == set()


@pytest.mark.asyncio
async def test_status_tells_applied_from_pending(url: str, sql: Path) -> None:
    """Status lists both kinds."""
    await migrate_up(url, sql)
    await migrate_down(url, sql)
    status = await migration_status(url, sql)
    assert "[X] 20260101000000_first.sql" in status
    assert "[ ] 20260102000000_second.sql" in status


@pytest.mark.asyncio
async def test_several_may_migrate_a_missing_database_at_a_time(url: str, sql: Path) -> None:
    """Of four at once all succeed, one makes the database, and each migration is applied by one."""
    outputs = await asyncio.gather(*(migrate_up(url, sql) for _ in range(4)))
    assert "".join(outputs).count("Applied: ") == 2


@pytest.mark.asyncio
async def test_a_migration_that_ran_elsewhere_is_noticed(
    url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start ends when dbmate is content and the service's database lacks a migration."""
    await migrate_up(url, sql_directory())
    run = RunDirectory(data_dir)
    await supervisor.migrate(url, run)

    async def elsewhere(*_: object) -> str:
        return ""

    monkeypatch.setattr(migrations, "migrate_up", elsewhere)
    await migrate_down(url, sql_directory())
    with pytest.raises(MigrationError, match=r"\.sql is not in the database that the service"):
        await supervisor.migrate(url, run)
    empty = re.sub(r"/test\w+\?", "/postgres?", url)
    with pytest.raises(MigrationError, match=r"record\.sql is not in the database"):
        await supervisor.migrate(empty, run)


@pytest.mark.asyncio
async def test_the_service_s_own_go_down_and_up_again(url: str) -> None:
    """With rows that only the newer schema knows: an older release takes them for `continue`.

    What was lost and confirmed is forgotten; the row that stayed closed for it is there.
    """
    await migrate_up(url, sql_directory())
    connection = await asyncpg.connect(url)
    for epoch, verdict in ((2, "replayed"), (3, "replay")):
        await connection.execute(
            "INSERT INTO epochs VALUES (0, $1, $2, 4, 1, 'a test')", epoch, verdict
        )
    await connection.execute(
        "INSERT INTO epochs VALUES"
        " (0, 4, 'stay_closed', null, null, 'a test', now(), 3, 5, 9, now())"
    )
    replay = "[ ] 20261122160000_replay.sql"
    while replay not in await migration_status(url, sql_directory()):
        await migrate_down(url, sql_directory())
    rows = await connection.fetch("SELECT verdict FROM epochs ORDER BY epoch")
    assert [row["verdict"] for row in rows] == ["continue", "continue", "stay_closed"]
    await connection.close()
    assert "Applied: 20261122160000_replay.sql" in await migrate_up(url, sql_directory())
    before = await tables(url)
    while await tables(url):
        await migrate_down(url, sql_directory())
    await migrate_up(url, sql_directory())
    assert await tables(url) == before


@pytest.mark.asyncio
async def test_dead_letters_are_not_dropped(url: str) -> None:
    """Going down is refused as long as there are any: the chain of hashes runs through them."""
    await migrate_up(url, sql_directory())
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO dead_letters VALUES (0, 1, 1, now(), 'booked', 1, 'a', NULL, '', 'a test')"
    )

    async def go_down() -> None:
        while "dead_letters" in await tables(url):
            await migrate_down(url, sql_directory())

    with pytest.raises(MigrationError, match="onsale deadletters retry each event first"):
        await go_down()
    await connection.execute("DELETE FROM dead_letters")
    await go_down()
    await connection.close()


@pytest.mark.asyncio
async def test_a_failing_migration_says_why_and_leaves_nothing(url: str, sql: Path) -> None:
    """PostgreSQL's own words reach the operator, and the file is rolled back."""
    third = "-- migrate:up\nCREATE TABLE third (); SELECT no;\n-- migrate:down\n"
    (sql / "20260103000000_third.sql").write_text(third)
    with pytest.raises(MigrationError, match='column "no" does not exist'):
        await migrate_up(url, sql)
    assert await tables(url) == {"first", "second"}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "broken",
    [
        "postgresql://onsale:top%20secret@127.0.0.1:1/onsale",
        "postgresql://onsale:top secret@127.0.0.1:1/onsale",
        "postgresql://onsale:top%zzsecret@127.0.0.1:1/onsale",
        "postgresql://onsale:topsecret@127.0.0.1:port/onsale",
    ],
)
async def test_a_password_is_never_printed(broken: str, sql: Path) -> None:
    """Neither a server that is away nor a URL that cannot be parsed brings the password out."""
    with pytest.raises(MigrationError) as failure:
        await migrate_up(broken, sql)
    assert "secret" not in str(failure.value)


def test_new_writes_an_empty_migration(tmp_path: Path) -> None:
    """The file has both halves, and a name of dbmate's form."""
    asyncio.run(new_migration("add_holds", tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("_add_holds.sql")
    assert "-- migrate:up" in path.read_text()
    assert "-- migrate:down" in path.read_text()


@pytest.mark.parametrize("name", ["", "../up", "Has Spaces", "-n"])
def test_new_refuses_a_name_that_is_a_path(name: str, tmp_path: Path) -> None:
    """A name cannot lead out of the directory or become an option."""
    with pytest.raises(MigrationError, match="no name for a migration"):
        asyncio.run(new_migration(name, tmp_path))
    assert list(tmp_path.iterdir()) == []
