"""The settings as a person wants to see them: name, bounds, default, value in force, meaning.

Made from `settings` alone, so that the table in the README cannot say anything else. Never shows
a secret's value.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service.settings import Settings, variable_of


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. `default` and `value` are texts, empty where there is none."""

    variable: str
    default: str
    bounds: str
    meaning: str
    value: str


def rows(settings: Settings) -> Iterator[Row]:
    """Yield every setting, in the order in which `settings` has them."""
    for name, field in Settings.model_fields.items():
        yield Row(
            variable=variable_of(name),
            default=_text(field.default),
            bounds=_bounds(field),
            meaning=(field.description or "").rstrip("."),
            value=_text(getattr(settings, name)),
        )


def as_json(settings: Settings) -> list[dict[str, str]]:
    """Return the table for a program."""
    return [asdict(row) for row in rows(settings)]


def as_text(settings: Settings) -> str:
    """Return what is in force; a setting that is not at its default has a mark."""
    found = list(rows(settings))
    widths = [max(len(row.variable) for row in found), max(len(row.value) for row in found)]
    return "".join(
        f"{'*' if row.value != row.default else ' '} {row.variable:<{widths[0]}}"
        f"  {row.value:<{widths[1]}}  {row.meaning}\n"
        for row in found
    )


def as_markdown(settings: Settings) -> str:
    """Return the README's table."""
    lines = ["| setting | default | bounds | |", "|---|---|---|---|"]
    lines += [
        f"| `{row.variable}` | {f'`{row.default}`' if row.default else ''} | {row.bounds}"
        f" | {row.meaning} |"
        for row in rows(settings)
    ]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "(set)"
    if isinstance(value, bool):
        return str(int(value))
    return "" if value is None else str(value)


def _bounds(field: FieldInfo) -> str:
    least = next((str(m.ge) for m in field.metadata if isinstance(m, Ge)), "")
    most = next((str(m.le) for m in field.metadata if isinstance(m, Le)), "")
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(field.annotation))
    if field.annotation is bool:
        return "0, 1"
    if field.annotation in (Path, Path | None):
        return "a path"
    return f"{least} to {most}" if most else f"from {least}" if least else ""
