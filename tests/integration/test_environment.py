"""The environment of the person who starts Onsale, and what of it reaches its processes."""

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.running import Running

pytestmark = pytest.mark.timeout(180)

MARKS = {"ONSALE_DATA_DIR", "ONSALE_ROLE", "ONSALE_SUPERVISED_IN"}
"""By these a later start recognises what an earlier one left."""


class Decoy(socketserver.ThreadingTCPServer):
    """Another server, where each hostile variable points; it hangs up and counts."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.callers = 0

    def process_request(self, request: object, client_address: object) -> None:
        self.callers += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def decoy() -> Iterator[Decoy]:
    """A server that must stay untouched."""
    with Decoy() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def hostile(base: Path, port: int) -> dict[str, str]:
    """Return every variable by which a start went wrong, or by which one could, all at once."""
    home, temporary = base / "home", base / "a,b"
    (home / ".postgresql").mkdir(parents=True)
    (home / ".postgresql" / "postgresql.crt").write_text("no certificate")
    (home / ".pg_service.conf").write_text(f"[decoy]\nhost=127.0.0.1\nport={port}\n")
    (home / ".pgpass").write_text("*:*:*:*:wrong\n")
    (home / ".pgpass").chmod(0o600)
    temporary.mkdir()
    decoy = f"127.0.0.1:{port}"
    return {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        **dict.fromkeys(("PGHOST", "PGHOSTADDR"), "127.0.0.1"),
        "PGPORT": str(port),
        "PGUSER": "nobody",
        "PGPASSWORD": "wrong",
        "PGPASSFILE": str(home / ".pgpass"),
        "PGDATABASE": "elsewhere",
        "PGDATA": str(base / "elsewhere"),
        "PGSERVICE": "decoy",
        "PGSERVICEFILE": str(home / ".pg_service.conf"),
        "PGOPTIONS": "-c search_path=foo -c fsync=off",
        "PGSSLMODE": "verify-full",
        "PGSSLNEGOTIATION": "direct",
        "PGSSLROOTCERT": "/nowhere/root.crt",
        "PGSSLCERT": "/nowhere/client.crt",
        "PGSSLKEY": "/nowhere/client.key",
        "PGSSLCRL": "/nowhere/crl",
        "PGSSLMINPROTOCOLVERSION": "TLSv9",
        "PGREQUIRESSL": "1",
        "PGREQUIREAUTH": "gss",
        "PGCHANNELBINDING": "require",
        "PGGSSENCMODE": "require",
        "PGGSSLIB": "none",
        "PGKRBSRVNAME": "none",
        "PGTARGETSESSIONATTRS": "standby",
        "PGLOADBALANCEHOSTS": "random",
        "PGCLIENTENCODING": "LATIN1",
        "PGDATESTYLE": "German, DMY",
        "PGTZ": "Asia/Kathmandu",
        "PGAPPNAME": "somebody",
        "PGCONNECT_TIMEOUT": "0",
        "PGGEQO": "off",
        "TZ": "Asia/Kathmandu",
        "LANG": "tr_TR.UTF-8",
        **dict.fromkeys(("LC_ALL", "LC_COLLATE", "LC_MESSAGES", "LC_NUMERIC"), "xx_YY.ISO-8859-9"),
        "LD_LIBRARY_PATH": str(base),
        "LD_BIND_NOW": "1",
        "MALLOC_ARENA_MAX": "1",
        "NOTIFY_SOCKET": str(base / "notify"),
        "REDISCLI_AUTH": "wrong",
        "VALKEYCLI_AUTH": "wrong",
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(port),
        **{f"DBMATE_{name}": f"http://{decoy}" for name in ("URL", "DATABASE_URL")},
        "DBMATE_MIGRATIONS_TABLE": "elsewhere.migrations",
        "DBMATE_MIGRATIONS_DIR": "/nowhere",
        "DBMATE_WAIT": "true",
        "DBMATE_STRICT": "true",
        **{f"{scheme}_proxy": f"http://{decoy}" for scheme in ("http", "https", "all")},
    }


@pytest.fixture(scope="module")
def running(decoy: Decoy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with stores of its own, started in that environment."""
    base = tmp_path_factory.mktemp("hostile")
    port = decoy.server_address[1]
    service = Running(base / "data", **hostile(base, port))
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.mark.parametrize("store", ["valkey", "postgresql"])
def test_a_store_inherits_nothing(running: Running, store: str) -> None:
    """Its environment is built: each name in it is one that Onsale put there."""
    found = psutil.Process(running.pid(store)).environ()
    assert found.keys() == {"PATH", "LC_ALL", "TZ"} | MARKS
    assert (found["LC_ALL"], found["TZ"]) == ("C", "UTC")


@pytest.mark.asyncio
async def test_the_migration_ran_where_the_service_connects(running: Running) -> None:
    """Every table is in the schema public of the service's own database, and no variable counts."""
    connection = await asyncpg.connect(running.urls["postgresql"])
    try:
        tables = await connection.fetch("SELECT schemaname, tablename FROM pg_tables")
        made = {tuple(row) for row in tables}
        assert {("public", "journal"), ("public", "schema_migrations")} <= made
        assert {schema for schema, _ in made} == {"public", "pg_catalog", "information_schema"}
        sessions = await connection.fetch(
            "SELECT application_name FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid()"
        )
        assert sessions
        assert all(row[0].startswith("onsale ") for row in sessions)
        shown = {
            name: await connection.fetchval(f"SHOW {name}")
            for name in ("TimeZone", "log_timezone", "lc_messages", "port", "fsync", "DateStyle")
        }
        assert shown == {
            "TimeZone": "UTC",
            "log_timezone": "UTC",
            "lc_messages": "C",
            "port": "5432",
            "fsync": "on",
            "DateStyle": "ISO, MDY",
        }
    finally:
        await connection.close()


def test_the_sockets_are_where_each_client_finds_them(running: Running) -> None:
    """A directory of temporary files with a comma in its name holds none: it would be a list."""
    assert "," not in running.urls["postgresql"] + running.urls["redis"]


def test_a_server_that_the_environment_names_is_not_asked(running: Running, decoy: Decoy) -> None:
    """The service sells, and nothing has connected to where each variable points."""
    assert "Ctrl-C" in running.screen
    assert decoy.callers == 0
