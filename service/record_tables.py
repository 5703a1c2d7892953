"""The record's tables as a whole: copied out of one snapshot, staged, and replaced at once.

Invariant: the tables are replaced in one transaction that reads no client: rows are staged before,
in temporary tables that only this session sees and that end with it. Between `stage` and
`see_record` this session sees the staged tables under the names of the real ones.
"""

from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Self

import asyncpg

from service.journal_view import JournalView
from service.ledger import TABLES
from service.sessions import COMMAND_S, open_session

_LONG_S = 3_600
_LOCK_MS = 5_000

OnChunk = Callable[[bytes], Coroutine[None, None, None]]


class RecordTables(JournalView):
    """One connection to the record. Methods raise what `UNAVAILABLE` lists."""

    @classmethod
    async def connect(cls, url: str, *, purpose: str) -> Self:
        """Connect. Times and bytes are spelt alike whatever the database's defaults."""
        connection = await open_session(
            url,
            purpose,
            statement_timeout=f"{_LONG_S}s",
            datestyle="ISO, YMD",
            bytea_output="hex",
        )
        return cls(connection)

    async def schema(self) -> list[str]:
        """Return the migrations that were applied, oldest first; none in a fresh database."""
        if await self._connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
            return []
        rows = await self._connection.fetch(
            "SELECT version::text AS version FROM schema_migrations ORDER BY version"
        )
        return [row["version"] for row in rows]

    async def columns(self, table: str) -> list[str]:
        """Return the columns that a table stores, in their order."""
        rows = await self._connection.fetch(
            "SELECT attname::text AS name FROM pg_attribute WHERE attrelid = to_regclass($1)"
            " AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
            table,
        )
        return [row["name"] for row in rows]

    async def drawn(self) -> dict[str, int]:
        """Return the last number that each identity column has drawn, as `table.column`."""
        drawn = {}
        for column, sequence in (await self._identities()).items():
            drawn[column] = await self._connection.fetchval(
                f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"  # noqa: S608  # as the server spells it
            )
        return drawn

    async def _identities(self) -> dict[str, str]:
        rows = await self._connection.fetch(
            "SELECT relname || '.' || attname AS name,"
            " pg_get_serial_sequence(attrelid::regclass::text, attname) AS sequence"
            " FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
            " WHERE attidentity <> '' AND attrelid = ANY (SELECT to_regclass(t) FROM"
            " unnest($1::text[]) AS t) ORDER BY 1",
            list(TABLES),
        )
        return {row["name"]: row["sequence"] for row in rows}

    async def rows(self, table: str) -> int:
        """Return how many rows a table has."""
        return int(await self._connection.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608  # out of TABLES

    async def hand_out(self, table: str, columns: Sequence[str], on_chunk: OnChunk) -> int:
        """Hand a table's rows over, as COPY writes them, and return their number."""
        status = await self._connection.copy_from_query(
            f"SELECT {_listed(columns)} FROM {table}",  # noqa: S608  # out of TABLES and the catalogue
            output=on_chunk,
            timeout=_LONG_S,
        )
        return int(status.split()[1])

    async def stage(self, table: str, columns: Sequence[str], rows: AsyncIterator[bytes]) -> int:
        """Take a table's rows into a temporary table of its name; return their number.

        Raises asyncpg.DataError for what is no such row.
        """
        await self._connection.execute(
            f"CREATE TEMPORARY TABLE {table} (LIKE {await self._schema_name()}.{table})"
        )
        status = await self._connection.copy_to_table(
            table, schema_name="pg_temp", columns=list(columns), source=rows, timeout=_LONG_S
        )
        return int(status.split()[1])

    async def become_handshake(self, idle_s: int) -> None:
        """End this session when it asks nothing for so long, or too much, as `ledger.connect`."""
        await self._connection.execute(
            "SELECT set_config('idle_session_timeout', $1, false),"
            " set_config('statement_timeout', $2, false)",
            f"{idle_s}s",
            f"{COMMAND_S:.0f}s",
        )

    async def see_record(self) -> None:
        """See the real tables again, in everything but `replace`."""
        await self._connection.execute(f"SET search_path TO {await self._schema_name()}, pg_temp")

    async def _schema_name(self) -> str:
        found = await self._connection.fetchval("SELECT quote_ident(current_schema())")
        return str(found)

    async def replace(
        self,
        columns: Mapping[str, Iterable[str]],
        drawn: Mapping[str, int],
        before_commit: Callable[[], Awaitable[None]],
    ) -> None:
        """Put what was staged in the place of the record, in one transaction; after `see_record`.

        No identity column draws a number again that it has drawn, here or before the backup. A
        client that is frozen in the middle loses its session after ten seconds, and nothing is
        done: the statements read nothing of it.
        """
        schema = await self._schema_name()
        # In the order of all who lock them, not in that of the backup.
        names = ", ".join(f"{schema}.{table}" for table in TABLES if table in columns)
        async with self._connection.transaction():
            await self._connection.execute(
                f"SET LOCAL statement_timeout = '{_LONG_S}s'; SET LOCAL lock_timeout = {_LOCK_MS}"
            )
            await self._lock(names)
            await self._connection.execute(f"TRUNCATE {names}", timeout=_LONG_S)
            for table, of_table in columns.items():
                listed = _listed(of_table)
                await self._connection.execute(
                    f"INSERT INTO {schema}.{table} ({listed}) SELECT {listed} FROM pg_temp.{table}",  # noqa: S608  # out of the catalogue
                    timeout=_LONG_S,
                )
            for column, sequence in (await self._identities()).items():
                await self._connection.execute(
                    f"SELECT setval($1::text::regclass, $2) FROM {sequence}"  # noqa: S608  # as the server spells it
                    " WHERE last_value < $2 OR (last_value = $2 AND NOT is_called)",
                    sequence,
                    drawn.get(column, 0),
                )
            await before_commit()

    async def _lock(self, names: str) -> None:
        """Shut everybody out, or nobody: who waits for this makes all others wait behind it."""
        try:
            await self._connection.execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
        except asyncpg.LockNotAvailableError:
            msg = (
                f"the tables could not be locked for {_LOCK_MS // 1_000} s: somebody reads them,"
                " an audit or a backup perhaps"
            )
            raise TimeoutError(msg) from None


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
