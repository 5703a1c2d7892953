"""Every test claims something, and looks whether it is so."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

LOOKS = {"raises", "fail", "warns", "validate", "run_state_machine_as_test"}
"""What raises by itself when the claim is false."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


# Not at import: each process of a run would parse all of tests/ while it collects.
@cache
def functions() -> dict[str, list[Function]]:
    """Return every function in tests/, by name."""
    found: dict[str, list[Function]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(), path)):
            if isinstance(node, Function):
                found.setdefault(node.name, []).append(node)
    return found


def every_test() -> Iterator[tuple[str, Function]]:
    """Yield every test with its name."""
    for name, found in functions().items():
        if name.startswith("test_"):
            yield from ((name, function) for function in found)


def looks(function: Function, depth: int = 3) -> bool:
    """Whether a function asserts, expects an exception, or calls one in tests/ that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in LOOKS:
                return True
            if depth and any(looks(other, depth - 1) for other in functions().get(called, ())):
                return True
    return False


def test_every_test_has_a_claim() -> None:
    """Its docstring is a sentence that can be false."""
    without = [
        name for name, function in every_test() if "." not in (ast.get_docstring(function) or "")
    ]
    assert not without, "say in a sentence what each of these claims"


def test_every_test_looks() -> None:
    """It asserts, or expects an exception, by itself or through a helper of the tests."""
    blind = [name for name, function in every_test() if not looks(function)]
    assert not blind, "these can only fail by accident"


def test_every_restore_is_run() -> None:
    """`make test` has a point of each, though the fault suite chooses among the same tests."""
    environment = {
        name: text for name, text in os.environ.items() if "ONSALE_TEST_TORTURE" not in name
    }
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/restores"],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    last = found.stdout.splitlines()[-1]
    assert "deselected" not in last
    assert int(last.split()[0]) >= 11


def test_no_two_tests_of_a_file_share_a_name() -> None:
    """The second would hide the first."""
    for path in TESTS.rglob("test_*.py"):
        names = [
            node.name for node in ast.parse(path.read_text()).body if isinstance(node, Function)
        ]
        assert len(names) == len(set(names)), path
