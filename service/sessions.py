"""Sessions with PostgreSQL: no statement, no wait for a lock and no silence lasts for ever.

The server ends what its client has forgotten (time-outs, keepalives), the client what the server
does not answer (`command_timeout`). Whoever waits in vain for a cursor's lock ends the session that
holds it and does not go on (PROTOCOL, rule 7): one of ours, whose process is frozen.
"""

from collections.abc import Iterable
from typing import Any

import asyncpg
import structlog
from asyncpg.pool import PoolConnectionProxy

from service import postgresql_client

log = structlog.stdlib.get_logger("onsale.sessions")

COMMAND_S = 60.0
"""So long a statement may take; one that is lost on the way is given up after it."""

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


async def open_session(
    url: str, purpose: str, *, idle_s: int = 0, timeout_s: float = 5.0, **more: str
) -> "asyncpg.Connection":
    """Connect; `more` settings of the server come last and win."""
    wanted: dict[str, Any] = {**settings(purpose, idle_s=idle_s), **more}
    return await postgresql_client.connect(
        url, timeout=timeout_s, command_timeout=COMMAND_S, server_settings=wanted
    )


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
