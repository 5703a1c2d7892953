"""A service with one protection taken out: what the checks must find, to be worth something."""

import shutil
from dataclasses import replace
from pathlib import Path

from tests.deployment import USUAL, Build

ROOT = Path(__file__).resolve().parents[2]

FORGETS_KEYS = ("lua/include/keyed.lua", "if keyed == '' or tail == '' then", "if true then")
"""A request that comes again under its key is answered as another one."""


def without(
    directory: Path, *replaced: tuple[str, str, str], build: Build = USUAL, what: str = "broken"
) -> Build:
    """Copy the service, replace texts in it (file, old, new), and have it run from the copy.

    Each old text must occur exactly once in its file.
    """
    tree = directory / what
    for name in ("service", "lua", "sql"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in replaced:
        text = (tree / name).read_text()
        assert text.count(old) == 1, f"{name} has {old!r} {text.count(old)} times"
        (tree / name).write_text(text.replace(old, new))
    return replace(build, settings={**build.settings, "PYTHONPATH": str(tree)})
