"""What the commands that look at the stores share: a bar, columns, and one line why not.

Invariant: whatever keeps a command from looking is exit code 2, never taken for a finding, which
is exit code 1.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import asyncpg
import click
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from service.ledger import UNAVAILABLE

CANNOT_TELL = 2
LINES_MAX = 100
_CELL_MAX = 200

OnProgress = Callable[[int, int], None]
Found = TypeVar("Found")


def looked(
    doing: str,
    look: Callable[[OnProgress | None], Found],
    *,
    unknown: type[Exception],
    unknown_code: int = CANNOT_TELL,
) -> Found | int:
    """Return what `look` found, or an exit code after a line on stderr that says why.

    `doing` stands before the bar; `unknown` is raised for what is not there.
    """
    code = CANNOT_TELL
    try:
        with _Bar(doing) if sys.stderr.isatty() else nullcontext() as on_progress:
            return look(on_progress)
    except unknown as error:
        code, why = unknown_code, str(error)
    except asyncpg.UndefinedTableError:
        why = "the record has no tables; apply the migrations with `onsale migrate up`"
    except RedisError as error:
        why = f"cannot tell: Redis: {_what(error)}"
    except UNAVAILABLE as error:
        why = f"cannot tell: PostgreSQL: {_what(error)}"
    except KeyboardInterrupt:
        why = "cannot tell: interrupted"
    except Exception as error:  # a failure of ours must not pass for a finding
        traceback.print_exc()
        why = f"cannot tell: {_what(error)}"
    refuse(why)
    return code


def refuse(why: str) -> None:
    """Say on stderr, in one line, what keeps the command from its work."""
    click.echo(f"onsale: {' '.join(why.split())}", err=True)


def cut_short(code: int, *, machine_readable: bool) -> int:
    """Return the code of a command that has nothing to print; a machine is told that much."""
    if machine_readable:
        say(json.dumps({"exitCode": code}))
    return code


def say(text: str, *, err: bool = False) -> None:
    """Print. What nobody can read, of a full disk or a closed pipe, ends with CANNOT_TELL.

    Python's own exit code for that would read as a finding.
    """
    try:
        click.echo(text, err=err)
    except OSError as error:
        click.echo(f"onsale: cannot tell: {error.strerror or error}", err=True)
        os._exit(CANNOT_TELL)  # without another attempt to write what is left in the buffer


def _what(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Bar(AbstractContextManager[OnProgress]):
    """A bar on stderr, which goes when the work is done."""

    def __init__(self, doing: str) -> None:
        self._bar = Progress(
            TextColumn(doing),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )

    def __enter__(self) -> OnProgress:
        self._bar.start()
        task = self._bar.add_task("")
        return lambda done, total: self._bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def printable(text: str) -> str:
    """Return text without what could move a terminal's cursor, and no more than fits one.

    What was written into the record by hand may hold anything.
    """
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _CELL_MAX else f"{text[:_CELL_MAX]}…"


def count(number: int, noun: str) -> str:
    """Return `1 user`, `2,408 users`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def some(rows: Sequence[Any]) -> Sequence[Any]:
    """Return as many as a terminal takes."""
    return rows[:LINES_MAX]


def rest(number: int, what: str) -> str:
    """Return a line about those beyond `some`, empty when there are none."""
    more = number - LINES_MAX
    return f"\n... and {more:,} more {what}: --json has all." if more > 0 else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Return columns under their heads, empty without rows; `align` has a `<` or `>` for each."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)
        ).rstrip()
        for row in [heads, *rows]
    )
