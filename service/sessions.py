"""Sessions with PostgreSQL: no statement, no wait for a lock and no silence lasts for ever.

The server ends what its client has forgotten (time-outs, keepalives), the client what the server
does not answer (`command_timeout`). Whoever waits in vain for a cursor's lock ends the session that
holds it and does not go on (PROTOCOL, rule 7): one of ours, whose process is frozen.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from service import postgresql_client

log = structlog.stdlib.get_logger("onsale.sessions")

COMMAND_S = 60.0
"""So long a statement may take; one that is lost on the way is given up after it."""

HANDSHAKE_IDLE_S = 15
"""So long a handshake's session may be silent before the server ends it, and with it its lock."""

POOL_COMMAND_S = 30.0
_LOCK_S = 5
_IN_TRANSACTION_S = 10
_FROZEN_S = 1.0
_NAME = "onsale "

_ISOLATION = {"timezone": "UTC", "default_transaction_isolation": "read committed"}
"""Whatever the database's defaults: who has waited for a lock must see what was committed then."""

_KEEPALIVE = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""So that a client whose machine is gone loses its locks within half a minute. The server does
that; it ignores them on a unix socket. The client needs none: `command_timeout` bounds every
question, and who holds a connection asks once a second."""


def settings(purpose: str, *, idle_s: int = 0) -> dict[str, str]:
    """Return the settings of a session; `idle_s` (0: never) ends one that asks nothing so long."""
    return {
        **_ISOLATION,
        **_KEEPALIVE,
        "application_name": _NAME + purpose,
        "lock_timeout": f"{_LOCK_S}s",
        "statement_timeout": f"{COMMAND_S:.0f}s",
        "idle_in_transaction_session_timeout": f"{_IN_TRANSACTION_S}s",
        "idle_session_timeout": f"{idle_s}s",
    }


class SharedSessionError(asyncpg.InterfaceError):
    """The address leads to a pooler that gives each transaction another server session."""

    def __init__(self, evidence: str) -> None:
        """Say what to do; `evidence` is what was seen."""
        super().__init__(
            "it leads through a connection pooler that gives each transaction or statement another"
            f" server session ({evidence}), and locks and settings need one that stays: use"
            " session pooling (PgBouncer: pool_mode = session), or PostgreSQL itself"
        )


_SET = (
    "SELECT pg_backend_pid(), (SELECT array_agg(set_config(name, value, false) ORDER BY place)"
    " FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS wanted (name, value, place)),"
    " pg_advisory_unlock_all()::text"
)
_READ = (
    "SELECT pg_backend_pid(), (SELECT array_agg(current_setting(name) ORDER BY place)"
    " FROM unnest($1::text[]) WITH ORDINALITY AS wanted (name, place))"
)
_ROUNDS = 3
_OTHER_S = 1.0


async def open_session(
    url: str,
    purpose: str,
    *,
    idle_s: int = 0,
    timeout_s: float = 5.0,
    database: str | None = None,
    certain: bool = False,
    **more: str,
) -> "asyncpg.Connection":
    """Connect; `more` settings of the server come last and win.

    Raises SharedSessionError where the session is not this connection's own. `certain`: asked even
    where the server is who it said it was when it was connected to.
    """

    async def connect() -> "asyncpg.Connection":
        return await postgresql_client.connect(
            url, database=database, timeout=timeout_s, command_timeout=COMMAND_S
        )

    connection = await connect()
    try:
        async with asyncio.timeout(timeout_s + _OTHER_S * (_ROUNDS + 1)):
            wanted = {**settings(purpose, idle_s=idle_s), **more}
            await make_own(connection, wanted, connect, certain=certain)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def make_own(
    connection: "asyncpg.Connection | PoolConnectionProxy",
    wanted: Mapping[str, str],
    connect: Callable[[], Awaitable["asyncpg.Connection"]],
    *,
    certain: bool = False,
) -> None:
    """Give a session its settings, and see in another transaction that it has kept them.

    By SET, not as parameters of the connection: those a pooler refuses, or keeps to itself. Locks
    that an earlier client of a pooled session left are let go. `connect` makes one more connection:
    behind a pooler alone, which is told by the pid that it invents for the client.
    """
    names = list(wanted)
    try:
        made = await connection.fetchrow(_SET, names, list(wanted.values()))
        kept = await connection.fetchrow(_READ, names)
        if not (made and kept) or tuple(made)[:2] != tuple(kept):
            msg = "settings were gone in the next transaction"
            raise SharedSessionError(msg)
        if certain or made[0] != connection.get_server_pid():
            await _prove_own(connection, connect)
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as error:
        raise SharedSessionError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


async def _prove_own(
    connection: "asyncpg.Connection | PoolConnectionProxy",
    connect: Callable[[], Awaitable["asyncpg.Connection"]],
) -> None:
    """See that no other connection can have this one's server session, nor this one another's.

    A pooler that takes a session back after each transaction has it free now: it lends it to the
    other connection, which keeps it in a transaction, or has to lend this one another meanwhile.
    Where sessions take turns, it is another the second time. Where the other connection gets none
    in time, all are lent, and this one's answer tells that it still has its own.
    """
    mine = await _backend(connection)
    other = await connect()
    try:
        for _ in range(_ROUNDS):
            theirs = await _in_a_transaction(other)
            for _ in range(2):
                asked = asyncio.ensure_future(_backend(connection))
                if not (await asyncio.wait({asked}, timeout=_OTHER_S))[0] and theirs is not None:
                    await other.execute("ROLLBACK")
                    await asked
                    msg = "a connection had to wait for another's transaction"
                    raise SharedSessionError(msg)
                if await asked != mine or theirs == mine:
                    msg = f"backend {mine} served another connection, too"
                    raise SharedSessionError(msg)
            if theirs is None:
                return
            await other.execute("ROLLBACK")
    finally:
        other.terminate()


async def _in_a_transaction(other: "asyncpg.Connection") -> int | None:
    """Begin one; return the backend that it is in, None where none was free in time."""
    try:
        async with asyncio.timeout(_OTHER_S):
            await other.execute("BEGIN")
            return await _backend(other)
    except TimeoutError:
        return None
    except (asyncpg.ProtocolViolationError, asyncpg.ConnectionDoesNotExistError) as error:
        if "transaction block" not in str(error):
            raise
        raise SharedSessionError(_first_line(error).rpartition(": ")[2]) from error


async def _backend(connection: "asyncpg.Connection | PoolConnectionProxy") -> int:
    return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def end_frozen_holders(
    connection: "asyncpg.Connection | PoolConnectionProxy", partitions: Iterable[int]
) -> int:
    """End the sessions of ours that hold these cursors' locks and wait for their client.

    Returns how many. To be asked by who has met `lock_timeout`, outside of a transaction. A row's
    lock is no entry of pg_locks, and pg_blocking_pids knows of it only while somebody waits: who
    holds it is the transaction that the row names (xmax). A holder that works (and does not wait
    for its client) is left alone: statement_timeout is for that one.
    """
    rows = await connection.fetch(
        "SELECT a.pid, a.application_name, c.partition, a.state,"
        " extract(epoch FROM clock_timestamp() - a.state_change)::float AS frozen_s,"
        " pg_terminate_backend(a.pid) AS ended"
        " FROM cursors c JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted"
        " AND l.mode = 'ExclusiveLock' AND l.transactionid = c.xmax"
        " JOIN pg_stat_activity a ON a.pid = l.pid"
        " WHERE c.partition = ANY($1) AND a.pid <> pg_backend_pid()"
        " AND starts_with(a.application_name, $2) AND a.wait_event_type = 'Client'"
        " AND clock_timestamp() - a.state_change > make_interval(secs => $3)",
        list(partitions),
        _NAME,
        _FROZEN_S,
    )
    for row in rows:
        log.error(
            "ended a session that held a cursor's lock and did not go on",
            partition=row["partition"],
            session=row["application_name"],
            pid=row["pid"],
            state=row["state"],
            seconds=round(row["frozen_s"], 1),
        )
    return len(rows)


async def end_stale_holder(
    connection: "asyncpg.Connection | PoolConnectionProxy", key: int, partition: int
) -> int:
    """End the sessions that hold a handshake's advisory lock and cannot be a handshake's.

    Returns how many. A handshake's session bears its name for as long as it lives, and the server
    ends one that was silent for `HANDSHAKE_IDLE_S`. One with another name, or that has been silent
    for longer, is a pooler's: its client is gone, and the lock was left in it.
    """
    rows = await connection.fetch(
        "SELECT a.pid, a.application_name, a.state,"
        " extract(epoch FROM clock_timestamp() - a.state_change)::float AS silent_s,"
        " pg_terminate_backend(a.pid) AS ended"
        " FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND l.classid = $1::bigint::oid AND l.objid = $2::bigint::oid"
        " AND a.pid <> pg_backend_pid()"
        " AND (NOT starts_with(a.application_name, $3)"
        " OR a.state LIKE 'idle%' AND"
        " clock_timestamp() - a.state_change > make_interval(secs => $4))",
        key,
        partition,
        _NAME,
        float(HANDSHAKE_IDLE_S + _LOCK_S),
    )
    for row in rows:
        log.error(
            "ended a session that held a handshake's lock and is none",
            partition=partition,
            session=row["application_name"],
            pid=row["pid"],
            state=row["state"],
            seconds=round(row["silent_s"] or 0.0, 1),
        )
    return len(rows)
