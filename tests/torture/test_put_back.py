"""The negative control of the stores that come back older (`tests/restores`).

With each protection taken out of a copy of the tree, the same points must fail.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants.lists import Mutant, read
from tests.mutants.trial import copy_tree, end_all_in, try_one
from tests.torture import scores
from tests.torture.scores import Score

MUTANTS = [mutant for mutant in read() if mutant.part == "restores"]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A directory whose processes are ended with the test."""
    try:
        yield tmp_path
    finally:
        end_all_in(tmp_path)


@pytest.mark.timeout(400)
@pytest.mark.torture("valkey_wiped")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_control_of_stores_put_back(room: Path, mutant: Mutant) -> None:
    """A service without this protection does not end consistent, or loses what it promised."""
    copy_tree(room / "sound" / "tree")
    trial = try_one(mutant, room / "sound" / "tree", room / "broken")
    found = [f"{mutant.name}: {trial.by}"] if trial.caught else []
    scores.note(Score("valkey_wiped", 0, 0, 0, found, control=True))
    assert trial.caught, trial.by
