"""What one item of a script call costs Valkey, by how many share the call: measured.

Brings up a Valkey of its own, as `onsale up` runs it. Calls come fifty at once, so that what is
measured is Valkey and not whoever calls: its own time per item, from `INFO commandstats`, without
the fsync and the socket. Rounds go through all operations and sizes in turn; medians.

    .venv/bin/python loadtests/bench_scripts.py [--rounds 5] [--items 20000]
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from typing import Any

from loadtests.bench_positions import FOREVER, UNBOUNDED, valkey
from service.keys import event_keys, events_key, partition_keys
from service.scripts import serving_scripts

SIZES = (1, 4, 16, 32, 64, 128, 256)
AT_ONCE = 50
EVENTS = 1_000
KNOWN = 256
PLENTY = "10000000"

Item = tuple[int, str]


class Bench:
    """A partition, and events in it that are opened as they are needed."""

    def __init__(self, client: Any) -> None:
        """Take a Valkey with an open partition."""
        self._client = client
        self._numbers = count(1)
        self._events = count(1)
        self._users = (f"user-{number}" for number in count(1))

    def opened(self, tickets: str) -> int:
        """Open an event; return its id."""
        event_id = next(self._events)
        self._run([self._command("open_event", [event_id], [tickets, "Bench", "{}"])])
        return event_id

    def strangers(self, items: int) -> list[str]:
        """Return users who were never there."""
        return [next(self._users) for _ in range(items)]

    def us_per_item(self, script: str, items: list[Item], size: int) -> float:
        """Call a script for all items, so many a call; return Valkey's time, microseconds."""
        calls = [items[start : start + size] for start in range(0, len(items), size)]
        commands = [self._call(script, call) for call in calls]
        self._client.config_resetstat()
        for start in range(0, len(commands), AT_ONCE):
            self._run(commands[start : start + AT_ONCE])
        used: int = self._client.info("commandstats")["cmdstat_evalsha"]["usec"]
        self._client.xtrim(partition_keys(0).outbox, maxlen=1)
        return used / len(items)

    def book(self, items: list[Item]) -> None:
        """Book, unmeasured."""
        for start in range(0, len(items), 128):
            self._run([self._call("book", items[start : start + 128])])

    def _call(self, script: str, items: list[Item]) -> list[Any]:
        ids = list(dict.fromkeys(event_id for event_id, _ in items))
        places = {event_id: place for place, event_id in enumerate(ids, start=1)}
        words = [word for event_id, user in items for word in (places[event_id], user, "")]
        return self._command(script, ids, words, placed=True)

    def _command(
        self, script: str, ids: list[int], words: list[Any], *, placed: bool = False
    ) -> list[Any]:
        keys = [*partition_keys(0), *(key for one in ids for key in event_keys(0, one))]
        keys += [events_key(0)] if script == "open_event" else []
        head = [f"bench:{script}", next(self._numbers), FOREVER, UNBOUNDED, "0", len(ids), *ids]
        words = words if placed else ["1", *words]
        return ["EVALSHA", serving_scripts(0, 1)[script].sha, len(keys), *keys, *head, *words]

    def _run(self, commands: list[list[Any]]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        for reply in pipeline.execute():
            assert reply[0] == "OK", reply[:5]


def book(bench: Bench, items: int, size: int) -> float:
    """Book one event, each for a stranger."""
    event_id = bench.opened(PLENTY)
    return bench.us_per_item("book", [(event_id, u) for u in bench.strangers(items)], size)


def wait(bench: Bench, items: int, size: int) -> float:
    """Book a sold-out event: who asks joins the waiting list."""
    event_id = bench.opened("1")
    bench.book([(event_id, user) for user in bench.strangers(1)])
    return bench.us_per_item("book", [(event_id, u) for u in bench.strangers(items)], size)


def again(bench: Bench, items: int, size: int) -> float:
    """Book for those who have booked: nothing is changed."""
    event_id = bench.opened(PLENTY)
    known = [(event_id, user) for user in bench.strangers(KNOWN)]
    bench.book(known)
    return bench.us_per_item("book", [known[i % KNOWN] for i in range(items)], size)


def cancel(bench: Bench, items: int, size: int) -> float:
    """Cancel where nobody waits."""
    event_id = bench.opened(PLENTY)
    booked = [(event_id, user) for user in bench.strangers(items)]
    bench.book(booked)
    return bench.us_per_item("cancel", booked, size)


def many(bench: Bench, items: int, size: int) -> float:
    """Book for strangers, each at an event of its own within the call."""
    events = [bench.opened(PLENTY) for _ in range(EVENTS)]
    users = bench.strangers(items)
    return bench.us_per_item("book", [(events[i % EVENTS], u) for i, u in enumerate(users)], size)


OPERATIONS: tuple[Callable[[Bench, int, int], float], ...] = (book, wait, again, cancel, many)


def rows(client: Any, rounds: int, items: int) -> Iterator[str]:
    """Measure; yield a row for each operation."""
    bench = Bench(client)
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for operation in OPERATIONS:
            for size in SIZES:
                each = operation(bench, max(items * size // SIZES[-1], 100 * size), size)
                found.setdefault((operation.__name__, size), []).append(each)
    for operation in OPERATIONS:
        cells = [f"{median(found[operation.__name__, size]):.1f}" for size in SIZES]
        yield f"| {(operation.__doc__ or '').rstrip('.')} | {' | '.join(cells)} |"


def main() -> int:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=20_000)
    chosen = parser.parse_args()
    with valkey() as (client, version):
        print(f"{version}; µs of Valkey per item, medians of {chosen.rounds} rounds\n")
        print(f"| items in a call | {' | '.join(str(size) for size in SIZES)} |")
        print("|---|" + "---|" * len(SIZES))
        for row in rows(client, chosen.rounds, chosen.items):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
