"""One reading of a PostgreSQL URL, and what asyncpg and dbmate are given of it."""

import os
import pwd
import ssl
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import asyncpg.connect_utils
import pytest

from service.postgresql_address import PostgresqlAddress, address_of
from service.postgresql_client import arguments
from service.store_urls import checked_postgresql_url, postgresql_url_of

SPECIAL = "p@ss/w:rd?#%41 é+&='\"\\[]"
QUOTED = quote(SPECIAL, safe="")


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgresql://u@h/d", "h", 5432),
        ("postgresql://u@h:5433/d", "h", 5433),
        ("postgresql://u@Db.Example:5433/d", "Db.Example", 5433),
        ("postgresql://u@[::1]/d", "::1", 5432),
        ("postgresql://u:p@[::1]:5433/d", "::1", 5433),
        ("postgresql://u@[fe80::1%25eth0]:5433/d", "fe80::1%eth0", 5433),
        ("postgresql://u@/d?host=::1", "::1", 5432),
        ("postgresql://u@/d?host=[::1]&port=5433", "::1", 5433),
        ("postgresql://u@h/d?port=5433", "h", 5433),
        ("postgresql://u@/d?host=/run/pg%20Sql&port=5433", "/run/pg Sql", 5433),
        ("postgresql://u@%2Frun%2FPg/d", "/run/Pg", 5432),
        ("postgresql://u@%2Frun%2Fpg:5433/d", "/run/pg", 5433),
    ],
)
def test_both_clients_are_given_the_same_place(url: str, host: str, port: int) -> None:
    """By name, by address of either family and by the directory of a socket."""
    address = address_of(url)
    assert (address.host, address.port) == (host, port)
    assert given_to_asyncpg(address) == given_to_dbmate(address)


def given_to_asyncpg(address: PostgresqlAddress) -> dict[str, object]:
    """Return what asyncpg makes of its arguments, by its own parser."""
    parse: Any = vars(asyncpg.connect_utils)["_parse_connect_dsn_and_args"]
    wanted = dict.fromkeys(("dsn", "passfile", "service", "servicefile"))
    addresses, read = parse(**wanted, **arguments(address, {}))
    (place,) = addresses
    if isinstance(place, str):
        directory, _, port = place.rpartition("/.s.PGSQL.")
        place = (directory, int(port))
    return {
        "host": place[0],
        "port": place[1],
        "user": read.user,
        "password": read.password,
        "database": read.database,
        "sslmode": address.sslmode,
        "target_session_attrs": read.target_session_attrs.value,
        "options": read.server_settings,
    }


def given_to_dbmate(address: PostgresqlAddress) -> dict[str, object]:
    """Return what stands in dbmate's URL."""
    parts = urlsplit(address.for_dbmate)
    assert not parts.hostname
    query = {name: value for name, (value,) in parse_qs(parts.query).items()}
    for name in (*address.tls, "passfile"):
        query.pop(name, None)
    return {
        "host": query.pop("host"),
        "port": int(query.pop("port")),
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": unquote(parts.path[1:]),
        "sslmode": query.pop("sslmode"),
        "target_session_attrs": query.pop("target_session_attrs"),
        "options": query,
    }


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("", "prefer"),
        ("?sslmode=", "prefer"),
        *((f"?sslmode={mode}", mode) for mode in ("disable", "allow", "prefer", "require")),
    ],
)
def test_a_tls_mode_is_the_same_for_both(query: str, mode: str) -> None:
    """Without one both prefer TLS; dbmate's driver by itself would insist on it."""
    address = address_of(f"postgresql://u@h/d{query}")
    assert address.sslmode == mode
    assert given_to_asyncpg(address) == given_to_dbmate(address)
    tls = arguments(address, {})["ssl"]
    assert tls == mode or (mode == "require" and tls.verify_mode == ssl.CERT_NONE)


def test_user_password_and_database_may_hold_anything() -> None:
    """Each sign that means something in a URL or to a driver comes out as it went in."""
    url = f"postgresql://{QUOTED}:{QUOTED}@h/{QUOTED}?application_name={QUOTED}&options=-c%20geqo=1"
    address = address_of(url)
    assert {address.user, address.password, address.database} == {SPECIAL}
    assert address.options == {"application_name": SPECIAL, "options": "-c geqo=1"}
    assert given_to_asyncpg(address) == given_to_dbmate(address)
    assert address_of(postgresql_url_of("h", 1, SPECIAL, SPECIAL, SPECIAL)).password == SPECIAL
    assert SPECIAL not in repr(address)


def test_a_missing_user_is_the_one_that_runs_this(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for libpq; never a name out of the environment."""
    for name in ("USER", "LOGNAME", "PGUSER"):
        monkeypatch.setenv(name, "somebody")
    address = address_of("postgresql://h/d")
    assert address.user == pwd.getpwuid(os.geteuid()).pw_name
    assert given_to_asyncpg(address) == given_to_dbmate(address)


def test_asyncpg_takes_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument is given; what is not given would be looked for in PG*."""
    address = address_of("postgresql://u@h/d")
    before = given_to_asyncpg(address)
    for name in ("PGHOST", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGPASSFILE", "PGSERVICE"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGSSLMODE", "disable")
    monkeypatch.setenv("PGSSLNEGOTIATION", "wrong")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "wrong")
    monkeypatch.setenv("PGGSSLIB", "wrong")
    assert given_to_asyncpg(address) == before
    assert before["password"] == ""


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://h1/d?host=h2", "a host before the . and another behind it"),
        ("postgresql://h:1/d?port=2", "a port before the . and another behind it"),
        ("postgresql://h/d?port=x", "port is not a number"),
        ("postgresql://h/d?port=0", "port is not a number"),
        ("postgresql://h/d?port=65536", "port is not a number"),
        ("postgresql://h/d?sslmode=disable&sslmode=require", "it has sslmode twice"),
        ("postgresql://u@/d?host=/a,/b", "several hosts"),
        ("postgresql://h/d?sslmode=required", "sslmode has to be one of disable, allow"),
        ("postgresql://h/d?sslmode=verify-full", "sslrootcert has to be a file"),
        ("postgresql://h/d?sslmode=verify-ca", "sslrootcert has to be a file"),
        ("postgresql://h/d?sslnegotiation=maybe", "sslnegotiation has to be one of"),
        ("postgresql://h/d?sslnegotiation=direct", "needs sslmode=require"),
        ("postgresql://h/d?target_session_attrs=standby", "has to be one of any, read-write"),
        ("postgresql://h/d?socket=/tmp", "cannot do: socket"),
        ("postgresql://h/d?passfile=/tmp/p", "cannot do: passfile"),
        ("postgresql://[::1/d", "not a URL of the form"),
        ("postgresql://::1/d", "not a URL of the form"),
    ],
)
def test_what_two_clients_would_read_differently_is_refused(url: str, why: str) -> None:
    """The first, the last, or one in its own way: the reason names the parameter."""
    with pytest.raises(ValueError, match=why):
        checked_postgresql_url(url)


@pytest.mark.parametrize(
    ("host", "read"),
    [
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("[fe80::1%25eth0]", "fe80::1%eth0"),
        ("/run/Pg Sql", "/run/Pg Sql"),
        ("Db.Example", "Db.Example"),
    ],
)
def test_db_host_may_be_written_in_each_way(host: str, read: str) -> None:
    """With brackets or without, with the zone of a link-local address, or a directory."""
    for port in (None, 5433):
        address = address_of(postgresql_url_of(host, port, "d", "u", ""))
        assert (address.host, address.port) == (read, port or 5432)
