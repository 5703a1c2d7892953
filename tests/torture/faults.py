"""What is done to a running service, and how often: the list that the report is made of.

`ONSALE_TEST_TORTURE` says how much of it, in words: `full`; `brief`, without the negative controls;
a fault's name, for that one and others that are named alone; a name with a count,
`valkey_killed=40`, for so many of it.
`ONSALE_TEST_SEED` takes one seed alone. What a sale does follows from its seed; when the processes
do their part does not.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One kind of fault: `each` of them in one sale, `full` in a whole run, `brief` in CI's.

    Those of which CI's run has none are done by `make test`.

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


SCRIPTS = (
    "batches, reads, repeats, loads and epochs; every reply, change and stored key is compared"
)
SALE = "8 people book, cancel and look at 5 events, under keys"
POINT = (
    "8 people at one event, half of the sales at `recorded`; the writer behind at half the points"
)
RESTORES = "6 protections of these faults taken out one by one"

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            "valkey_killed",
            "kill -9 of Valkey",
            SALE,
            each=20,
            full=200,
            brief=20,
            control="keys are not remembered",
        ),
        Fault(
            "calls_at_random",
            "any sequence of calls of the scripts (Hypothesis)",
            SCRIPTS,
            each=100,
            full=2_000,
            brief=100,
            control="29 broken scripts (`tests/lua/test_stateful.py`)",
        ),
        Fault(
            "simulation",
            "simulated worlds: kills and freezes between any two awaits, stores that crash, are"
            " wiped or come back older, messages lost and late",
            "the real engine, handshake and writer over simulated stores, network and clock",
            each=500,
            full=10_000,
            brief=500,
            control="12 broken variants of the protocol",
        ),
        Fault(
            "bytes_at_random",
            "any bytes at the HTTP parser, cut anywhere",
            "sound requests of which some bytes are not as they were; the same bytes in one piece",
            each=10_000,
            full=50_000,
            brief=0,
            control="30 mutants, `make mutants NAME=http`",
        ),
        Fault(
            "document_at_random",
            "any request that the OpenAPI document allows or forbids (Schemathesis)",
            "examples per operation, in all phases, with all checks",
            each=200,
            full=200,
            brief=0,
            control="30 mutants, `make mutants NAME=http`",
        ),
        Fault("valkey_wiped", "FLUSHALL", POINT, 2, 20, 0, RESTORES),
        Fault("valkey_older", "Valkey restored from a copy of the same epoch", POINT, 2, 10, 0),
        Fault("valkey_of_an_older_epoch", "… of an older epoch", POINT, 2, 10, 0),
        Fault("postgresql_older", "PostgreSQL restored from a copy", POINT, 2, 10, 0),
        Fault("postgresql_of_an_older_epoch", "… that lacks epochs", POINT, 2, 10, 0),
        Fault("postgresql_cut_off", "… that the outbox does not lead on from", POINT, 1, 10, 0),
        Fault(
            "power_lost",
            "power loss: files cut back to what was synced, in rewrites and with everything else",
            SALE,
            each=10,
            full=50,
            brief=5,
            control="appendfsync everysec",
        ),
        Fault(
            "file_cut",
            "Valkey's file cut at a random byte, and one of ten such files served with the record",
            f"a finished sale: {SALE}",
            each=10,
            full=100,
            brief=5,
            control="the file without its MULTI and EXEC; the stores not compared",
        ),
        Fault(
            "valkey_disk_full",
            "no room for Valkey's file, twice in a row",
            SALE,
            each=5,
            full=20,
            brief=2,
            control="appendfsync everysec",
        ),
        Fault(
            "postgresql_disk_full",
            "no room for PostgreSQL's tables, or for its WAL",
            SALE,
            each=5,
            full=20,
            brief=2,
            control="a writer that does not try again",
        ),
        Fault(
            "memory_full",
            "Valkey's maxmemory is reached",
            SALE,
            each=10,
            full=20,
            brief=4,
            control="scripts that begin without memory, and pass over what is refused",
        ),
        Fault(
            "clocks_moved",
            "clocks of Valkey, PostgreSQL and the service moved by an hour or a day, either way",
            SALE,
            each=10,
            full=40,
            brief=5,
            control="a worker that keeps to the difference of two clocks",
        ),
        Fault(
            "valkey_frozen",
            "SIGSTOP of Valkey for 5 s",
            f"{SALE}, and 100 requests a second beside",
            each=2,
            full=20,
            brief=1,
            control="a call that waits for its reply without end",
        ),
        Fault(
            "postgresql_frozen",
            "SIGSTOP of PostgreSQL for 5 s",
            f"{SALE}, and 100 requests a second beside",
            each=2,
            full=20,
            brief=1,
            control="an answer that waits for the record without end",
        ),
        Fault(
            "record_away",
            "PostgreSQL away until the bounds of what is not on record",
            "24 people at 5 events; bounds of 2 MiB for bookings, 3 MiB for cancellations",
            each=1,
            full=2,
            brief=1,
            control="bookings without a bound",
        ),
        Fault(
            "api_killed",
            "kill -9 of one of two API processes",
            SALE,
            each=20,
            full=100,
            brief=6,
            control="keys are not remembered",
        ),
        Fault(
            "writer_killed",
            "kill -9 of the writer before BEGIN, mid rows, before and after COMMIT, before the"
            " watermark, before the trim",
            SALE,
            each=40,
            full=200,
            brief=18,
            control="the watermark is raised, or the outbox trimmed, before COMMIT",
        ),
        Fault(
            "postgresql_killed",
            "kill -9 of PostgreSQL's first or of all its processes, or its immediate stop",
            SALE,
            each=10,
            full=50,
            brief=4,
            control="a commit's statements are no one transaction",
        ),
        Fault(
            "redis_replies_dropped",
            "replies lost or cut between API and Valkey; requests lost, cut or late",
            SALE,
            each=100,
            full=1000,
            brief=50,
            control="calls have no numbers",
        ),
        Fault(
            "http_replies_dropped",
            "replies lost or cut between people and API; requests lost, cut or late",
            SALE,
            each=100,
            full=1000,
            brief=50,
            control="keys are not remembered",
        ),
        Fault(
            "clients_hang_up",
            "clients that hang up at any byte of a request, or before the answer",
            SALE,
            each=500,
            full=5000,
            brief=300,
            control="a file is kept for each; leaving counts as a failure; people take another key",
        ),
        Fault(
            "zombie_writer",
            "one of two writers frozen for three seconds (SIGSTOP), and woken",
            SALE,
            each=5,
            full=20,
            brief=2,
            control="the cursor is not locked, and the journal takes a seq twice",
        ),
        Fault(
            "handshakes_at_once",
            "all scripts flushed, or Valkey killed: two API processes shake hands at once",
            SALE,
            each=25,
            full=100,
            brief=15,
            control="nothing is adopted",
        ),
        Fault(
            "handshake_frozen",
            "whoever shakes hands frozen at one of its steps, and woken behind another",
            SALE,
            each=5,
            full=20,
            brief=2,
            control="any token begins the epoch, and an older id is no obstacle",
        ),
        Fault(
            "handshake_killed",
            "kill -9 of whoever shakes hands, at one of its steps: between the stores at two",
            SALE,
            each=10,
            full=50,
            brief=5,
            control="what has been decided is not resumed",
        ),
        Fault(
            "swizzle",
            "all of it at random, up to two at once (in seconds)",
            SALE,
            each=60,
            full=600,
            brief=20,
            control="keys are not remembered",
        ),
    )
}


ASKED_FOR = "ONSALE_TEST_TORTURE" in os.environ
"""Whether counts were given: `tests/restores` has points of its own without."""


def _words() -> list[str]:
    return os.environ.get("ONSALE_TEST_TORTURE", "brief").split()


WITH_CONTROLS = _words() != ["brief"]
"""The controls belong to the whole run, and to faults that are named."""


def counts() -> dict[str, int]:
    """Return how many of each fault a run does. Raises ValueError for what is no fault or count."""
    words = _words()
    found = {name: f.full if "full" in words else f.brief for name, f in FAULTS.items()}
    for word in words:
        name, _, count = word.partition("=")
        if word in ("full", "brief"):
            continue
        if word in FAULTS:
            found[word] = found[word] or FAULTS[word].each
            continue
        if name not in FAULTS or not count.isdigit() or not int(count):
            msg = f"{word!r} is no fault, or no count of one; there are {', '.join(FAULTS)}"
            raise ValueError(msg)
        found[name] = int(count)
    return found


def chosen() -> set[str]:
    """Return the faults that a run does: those that are named, or all that it has a count for."""
    named = {word.partition("=")[0] for word in _words()} & {*FAULTS}
    return named or {name for name, count in counts().items() if count}


def in_one_sale(name: str) -> int:
    """Return how often a fault is done in each sale."""
    return min(FAULTS[name].each, counts()[name] or FAULTS[name].each)


def seeds(name: str) -> Iterator[int]:
    """Yield the seed of each sale in which this fault is done."""
    if seed := os.environ.get("ONSALE_TEST_SEED"):
        yield int(seed)
    else:
        yield from range(max(1, -(-counts()[name] // FAULTS[name].each)))
