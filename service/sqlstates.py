"""What PostgreSQL's errors mean to whoever writes: one table, by class of SQLSTATE.

Two mistakes are excluded here. A change that is taken for refused although PostgreSQL was only
busy, read-only or misconfigured would freeze an event for nothing; one that is refused for what it
says and repeated for ever would hold a partition without a word. So a change is refused only where
the error is plainly about its content, and all else is tried again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import asyncpg

from service.errors import RefusedChangeError

Meaning = Literal["refused", "passes", "needs_somebody"]

MEANINGS: Mapping[str, Meaning] = {
    "08": "passes",  # connection exception
    "22": "refused",  # data exception: no such value can be stored
    "23": "refused",  # integrity constraint violation
    "40": "passes",  # deadlock, serialization failure, a commit of which nothing is known
    "53": "passes",  # no connections, disk or memory left
    "55": "passes",  # lock not available, object in use
    "57": "passes",  # shut down, starting up, cancelled, statement time-out
}
"""By the first two characters. Every other class is tried again as well, and said as an error: a
missing table or privilege, a trigger's own RAISE, a standby that cannot write."""

_UNSTORABLE = (OverflowError, UnicodeEncodeError)
"""A time or a text that ends before it reaches PostgreSQL: no script wrote it."""


def meaning(error: BaseException) -> Meaning:
    """Return what an error means; one that is not PostgreSQL's own passes, as a lost socket does.

    A value that asyncpg cannot encode carries the SQLSTATE that the server would have given it.
    """
    if isinstance(error, _UNSTORABLE):
        return "refused"
    if not isinstance(error, asyncpg.PostgresError):
        return "passes"
    return MEANINGS.get((error.sqlstate or "")[:2], "needs_somebody")


@contextmanager
def refusing() -> Iterator[None]:
    """Turn an error that is about a change's content into RefusedChangeError; pass others on.

    What PostgreSQL says of it, its DETAIL too, becomes one line.
    """
    try:
        yield
    except (*_UNSTORABLE, asyncpg.PostgresError) as error:
        if meaning(error) == "refused":
            raise RefusedChangeError(" ".join(str(error).split())) from error
        raise
