"""The scripts on a real Valkey against the reference model: long random sequences of calls."""

import pytest
from hypothesis import settings

from tests.lua.harness import Backend
from tests.lua.test_stateful import SETTINGS, run
from tests.torture import scores
from tests.torture.faults import in_one_sale
from tests.torture.scores import Score

STEPS = 50


@pytest.mark.timeout(1_200)
@pytest.mark.torture("calls_at_random")
def test_scripts_do_what_the_model_does(empty_valkey: str, seed: int) -> None:
    """No sequence of calls tells scripts and model apart: the test fails with the shortest one."""
    examples = in_one_sale("calls_at_random")
    chosen = settings(
        SETTINGS, max_examples=examples, stateful_step_count=STEPS, database=None, print_blob=False
    )
    run(Backend.valkey(empty_valkey), chosen, chance=seed)
    scores.note(Score("calls_at_random", seed, examples, examples * STEPS))
