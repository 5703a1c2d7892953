"""What is done to a running service, and how often: the list that the report is made of.

`ONSALE_TORTURE` says how much of it: `full`, `brief`, or counts by name, `valkey_killed=40`, which
come before either. `ONSALE_TEST_SEED` takes one seed alone. What a sale does follows from its seed;
when the processes do their part does not.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One kind of fault: `each` of them in one sale, `full` in a whole run, `brief` in CI's.

    `workload` is what goes on meanwhile. `control` says what is broken in the negative control, in
    which the same checks must find something.
    """

    name: str
    title: str
    workload: str
    each: int
    full: int
    brief: int
    control: str = ""


SALE = "8 people book, cancel and look at 5 events, under keys"

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            "valkey_killed",
            "kill -9 of Valkey",
            SALE,
            each=20,
            full=200,
            brief=40,
            control="people repeat without a key",
        ),
    )
}


def counts() -> dict[str, int]:
    """Return how many of each fault this run does. Raises ValueError for what is no count."""
    words = os.environ.get("ONSALE_TORTURE", "brief").split()
    found = {name: fault.full if "full" in words else fault.brief for name, fault in FAULTS.items()}
    for word in words:
        if word not in ("full", "brief"):
            name, _, count = word.partition("=")
            if name not in FAULTS or not count.isdigit():
                msg = f"ONSALE_TORTURE: {word} is no fault with a count"
                raise ValueError(msg)
            found[name] = int(count)
    return found


def seeds(name: str) -> Iterator[int]:
    """Yield the seed of each sale in which this fault is done."""
    if seed := os.environ.get("ONSALE_TEST_SEED"):
        yield int(seed)
    else:
        yield from range(-(-counts()[name] // FAULTS[name].each))
