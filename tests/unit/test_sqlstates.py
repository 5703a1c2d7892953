"""Which error is about a change, and which about PostgreSQL: by class, and by known members."""

import asyncpg
import pytest

from service.errors import RefusedChangeError
from service.sqlstates import MEANINGS, meaning, refusing

ABOUT_THE_CHANGE = {
    "22001": "too long",
    "22003": "a number out of range",
    "22021": "not in the repertoire",
    "22P02": "no such value of the type",
    "22P05": "a character that cannot be stored",
    "23502": "not null",
    "23503": "foreign key",
    "23505": "unique",
    "23514": "check",
    "23P01": "exclusion",
}
PASSES = {
    "08000": "connection exception",
    "08006": "connection failure",
    "40001": "serialization",
    "40003": "completion unknown",
    "40P01": "deadlock",
    "53100": "disk full",
    "53200": "out of memory",
    "53300": "too many connections",
    "55P03": "lock not available",
    "57014": "statement time-out",
    "57P01": "admin shutdown",
    "57P02": "crash shutdown",
    "57P03": "starting up",
}
NEEDS_SOMEBODY = {
    "0A000": "a feature that is not there",
    "21000": "cardinality",
    "25006": "read only: a standby",
    "28000": "no such role",
    "3D000": "no such database",
    "42501": "permission denied",
    "42703": "missing column",
    "42P01": "missing table",
    "54000": "a limit of the program",
    "58030": "I/O error",
    "P0001": "a trigger raised it",
    "XX001": "data corrupted",
    "XX002": "index corrupted",
}


def error_of(sqlstate: str) -> BaseException:
    """Return the error as asyncpg makes it from what the server sends."""
    return asyncpg.PostgresError.new({"C": sqlstate, "M": "a test", "S": "ERROR"})


@pytest.mark.parametrize("sqlstate", ABOUT_THE_CHANGE)
def test_what_is_about_a_changes_content_is_refused(sqlstate: str) -> None:
    """Classes 22 and 23, and nothing else of the server's."""
    assert meaning(error_of(sqlstate)) == "refused"
    with pytest.raises(RefusedChangeError), refusing():
        raise error_of(sqlstate)


@pytest.mark.parametrize("sqlstate", [*PASSES, *NEEDS_SOMEBODY])
def test_what_is_about_postgresql_is_never_a_refused_change(sqlstate: str) -> None:
    """It comes through as it is, and is tried again; where a person is needed that is known."""
    error = error_of(sqlstate)
    assert meaning(error) == ("passes" if sqlstate in PASSES else "needs_somebody")
    with pytest.raises(type(error)), refusing():
        raise error


def test_every_error_that_asyncpg_knows_has_one_meaning() -> None:
    """Refused are those of the two classes alone, whatever a later asyncpg adds."""
    found = {
        name: kind.sqlstate
        for name in dir(asyncpg.exceptions)
        if isinstance(kind := getattr(asyncpg.exceptions, name), type)
        and issubclass(kind, asyncpg.PostgresError)
        and kind.sqlstate
    }
    assert len(found) > 200
    refused = {s for s in found.values() if meaning(error_of(s)) == "refused"}
    assert {s[:2] for s in refused} == {"22", "23"}
    assert {c for c, says in MEANINGS.items() if says == "refused"} == {"22", "23"}


def test_what_asyncpg_cannot_encode_is_refused() -> None:
    """An argument beyond its type never reaches the server; it is about the change all the same."""
    assert meaning(asyncpg.DataError("invalid input for query argument $1")) == "refused"
    assert meaning(OverflowError("date value out of range")) == "refused"
    with pytest.raises(RefusedChangeError), refusing():
        "\udcff".encode()


@pytest.mark.parametrize(
    "error",
    [
        OSError(),
        TimeoutError(),
        ConnectionResetError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 11"),
        asyncpg.PostgresError("without a SQLSTATE"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_connection_that_is_lost_is_no_refusal(error: Exception) -> None:
    """Whatever the driver makes of it."""
    assert meaning(error) != "refused"
