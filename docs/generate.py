"""Writes the generated tables of the documentation anew: settings, problem codes, metrics.

`make docs` runs it; `tests/unit/test_docs.py` fails where a table is not what it would write.
"""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from service import settings_table
from service.errors import PROBLEMS
from service.exposition import described
from service.metrics import Metrics
from service.rights import acl_line
from service.settings import Settings

_ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    _ROOT / "README.md": ("settings", "problems"),
    _ROOT / "docs" / "metrics.md": ("metrics",),
    _ROOT / "docs" / "runbook.md": ("redis rights",),
}

_REPEAT = {
    "never": "never as it stands",
    "after_change": "not before something has changed",
    "after_delay": "yes, after `Retry-After` seconds: nothing was done",
    "same_request": "yes, the same request: its answer says what was done",
}


def settings() -> str:
    """Return the table of settings, with their defaults."""
    return settings_table.as_markdown(Settings.model_construct())


def problems() -> str:
    """Return the table of problem codes, with what a client may do."""
    return _table(
        ("code", "status", "means", "may I repeat this?"),
        (
            (f"`{code}`", str(known.status), known.title, _REPEAT[known.repeat])
            for code, known in PROBLEMS.items()
        ),
    )


def metrics() -> str:
    """Return the table of metrics: what is counted, and what is asked of the stores."""
    counted = [
        (_exposed(family), str(family._type), family._labelnames, family._documentation)  # noqa: SLF001  # nothing public says them
        for family in vars(Metrics()).values()
        if isinstance(family, MetricWrapperBase)
    ]
    return _table(
        ("metric", "type", "labels", "says"),
        (
            (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), says.rstrip("."))
            for name, kind, labels, says in [*counted, *described()]
        ),
    )


def redis_rights() -> str:
    """Return the command that makes the Redis user, in a block of its own."""
    return f"```text\n{acl_line()}\n```\n"


def _exposed(family: MetricWrapperBase) -> str:
    name: str = family._name  # noqa: SLF001  # the same
    return f"{name}_total" if family._type == "counter" else name  # noqa: SLF001  # the same


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


_TABLES = {
    "settings": settings,
    "problems": problems,
    "metrics": metrics,
    "redis rights": redis_rights,
}


def generated(text: str, names: tuple[str, ...]) -> str:
    """Return a page with what stands between its marks written anew."""
    for name in names:
        begins, ends = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, behind = text.partition(begins)
        _, closed, after = behind.partition(ends)
        if not found or not closed:
            msg = f"there is no place for the table of {name}"
            raise ValueError(msg)
        text = before + begins + _TABLES[name]() + ends + after
    return text


if __name__ == "__main__":
    for page, tables in PAGES.items():
        page.write_text(generated(page.read_text(), tables))
