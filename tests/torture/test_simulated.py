"""The protocol's own code in simulated worlds (`tests/simulation`), in the suite's numbers."""

import pytest

from tests.simulation.campaign import CHUNK, catch, run_chunk
from tests.simulation.mutants import MUTANTS, Mutant
from tests.torture import scores
from tests.torture.faults import in_one_sale
from tests.torture.scores import Score


@pytest.mark.timeout(600)
@pytest.mark.torture("simulation")
def test_every_promise_holds_in_every_world(seed: int) -> None:
    """Whatever is killed, frozen, cut off, wiped or put back, between any two awaits."""
    each = in_one_sale("simulation")
    worlds = range(seed * each, (seed + 1) * each)
    parts = [run_chunk(worlds[at : at + CHUNK]) for at in range(0, each, CHUNK)]
    wrong = [f"seed {f.seed}: {f.says}" for part in parts for f in part.violations]
    answers = sum(part.answers for part in parts)
    scores.note(Score("simulation", seed, sum(part.seeds for part in parts), answers, wrong))
    assert not wrong


@pytest.mark.timeout(600)
@pytest.mark.torture("simulation")
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_control_of_the_simulation(mutant: Mutant) -> None:
    """A broken variant of the protocol breaks a promise in some world."""
    caught = catch(mutant.name)
    found = [f"{mutant.name}: seed {caught.seed}, {caught.invariant}"] if caught.invariant else []
    scores.note(Score("simulation", 0, 0, 0, found, control=True))
    assert found
