"""Columns of many rows, each as one text that PostgreSQL takes apart. Pure; spells no statement.

asyncpg asks of each element of an array what it is (measured: of 14 columns, 6 µs a change, where
all else that the writer does takes 5); a text it passes on as it is. What is alike in all rows, as
most of it is in a flash sale, is no column at all but one value (measured: 0.5 µs of the writer's
a change, 0.25 of PostgreSQL's).
Here is how both are written and, in SQL, read, so that they fit.
"""

from collections.abc import Iterable, Sequence

from service.errors import RefusedChangeError


def numbers(values: Iterable[int | None]) -> str:
    """Return integers, or NULLs, as `as_numbers` reads them."""
    return "{" + ",".join(map(str, values)).replace("None", "NULL") + "}"


def words(values: Sequence[str]) -> str:
    """Return texts as `as_words` reads them; an empty one stands for NULL.

    Raises RefusedChangeError for a text with a line end, which no outbox entry can hold.
    """
    joined = "\n".join(values)
    if joined.count("\n") != max(0, len(values) - 1):
        msg = "a text of several lines"
        raise RefusedChangeError(msg)
    return joined


def one_or_numbers(values: Sequence[int | None]) -> tuple[int | None, str]:
    """Return the one integer that all are and a column without rows; else None and the column."""
    if not values or values.count(values[0]) != len(values):
        return None, numbers(values)
    return values[0], numbers(())


def one_or_words(values: Sequence[str]) -> tuple[str | None, str]:
    """Return the one text that all are and a column without rows; else None and the column."""
    if not values or values.count(values[0]) != len(values):
        return None, words(values)
    return words(values[:1]) or None, words(())


def start_or_numbers(values: Sequence[int]) -> tuple[int | None, str]:
    """Return what comes before the first of integers that count up by one, and no rows.

    Else None and the column. What is looked at is each of them, not both ends.
    """
    if not values or list(values) != [*range(values[0], values[0] + len(values))]:
        return None, numbers(values)
    return values[0] - 1, numbers(())


def as_numbers(parameter: int) -> str:
    """Return what makes rows of a parameter that `numbers` wrote.

    Beside longer columns one without rows is filled up with NULL.
    """
    return f"unnest(${parameter}::text::bigint[])"


def as_words(parameter: int) -> str:
    """Return what makes rows of a parameter that `words` wrote.

    A column of one empty text has no rows: beside other columns it is filled up with NULL, which is
    what it stands for.
    """
    return f"unnest(string_to_array(${parameter}, E'\\n', ''))"
