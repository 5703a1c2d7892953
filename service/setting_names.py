"""The names of settings: which are meant for Onsale and are none.

Pure. A misspelt name would leave the default in force without a word, `fsync` for a `recorded` that
was asked for; so it is refused, with the nearest name.
"""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

PREFIX = "ONSALE_"

_NOT_MEANT = ("ONSALE_TEST_", "ONSALE_SUPERVISED_IN")
"""Names that tests use among themselves, and the mark of a supervisor's children."""

# A Service of Kubernetes that is called onsale, or onsale-api, has these put into each container.
_OF_KUBERNETES = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?")
_ADDRESS_OF_KUBERNETES = re.compile(r"(tcp|udp|sctp)://")


def mistakes(variables: Mapping[str, str | None], known: Collection[str]) -> list[str]:
    """Return what is wrong with the names of variables, a line each; values are not repeated."""
    found = [
        _unknown(name, known) for name, value in variables.items() if _is_none(name, value, known)
    ]
    return found + _twice(variables, known)


def _is_none(name: str, value: str | None, known: Collection[str]) -> bool:
    upper = name.upper()
    return (
        upper.startswith(PREFIX)
        and upper not in known
        and not upper.startswith(_NOT_MEANT)
        and not _OF_KUBERNETES.fullmatch(name)
        and not (name.endswith("_PORT") and _ADDRESS_OF_KUBERNETES.match(value or ""))
    )


def _unknown(name: str, known: Collection[str]) -> str:
    # Without the prefix, which all have in common: ONSALE_PORT is meant for PORT.
    bare = {setting.removeprefix(PREFIX): setting for setting in sorted(known)}
    near = get_close_matches(name.upper().removeprefix(PREFIX), bare, n=1)
    nearest = f"; the nearest name is {bare[near[0]]}" if near else ""
    return f"{name}: there is no such setting{nearest}; `onsale settings` lists all"


def _twice(variables: Mapping[str, str | None], known: Collection[str]) -> list[str]:
    spellings: dict[str, list[str]] = {}
    for name in variables:
        spellings.setdefault(name.upper(), []).append(name)
    return [
        f"{upper}: it is set as {' and as '.join(sorted(names))}; keep one of them"
        for upper, names in spellings.items()
        if upper in known and len({variables[name] for name in names}) > 1
    ]
