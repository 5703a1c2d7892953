"""Examples that Hypothesis tries: a fifth in `make test`, all in `make examples`."""

import os

_CHOSEN = int(os.environ.get("ONSALE_TEST_EXAMPLES") or 5_000)
"""`make examples` has 25,000."""


def examples(number: int) -> int:
    """Return how many of so many this run tries, one at least."""
    return max(number * _CHOSEN // 25_000, 1)
