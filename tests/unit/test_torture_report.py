"""The fault suite's report says what was done, and what it did not come to."""

from pathlib import Path

import pytest

from tests.torture import faults
from tests.torture import scores as noted
from tests.torture.report import by_commit, controls, left, lines, shortfalls, table
from tests.torture.scores import Score

NAME = "valkey_killed"


def test_sales_of_a_fault_are_one_line() -> None:
    """Runs and operations are summed, seeds and recovery are told, the control's verdict is."""
    found = lines(
        [
            Score(NAME, 0, 20, 2_000, measured=[0.1, 0.2]),
            Score(NAME, 1, 20, 1_000, measured=[1.5]),
            Score(NAME, 0, 20, 900, ["x\n | y"], control=True),
        ]
    )
    cells = table(found).splitlines()[2].split(" | ")
    assert cells[2:] == [
        *("40", "0 to 1", "3,000", "0", "0.20 s, at most 1.5 s"),
        f"{faults.FAULTS[NAME].control}: 1 of 1 found |",
    ]
    assert controls(found).splitlines()[2:] == [f"| {faults.FAULTS[NAME].title} | x \\| y |"]
    assert shortfalls(found, {NAME: 40}) == []


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([Score(NAME, 0, 20, 10)], [f"{NAME}: 20 of 40 runs"]),
        ([], [f"{NAME}: 0 of 40 runs"]),
        ([Score(NAME, 0, 40, 10, ["lost one"])], [f"{NAME}: lost one"]),
        (
            [Score(NAME, 0, 40, 10), Score(NAME, 0, 20, 10, control=True)],
            [f"{NAME}: the negative control found nothing"],
        ),
    ],
)
def test_what_a_run_did_not_come_to_is_said(scores: list[Score], says: list[str]) -> None:
    """Too few runs, a wrong answer, or a control that saw nothing."""
    assert shortfalls(lines(scores), {NAME: 40}) == says


def test_counts_come_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that is named is done alone; a count comes before the kind of run."""
    monkeypatch.setenv("ONSALE_TEST_TORTURE", f"full {NAME}=7")
    assert faults.chosen() == {NAME}
    assert faults.counts()[NAME] == 7
    assert faults.counts()["valkey_wiped"] == faults.FAULTS["valkey_wiped"].full
    monkeypatch.setenv("ONSALE_TEST_TORTURE", "brief")
    assert faults.chosen() == {name for name, fault in faults.FAULTS.items() if fault.brief}
    assert faults.counts()[NAME] == faults.FAULTS[NAME].brief


@pytest.mark.parametrize("word", ["valkey_kiled", f"{NAME}=some", f"{NAME}=0", f"{NAME}=-1"])
def test_what_is_no_fault_or_count_is_refused(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """A name that is misspelt does not run everything else."""
    monkeypatch.setenv("ONSALE_TEST_TORTURE", f"brief {word}")
    with pytest.raises(ValueError, match="is no fault"):
        faults.counts()


def test_a_run_goes_on_with_what_it_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is whole and right is kept, with its commit; the rest is done anew, all of it."""
    path = tmp_path / "scores.jsonl"
    monkeypatch.setenv(noted.VARIABLE, str(path))
    monkeypatch.setenv(noted.COMMIT, "abc1234")
    noted.note(Score("valkey_killed", 0, 20, 1_000))
    noted.note(Score("api_killed", 0, 20, 1_000))
    noted.note(Score("api_killed", 1, 20, 1_000, ["something is wrong"]))
    noted.note(Score("power_lost", 0, 10, 1_000))
    noted.note(Score("power_lost", 0, 10, 1_000, control=True))
    asked = {"valkey_killed": 20, "api_killed": 40, "power_lost": 10, "writer_killed": 5}
    assert left(lines(noted.read(path)), asked) == ["api_killed", "power_lost", "writer_killed"]
    noted.keep(path, [one for one in noted.read(path) if one.fault == "valkey_killed"])
    monkeypatch.setenv(noted.COMMIT, "def5678")
    noted.note(Score("api_killed", 0, 40, 1_000))
    found = lines(noted.read(path))
    assert left(found, asked) == ["power_lost", "writer_killed"]
    assert by_commit(found) == {"abc1234": ["valkey_killed"], "def5678": ["api_killed"]}
