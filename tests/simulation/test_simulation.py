"""Some worlds of the simulation, and that it catches what it is for."""

import os
import subprocess
import sys

import pytest

from tests.simulation.campaign import Summary, catch, run_chunk
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.runs import run_one, standing_in

FAULTS = frozenset({"kill_api", "kill_writer", "restart_redis", "stale_redis", "stale_postgres"})

DIGEST = """
from tests.simulation.runs import run_one, standing_in
with standing_in():
    print([run_one(seed).digest for seed in range(4)])
"""


@pytest.fixture(scope="module")
def summary() -> Summary:
    """What the first worlds come to."""
    return run_chunk(range(200))


def test_every_promise_holds_in_every_world(summary: Summary) -> None:
    """Whatever is killed, frozen, cut off, wiped or put back; none stays closed for ever."""
    assert [(f.seed, f.invariant, f.says) for f in summary.violations] == []
    assert summary.stayed_closed == 0


def test_the_worlds_are_not_empty(summary: Summary) -> None:
    """People are answered, changes are recorded, and the faults that matter strike."""
    assert summary.answers > 10 * summary.seeds
    assert summary.changes > 5 * summary.seeds
    assert all(summary.faults[kind] > 10 for kind in FAULTS)


@pytest.mark.parametrize("hashes", ["0", "1", "77"])
def test_a_seed_does_the_same_everywhere(hashes: str) -> None:
    """In this process and in another, whatever the order in which hashes are made there."""
    with standing_in():
        here = [run_one(seed).digest for seed in range(4)]
    told = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={**os.environ, "PYTHONHASHSEED": hashes},
        capture_output=True,
        check=True,
        text=True,
    )
    assert told.stdout.strip() == str(here)


def test_seeds_differ() -> None:
    """Each is a world of its own."""
    with standing_in():
        assert len({run_one(seed).digest for seed in range(20)}) == 20


def test_a_trace_changes_nothing() -> None:
    """A seed that failed does the same when it is looked at."""
    with standing_in():
        plain, traced = run_one(7), run_one(7, traced=True)
    assert plain.digest == traced.digest
    assert len(traced.trace) > 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_broken_variant_is_caught(mutant: Mutant) -> None:
    """Each of the twelve, by some invariant; the sound code is not, in the same worlds."""
    caught = catch(mutant.name, range(mutant.shown_by, mutant.shown_by + 2_000))
    assert caught.seed is not None
    assert run_chunk([caught.seed], mutant.focus).violations == ()
