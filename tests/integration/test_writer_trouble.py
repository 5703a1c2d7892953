"""What goes wrong around the writer: told apart from refused changes, and overcome by itself."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from service import app, sessions
from service.app import make_writer
from service.engine import Engine
from service.handshake import Handshake, Opened
from service.ledger import connect
from service.lingering import LOAD_CHANGES
from service.metrics import Metrics
from service.redis_store import RedisStore
from service.settings import Settings
from service.writer import Writer
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import WAIT_S, eventually, writing
from tests.integration.records import forge
from tests.proxy import Proxy

STOPPED = "THE WRITER HAS STOPPED"


async def opened(engine: Engine, tickets: int = 3) -> int:
    """Open an event; return its id."""
    return (await engine.initialize("Event Name", tickets)).event_id


async def is_recorded(record: Record, user: str) -> bool:
    """Whether a user's booking is on record."""
    return bool(await record.fetchval("SELECT count(*) FROM bookings WHERE user_id = $1", user))


def said(caplog: pytest.LogCaptureFixture, what: str) -> Callable[[], Any]:
    """Return a condition: the log says so by now."""

    async def is_said() -> bool:
        return what in caplog.text

    return is_said


async def raise_on_bookings(record: Record, sqlstate: str) -> None:
    """Have the server refuse every row of the journal about somebody, with this SQLSTATE."""
    await record.execute(
        "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION 'made by a test' USING ERRCODE = '{sqlstate}'; END $$;"
        "CREATE TRIGGER trouble BEFORE INSERT ON journal FOR EACH ROW"
        " WHEN (NEW.user_id IS NOT NULL) EXECUTE FUNCTION trouble()"
    )


async def backend(record: Record) -> int:
    """Return the pid of the writer's session."""
    found = await record.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'onsale writer'"
    )
    return int(found or 0)


class TestTransient:
    """Tried again for ever, on a fresh connection; never taken for a refused change."""

    @pytest.mark.parametrize(
        "sqlstate", ["08006", "25006", "40001", "40P01", "42501", "53100", "57014", "P0001"]
    )
    async def test_what_is_not_about_the_change_is_tried_again(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        caplog: pytest.LogCaptureFixture,
        sqlstate: str,
    ) -> None:
        """By class, as a real server raises it: the partition does not stop, and goes on after."""
        async with writing(settings):
            event_id = await opened(engine)
            await raise_on_bookings(record, sqlstate)
            await engine.book(event_id, "a")
            await eventually(said(caplog, "cannot write now"))
            first = await backend(record)

            async def afresh() -> bool:
                return await backend(record) not in (0, first)

            await eventually(afresh)
            await record.execute("DROP TRIGGER trouble ON journal")
            await eventually(lambda: is_recorded(record, "a"))
        assert STOPPED not in caplog.text
        lasting = sqlstate in ("25006", "42501", "P0001")
        levels = {r.levelname for r in caplog.records if "cannot write now" in r.getMessage()}
        assert levels == {"ERROR" if lasting else "WARNING"}

    @pytest.mark.parametrize("sqlstate", ["22003", "23514"])
    async def test_what_is_about_the_change_stops_the_partition(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        caplog: pytest.LogCaptureFixture,
        sqlstate: str,
    ) -> None:
        """By class again, so that neither is mistaken for the other."""
        async with writing(settings):
            event_id = await opened(engine)
            await raise_on_bookings(record, sqlstate)
            await engine.book(event_id, "a")
            await eventually(said(caplog, STOPPED))
        assert "cannot write now" not in caplog.text

    async def test_a_missing_table_is_waited_for(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """42P01 of the server's own."""
        async with writing(settings):
            event_id = await opened(engine)
            await record.execute("ALTER TABLE bookings RENAME TO elsewhere")
            await engine.book(event_id, "a")
            await eventually(said(caplog, "UndefinedTableError"))
            await record.execute("ALTER TABLE elsewhere RENAME TO bookings")
            await eventually(lambda: is_recorded(record, "a"))
        assert STOPPED not in caplog.text

    async def test_a_record_that_can_only_be_read_is_waited_for(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """25006 of the server's own, as a standby says it."""
        name = await record.fetchval("SELECT current_database()")
        async with writing(settings):
            event_id = await opened(engine)
            await record.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
            await record.execute("SELECT pg_terminate_backend($1)", await backend(record))
            await engine.book(event_id, "a")
            await eventually(said(caplog, "ReadOnlySQLTransactionError"))
            await record.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
            await eventually(lambda: is_recorded(record, "a"))
        assert STOPPED not in caplog.text

    @pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
    async def test_a_statement_that_is_cancelled_is_repeated(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        caplog: pytest.LogCaptureFixture,
        how: str,
    ) -> None:
        """57014, as a statement time-out says it, and 57P01: in the middle of the transaction."""
        async with writing(settings):
            event_id = await opened(engine)
            async with record.transaction():
                await record.execute("LOCK TABLE bookings IN SHARE MODE")
                await engine.book(event_id, "a")

                async def waits() -> bool:
                    return bool(
                        await record.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
                    )

                await eventually(waits)
                await record.execute(f"SELECT {how}($1)", await backend(record))
                await eventually(said(caplog, "cannot write now"))
            await eventually(lambda: is_recorded(record, "a"))
        assert await record.fetchval("SELECT count(*) FROM journal WHERE user_id = 'a'") == 1
        assert STOPPED not in caplog.text

    @pytest.mark.parametrize("statement", [b"BEGIN;", b"COMMIT;"])
    async def test_a_connection_lost_inside_the_transaction_repeats_nothing(
        self, stores: Stores, engine: Engine, record: Record, statement: bytes
    ) -> None:
        """Class 08: also where the commit went through and its answer did not come back."""
        async with proxied_postgresql(stores.postgresql_url) as (proxy, url):
            settings = Settings(redis_url=stores.redis_url, database_url=url)
            async with writing(settings):
                event_id = await opened(engine)
                await engine.book(event_id, "a")
                await eventually(lambda: is_recorded(record, "a"))
                proxy.lose_the_next_reply_to(statement)
                await engine.book(event_id, "b")
                await eventually(lambda: is_recorded(record, "b"))
        assert proxy.lost == 1
        rows = await record.fetch("SELECT seq FROM journal ORDER BY seq")
        assert [row["seq"] for row in rows] == [1, 2, 3, 4]

    async def test_a_server_that_answers_nothing_is_given_up(
        self,
        stores: Stores,
        engine: Engine,
        record: Record,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """A path that swallows everything: `command_timeout`, then a fresh connection."""
        monkeypatch.setattr(sessions, "COMMAND_S", 1.0)
        async with proxied_postgresql(stores.postgresql_url) as (proxy, url):
            settings = Settings(redis_url=stores.redis_url, database_url=url)
            async with writing(settings):
                event_id = await opened(engine)
                proxy.hold()
                await engine.book(event_id, "a")
                await eventually(said(caplog, "cannot write now"))
                proxy.release()
                await eventually(lambda: is_recorded(record, "a"))
        assert STOPPED not in caplog.text


@contextlib.asynccontextmanager
async def proxied_postgresql(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Put a proxy in front of a PostgreSQL on a unix socket; yield it and its URL."""
    (directory,) = parse_qs(urlsplit(url).query)["host"]
    proxy = Proxy(f"{directory}/.s.PGSQL.5432")
    with tempfile.TemporaryDirectory(prefix="onsale-proxy-") as front:
        server = await asyncio.start_unix_server(proxy.serve, Path(front) / ".s.PGSQL.5432")
        try:
            yield proxy, url.replace(directory, front)
        finally:
            proxy.release()
            proxy.hang_up()
            server.close()


class TestStopped:
    """A partition that stands goes on once the cause is gone, without anybody's restart."""

    async def test_it_goes_on_when_the_cause_is_gone(
        self,
        settings: Settings,
        engine: Engine,
        redis_store: RedisStore,
        record: Record,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is said once, the gauge is 1 meanwhile and 0 after, and nothing is out of order."""
        metrics = Metrics()
        gauge = metrics.writer_stopped.labels("0")
        writer = make_writer(settings, redis_store, metrics)
        running = asyncio.create_task(writer.run())
        event_id = await opened(engine)
        await record.execute("ALTER TABLE bookings ADD CONSTRAINT no_b CHECK (user_id <> 'b')")
        for user in ("a", "b", "c"):
            await engine.book(event_id, user)
        await eventually(said(caplog, STOPPED))
        assert gauge._value.get() == 1
        stops = 0
        stop = writer._stopped.stop

        def counting(*arguments: Any) -> None:
            nonlocal stops
            stop(*arguments)
            stops += 1

        monkeypatch.setattr(writer._stopped, "stop", counting)

        async def tried_again() -> bool:
            return stops >= 1

        await eventually(tried_again)
        assert caplog.text.count(STOPPED) == 1
        await record.execute("ALTER TABLE bookings DROP CONSTRAINT no_b")
        await eventually(lambda: is_recorded(record, "c"))
        await eventually(said(caplog, "the writer goes on"))
        assert gauge._value.get() == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        rows = await record.fetch("SELECT user_id FROM bookings ORDER BY seq")
        assert [row["user_id"] for row in rows] == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("change", "at"),
        [("booked {} a", str(2**62)), ('opened 99 - {{"name":"\udcff","totalTickets":1}}', "1")],
        ids=["a time beyond all calendars", "a name that is no text"],
    )
    @pytest.mark.parametrize("before", [0, 2], ids=["alone", "behind others"])
    @pytest.mark.parametrize("load_changes", [1, LOAD_CHANGES], ids=["full loads", "small loads"])
    async def test_an_entry_that_cannot_be_put_into_a_statement_stops_the_partition(
        self,
        settings: Settings,
        engine: Engine,
        record: Record,
        valkey: Client,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        change: str,
        at: str,
        before: int,
        load_changes: int,
    ) -> None:
        """It never reaches the server, and does not end the writer of all partitions either."""
        monkeypatch.setattr(app, "Writer", partial(Writer, load_changes=load_changes))
        async with writing(settings):
            event_id = await opened(engine)
            await eventually(lambda: _cursor_is(record, 2))
        for person in range(before):
            await engine.book(event_id, str(person))
        valkey.connection_pool.connection_kwargs["encoding_errors"] = "surrogateescape"
        await valkey.connection_pool.disconnect()
        await forge(valkey, 0, change.format(event_id), at=at)
        async with writing(settings):
            await eventually(said(caplog, STOPPED))
        assert await _cursor_is(record, 2 + before)


async def _cursor_is(record: Record, seq: int) -> bool:
    return bool(await record.fetchval("SELECT seq FROM cursors") == seq)


class TestFrozenHolders:
    """Who is frozen with a cursor's lock is ended by the next who needs it (PROTOCOL, rule 7)."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sessions wait a second for a lock, and would not be ended by their own time-outs."""
        monkeypatch.setattr(sessions, "_LOCK_S", 2)
        monkeypatch.setattr(sessions, "_IN_TRANSACTION_S", 600)

    @pytest.mark.parametrize("where", ["idle", "COPY"])
    async def test_a_frozen_session_of_ours_is_ended(
        self,
        settings: Settings,
        stores: Stores,
        engine: Engine,
        record: Record,
        caplog: pytest.LogCaptureFixture,
        where: str,
    ) -> None:
        """Idle in its transaction, or inside a COPY, which no time-out of the server stops."""
        event_id = await opened(engine)
        holder = await sessions.open_session(stores.postgresql_url, "writer")
        frozen = asyncio.create_task(_freeze(holder, where))
        await eventually(lambda: _is_locked(record))
        async with writing(settings):
            await engine.book(event_id, "a")
            await eventually(lambda: is_recorded(record, "a"))
        assert "ended a session that held a cursor's lock" in caplog.text
        frozen.cancel()
        await asyncio.gather(frozen, return_exceptions=True)
        assert holder.is_closed()

    @pytest.mark.parametrize(
        ("name", "work"),
        [("psql", "SELECT 1"), ("onsale writer", "SELECT pg_sleep(30)")],
        ids=["somebody else's", "at work"],
    )
    async def test_nobody_else_is_ended(
        self,
        handshake: Handshake,
        stores: Stores,
        record: Record,
        name: str,
        work: str,
    ) -> None:
        """Not a person's session, nor one of ours that works; the one who waits gives up."""
        assert await handshake.run() == Opened(1)
        holder = await asyncpg.connect(
            stores.postgresql_url, server_settings={"application_name": name}
        )
        async with holder.transaction():
            await holder.execute("SELECT * FROM cursors FOR UPDATE")
            working = asyncio.create_task(holder.execute(work))
            async with await connect(stores.postgresql_url, purpose="writer") as ledger:
                with pytest.raises(asyncpg.LockNotAvailableError):
                    async with ledger.applying([0]):
                        pass
            held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
            assert await record.fetchval(held + " AND datname = current_database()", name) == 1
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        await holder.close()

    async def test_a_handshake_ends_it_too(
        self, handshake: Handshake, stores: Stores, valkey: Client, record: Record
    ) -> None:
        """Whoever meets the lock: the verdict needs P to stand still."""
        assert await handshake.run() == Opened(1)
        holder = await sessions.open_session(stores.postgresql_url, "writer")
        frozen = asyncio.create_task(_freeze(holder, "idle"))
        await eventually(lambda: _is_locked(record))
        await valkey.script_flush()

        async def done() -> bool:
            with contextlib.suppress(Exception):
                return isinstance(await handshake.run(), Opened)
            return False

        await eventually(done)
        frozen.cancel()
        await asyncio.gather(frozen, return_exceptions=True)


async def _freeze(holder: "asyncpg.Connection", where: str) -> None:
    """Lock the cursor, and never go on."""
    async with holder.transaction():
        await holder.execute("SELECT * FROM cursors FOR UPDATE")
        if where == "COPY":
            await holder.execute("CREATE TEMPORARY TABLE held (a integer) ON COMMIT DROP")

            async def nothing() -> AsyncIterator[bytes]:
                await asyncio.Event().wait()
                yield b""

            await holder.copy_to_table("held", source=nothing())
        await asyncio.Event().wait()


async def _is_locked(record: Record) -> bool:
    """Whether somebody holds the lock of a cursor."""
    rows = await record.fetch("SELECT partition FROM cursors FOR UPDATE SKIP LOCKED")
    return bool(not rows and await record.fetchval("SELECT count(*) FROM cursors"))


async def test_the_writer_rolls_back_before_it_asks_for_a_handshake(
    settings: Settings,
    engine: Engine,
    valkey: Client,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the handshake would wait for the lock of the very writer that waits for it."""
    event_id = await opened(engine)
    await engine.book(event_id, "a")
    await engine.book(event_id, "b")
    await valkey.xdel("{p00}:outbox", "1-3")
    run = Handshake.run
    free: list[bool] = []

    async def looking(self: Handshake, *arguments: Any, **words: Any) -> Any:
        free.append(not await _is_locked(record))
        return await run(self, *arguments, **words)

    monkeypatch.setattr(Handshake, "run", looking)
    async with writing(settings):

        async def asked() -> bool:
            return bool(free)

        await eventually(asked)
    assert all(free)


async def test_no_connection_waits_for_ever(stores: Stores) -> None:
    """Every session of ours: the client gives up, and so does the server, on whatever it waits."""
    async with await connect(stores.postgresql_url, purpose="test") as ledger:
        connection: Any = ledger._connection
        held = await connection.fetch(
            "SELECT name, setting FROM pg_settings WHERE name = ANY($1)",
            [
                "idle_in_transaction_session_timeout",
                "lock_timeout",
                "statement_timeout",
            ],
        )
        assert all(int(row["setting"]) > 0 for row in held)
        assert len(held) == 3
        assert connection._config.command_timeout == sessions.COMMAND_S
    assert {"tcp_user_timeout", "tcp_keepalives_idle"} <= sessions.settings("test").keys()
    assert WAIT_S < sessions.COMMAND_S
