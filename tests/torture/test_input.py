"""Input at random, in the numbers of the fault suite; the tests themselves are `make test`'s."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture import scores
from tests.torture.faults import in_one_sale
from tests.torture.scores import Score

ROOT = Path(__file__).resolve().parents[2]
BYTES = "tests/unit/test_any_http.py::test_any_bytes_are_requests_or_refused"
DOCUMENT = "tests/http/test_schema.py::test_the_service_is_as_its_document_says"
PER_OPERATION = 250
"""That test makes one example per operation of so many."""


@pytest.mark.timeout(600)
@pytest.mark.torture("bytes_at_random")
def test_any_bytes(seed: int) -> None:
    """They are requests or refused, and never a failure."""
    each = in_one_sale("bytes_at_random")
    _run(BYTES, each, seed * each)
    scores.note(Score("bytes_at_random", seed, each, 0))


@pytest.mark.timeout(600)
@pytest.mark.torture("document_at_random")
def test_any_request_of_the_document(seed: int) -> None:
    """It is answered as the service's own document says, and never with a failure."""
    each = in_one_sale("document_at_random")
    _run(DOCUMENT, each * PER_OPERATION, seed + 1)
    scores.note(Score("document_at_random", seed, each, 0))


def _run(test: str, examples: int, first: int) -> None:
    """Run one test in a pytest of its own, whose numbers come from the environment."""
    ended = subprocess.run(
        (sys.executable, "-m", "pytest", "-q", "-o", "timeout=0", "-p", "no:cacheprovider", test),
        cwd=ROOT,
        env={
            **{name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")},
            "ONSALE_TEST_EXAMPLES": str(examples),
            "ONSALE_TEST_SEED": str(first),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-8_000:]
