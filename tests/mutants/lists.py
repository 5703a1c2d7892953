"""The lists of mutants, one TOML file per part: what each breaks, and the tests that must fail.

Never changes the tree it looks at. A mutant that cannot be applied, or that could only be noticed
because it does not compile, is an error of the list, and `mistakes` says so.
"""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lupa.lua51 import LuaRuntime

DIRECTORY = Path(__file__).resolve().parent
ROOT = DIRECTORY.parents[1]

_FIELDS = {"name": str, "rule": int, "file": str, "old": str, "new": str, "tests": list}
_OPTIONAL = {"hangs_s": int}

_LUA_ERROR = LuaRuntime().eval("function(text) return (select(2, loadstring(text))) end")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One check taken out.

    `rule` is the number in PROTOCOL.md, 0 for none. In `file`, a path in the repository, `old`
    occurs once, and becomes `new`. `tests` are ids or files for pytest. `hangs_s` is for one that
    makes its tests wait for ever: not to be done after so many seconds counts as noticed. 0 for
    all others, which must fail.
    """

    part: str
    name: str
    rule: int
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    hangs_s: int = 0

    def apply(self, root: Path) -> None:
        """Break the copy of the tree that lies there."""
        path = root / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


def read(directory: Path = DIRECTORY) -> list[Mutant]:
    """Return all mutants, by rule. Raises ValueError for a list of another form."""
    found = [mutant for path in sorted(directory.glob("*.toml")) for mutant in _read(path)]
    return sorted(found, key=lambda mutant: mutant.rule)


def mistakes(mutant: Mutant, root: Path = ROOT) -> list[str]:
    """Return what is wrong with a mutant, as it stands in its list; nothing when it can be run."""
    found = list(_of_the_tests(mutant, root))
    path = root / mutant.file
    if not path.is_file():
        return [*found, f"there is no {mutant.file}"]
    text = path.read_text()
    if (times := text.count(mutant.old)) != 1:
        return [*found, f"what it replaces occurs {times} times in {mutant.file}, not once"]
    broken = text.replace(mutant.old, mutant.new)
    if broken == text:
        found.append("it changes nothing")
    if why := _does_not_compile(path, broken):
        found.append(f"{mutant.file} does not compile with it: {why}")
    return found


def _read(path: Path) -> Iterator[Mutant]:
    for entry in tomllib.loads(path.read_text()).get("mutant", []):
        wanted = {**_FIELDS, **_OPTIONAL}
        odd = [name for name in _FIELDS if name not in entry]
        odd += [name for name, value in entry.items() if type(value) is not wanted.get(name)]
        if odd or not entry["tests"]:
            msg = f"{path.name}: {entry.get('name', '?')}: missing, empty or of another type: {odd}"
            raise ValueError(msg)
        yield Mutant(path.stem, **{**entry, "tests": tuple(entry["tests"])})


def _of_the_tests(mutant: Mutant, root: Path) -> Iterator[str]:
    """Compare files, classes and functions; what a test is parametrised with shows when it runs."""
    for test in mutant.tests:
        file, *names = test.partition("[")[0].split("::")
        if not (root / file).exists():
            yield f"there is no {file}"
            continue
        if names:
            body = _parsed((root / file).read_text())
            for name in names:
                found = [node for node in body if getattr(node, "name", None) == name]
                body = [child for node in found for child in getattr(node, "body", [])]
                if not found:
                    yield f"there is no {name} in {file}"
                    break


@cache
def _parsed(text: str) -> list[ast.stmt]:
    return ast.parse(text).body


def _does_not_compile(path: Path, text: str) -> str:
    try:
        if path.suffix == ".py":
            ast.parse(text)
        elif path.suffix == ".lua":
            body = text.split("\n", 1)[1] if text.startswith("#!") else text
            return str(_LUA_ERROR(body) or "")
    except SyntaxError as error:
        return str(error)
    return ""
