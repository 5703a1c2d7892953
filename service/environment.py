"""The environment of child processes, and of this one.

A store, initdb or dbmate is given an environment that is built here: a variable of the person who
starts Onsale never reaches it. PostgreSQL reads PGPORT, PGDATA, TZ and the locale, dbmate's driver
every PG* variable of libpq (PGHOSTADDR alone moves a migration to another server), and LD_PRELOAD
changes any of them. API workers and the writer are this program and inherit its environment.
"""

import os
from collections.abc import Mapping

_BUILT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "TZ": "UTC",
}
"""initdb runs /bin/sh. In the C locale error messages are those that Onsale knows."""

_READ_BY_CLIENTS = ("PG", "SSLKEYLOGFILE")
"""asyncpg fills what it is not given from PG*, and writes TLS secrets to SSLKEYLOGFILE."""


def built(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a store or a tool, with `more`, and nothing inherited."""
    return {**_BUILT, **more}


def inherited(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process of Onsale's own: this one's, with `more`."""
    return {**os.environ, **more}


def forget_client_defaults() -> None:
    """Remove from this process what the clients of the stores would read by themselves."""
    for name in [name for name in os.environ if name.startswith(_READ_BY_CLIENTS)]:
        del os.environ[name]
