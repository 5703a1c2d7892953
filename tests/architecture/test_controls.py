"""Each negative control of the fault suite can still be applied: its texts stand where it says."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests" / "torture"
PLACES = ("service/", "lua/", "sql/")


def replaced() -> Iterator[tuple[str, str, str]]:
    """Yield the suite's file, the file that is changed and the old text of every replacement."""
    for path in sorted(SUITE.glob("*.py")):
        tree = ast.parse(path.read_text(), path)
        known = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

        def text(node: ast.expr, known: dict[str, ast.expr] = known) -> str:
            node = known.get(node.id, node) if isinstance(node, ast.Name) else node
            return str(node.value) if isinstance(node, ast.Constant) else ""

        for node in ast.walk(tree):
            if isinstance(node, ast.Tuple) and len(node.elts) == 3:
                file, old, _ = map(text, node.elts)
                if file.startswith(PLACES) and old:
                    yield path.name, file, old


def test_every_control_finds_its_text() -> None:
    """It occurs exactly once, so that what is taken out is what the control says."""
    found = [*replaced()]
    wrong = [
        f"{suite}: {file} has {old!r} {count} times"
        for suite, file, old in found
        if (count := (ROOT / file).read_text().count(old)) != 1
    ]
    assert wrong == []
    assert len(found) > 10
