"""The lists of mutants can be run, and leave no rule of the protocol out: see tests/mutants."""

import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.lists import Mutant, mistakes, read
from tests.mutants.trial import Told, end_all_in, judge

RULES = range(1, 27)

WAITING = {
    22: "comes with the cluster",
}
"""Rules without a mutant, and why. One that has got its mutants goes from here."""

MUTANTS = read()


def test_every_mutant_can_be_applied() -> None:
    """What each replaces is there once, the result compiles, and its tests exist."""
    found = {f"{m.part}: {m.name}": mistakes(m) for m in MUTANTS}
    wrong = {name: said for name, said in found.items() if said}
    assert not wrong, "the code has moved on: keep what the mutant breaks, and its text"


def test_every_mutant_has_a_name_of_its_own() -> None:
    """`make mutants NAME=...` can pick one."""
    assert not [name for name, times in Counter(m.name for m in MUTANTS).items() if times > 1]


def test_every_rule_has_a_mutant_or_a_reason() -> None:
    """No rule of the protocol is without a negative control, and none waits that has one."""
    covered = {mutant.rule for mutant in MUTANTS}
    assert covered - {0} <= set(RULES)
    assert set(RULES) - covered == WAITING.keys(), "mend WAITING, or write the mutant"


SOUND = Mutant("part", "name", 1, "a.py", "if x:", "if y:", ("test_a.py::test_it",))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree in which that mutant can be applied."""
    (tmp_path / "a.py").write_text("if x:\n    pass\n")
    (tmp_path / "a.lua").write_text("#!lua\nif x then return end\n")
    (tmp_path / "test_a.py").write_text("def test_it():\n    pass\n")
    return tmp_path


def _changed(**fields: object) -> Mutant:
    values = {name: getattr(SOUND, name) for name in Mutant.__slots__}
    return Mutant(**{**values, **fields})


@pytest.mark.parametrize(
    ("mutant", "says"),
    [
        (SOUND, ""),
        (_changed(file="b.py"), "there is no b.py"),
        (_changed(old="if z:"), "occurs 0 times"),
        (_changed(old="s"), "occurs 2 times"),
        (_changed(new="if x:"), "it changes nothing"),
        (_changed(new="if y"), "does not compile"),
        (_changed(file="a.lua", old="x then", new="y then"), ""),
        (_changed(file="a.lua", old="x then", new="y the"), "does not compile"),
        (_changed(tests=("test_b.py",)), "there is no test_b.py"),
        (_changed(tests=("test_a.py::test_other",)), "there is no test_other"),
        (_changed(tests=("test_a.py::test_it::test_it",)), "there is no test_it"),
        (_changed(tests=("test_a.py::test_it[x]",)), ""),
    ],
)
def test_a_mutant_that_cannot_be_run_is_named(tree: Path, mutant: Mutant, says: str) -> None:
    """A check of the lists that found nothing would be no check."""
    found = mistakes(mutant, tree)
    assert len(found) == bool(says)
    assert says in "".join(found)


@pytest.mark.parametrize(
    ("code", "text", "hangs_s", "is_caught"),
    [
        (1, "FAILED test_a.py::test_it - assert 1 == 2", 0, True),
        (1, "E   TimeoutError", 0, True),
        (0, "1 passed", 0, False),
        (2, "ERROR test_a.py - SyntaxError", 0, False),
        (4, "ERROR: not found", 0, False),
        (5, "no tests ran", 0, False),
        (1, "E   NameError: name 'y' is not defined", 0, False),
        (1, "asyncpg.exceptions.PostgresSyntaxError: syntax error", 0, False),
        (1, "E   redis.exceptions.ResponseError: Error compiling script", 0, False),
        (None, "", 0, False),
        (None, "", 20, True),
        (0, "1 passed", 20, False),
        (1, "E   assert 1 == 2", 20, False),
    ],
)
def test_only_a_test_that_ran_and_failed_has_caught_a_mutant(
    code: int | None, text: str, hangs_s: int, is_caught: bool
) -> None:
    """What cannot be collected or is no code does not count; to hang does where it is stated."""
    assert judge(_changed(hangs_s=hangs_s), Told(code, "test_it", text, 1.0)).caught == is_caught


def test_whatever_still_works_in_a_trial_is_ended(tmp_path: Path) -> None:
    """Also what is stopped, or has a session of its own; not what works elsewhere."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    processes = []
    for directory in (inside / "data", outside):
        directory.mkdir(parents=True)
        command = ("sleep", "60")
        processes.append(subprocess.Popen(command, cwd=directory, start_new_session=True))
    left, kept = processes
    try:
        left.send_signal(signal.SIGSTOP)
        end_all_in(inside)
        # Where a shell without job control started the tests, interrupts are ignored.
        assert left.wait(timeout=10) in (-signal.SIGINT, -signal.SIGKILL)
        assert kept.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()
