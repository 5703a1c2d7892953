"""Positions among a million waiters cost what they cost among a thousand: measured.

Brings up a Valkey of its own, as `onsale up` runs it, and two events that differ in the length of
their waiting lists alone; a tenth of the waiters has left from the middle of each. Rounds are
interleaved (small, large, small, large, ...); what counts is the median of the rounds' ratios.

    .venv/bin/python loadtests/bench_positions.py [--large 1000000] [--rounds 9] [--calls 1000]

Exits 1 when a position among the many takes more than 1.2 times what it takes among the few.
"""

import argparse
import asyncio
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import redis

from service.embedded import EmbeddedValkey
from service.keys import event_keys, events_key, partition_keys
from service.lineage import NOWHERE, Position
from service.redis_store import RedisStore
from service.rundir import RunDirectory, make_sockets, remove_sockets
from service.scripts import serving_scripts

SMALL = 1_000
BATCH = 256
LIMIT = 1.2
FOREVER = 2**52
UNBOUNDED = str(2**52)


@dataclass
class Event:
    """One sold-out event with a waiting list, and who stands in it."""

    event_id: int
    client: Any
    numbers: Iterator[int]
    waiters: list[str] = field(default_factory=list)
    booked: list[str] = field(default_factory=list)
    joined: int = 0

    def call(self, script: str, *users: str) -> list[str]:
        """Call a script for users of this event; return the words behind the reply's header."""
        keys: list[str] = [*partition_keys(0), *event_keys(0, self.event_id)]
        keyed = [] if script == "read" else [""]
        items = [word for user in users for word in ("1", user, *keyed)]
        head = [f"bench:{script}", str(next(self.numbers)), str(FOREVER), UNBOUNDED, "0"]
        if script == "read":
            keys, head = [partition_keys(0).meta, *event_keys(0, self.event_id)], []
        sha = serving_scripts(0, 1)[script].sha
        reply = self.client.evalsha(sha, len(keys), *keys, *head, "1", str(self.event_id), *items)
        assert reply[0] == "OK", reply
        return list(reply[5:])

    def open(self, tickets: int) -> None:
        """Open the event."""
        keys = [*partition_keys(0), *event_keys(0, self.event_id), events_key(0)]
        arguments = ["bench:open_event", str(next(self.numbers)), str(FOREVER), UNBOUNDED, "0", "1"]
        arguments += [str(self.event_id), "1", str(tickets), "Bench", "{}"]
        self.client.evalsha(serving_scripts(0, 1)["open_event"].sha, len(keys), *keys, *arguments)

    def fill(self, tickets: int, waiters: int) -> None:
        """Sell all tickets, let so many wait, and every tenth leave."""
        self.open(tickets)
        users = [f"u{number}" for number in range(tickets + waiters)]
        for start in range(0, len(users), BATCH):
            self.call("book", *users[start : start + BATCH])
        self.booked, self.waiters = users[:tickets], users[tickets:]
        # Not from the head, and not in runs: what is measured is a list with holes everywhere.
        gone = random.sample(self.waiters[waiters // 10 :], waiters // 10)
        for start in range(0, len(gone), BATCH):
            self.call("cancel", *gone[start : start + BATCH])
        left = set(gone)
        self.waiters = [user for user in self.waiters if user not in left]

    # Who calls next; chosen outside of the time that is measured.

    def anybody(self) -> str:
        """Return somebody from the second half of the line."""
        return self.waiters[random.randrange(len(self.waiters) // 2, len(self.waiters))]

    def newcomer(self) -> str:
        """Return somebody who was never there."""
        self.joined += 1
        return f"late{self.joined}"

    def leaver(self) -> str:
        """Return somebody from the middle, who will be gone."""
        return self.waiters.pop(len(self.waiters) // 2)

    def holder(self) -> str:
        """Return a holder of a ticket, which the head of the line will get."""
        return self.booked.pop()


OPERATIONS: dict[str, tuple[Callable[[Event], str], str, str, float]] = {
    "position of a waiter": (Event.anybody, "read", "FOUND", 1.0),
    "join the waiting list": (Event.newcomer, "book", "WAITING", 0.3),
    "leave the waiting list": (Event.leaver, "cancel", "LEFT", 0.02),
    "cancel and promote": (Event.holder, "cancel", "CANCELLED", 0.05),
}
"""Who calls what, its outcome, and its share of the calls: the small list must not be used up."""


@contextmanager
def valkey() -> Iterator[tuple[Any, str]]:
    """Run a Valkey with a partition that is open in epoch 1."""
    with tempfile.TemporaryDirectory() as directory:
        run = RunDirectory(Path(directory))
        run.acquire()
        sockets = make_sockets(run.data)
        server = EmbeddedValkey(run, sockets)
        asyncio.run(server.prepare())
        assert server.role is not None
        process = subprocess.Popen(server.role.argv, stdout=subprocess.DEVNULL)
        try:
            client: Any = redis.Redis.from_url(server.url, decode_responses=True)
            _await_answer(client)
            asyncio.run(_open_partition(server.url))
            yield client, asyncio.run(server.probe())
        finally:
            process.terminate()
            process.wait()
            remove_sockets(sockets)
            run.release()


def _await_answer(client: Any) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


async def _open_partition(url: str) -> None:
    store = RedisStore(url)
    await store.close(0, None, "1 bench")
    await store.load_scripts(0, 1)
    await store.begin_epoch(0, "1 bench", Position(1, 0), 0, NOWHERE, frozen=())
    await store.aclose()


def measure(
    event: Event, choose: Callable[[Event], str], script: str, outcome: str, calls: int
) -> float:
    """Return the median time of one call, in microseconds."""
    times = []
    for _ in range(calls):
        user = choose(event)
        before = time.perf_counter()
        words = event.call(script, user)
        times.append(time.perf_counter() - before)
        assert words[0] == outcome, words
    return median(times) * 1e6


def main() -> int:
    """Fill, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--large", type=int, default=1_000_000, metavar="WAITERS")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=1_000)
    chosen = parser.parse_args()
    with valkey() as (client, version):
        numbers = iter(range(1, sys.maxsize))
        small, large = (Event(place, client, numbers) for place in (1, 2))
        tickets = chosen.rounds * chosen.calls
        print(f"{version}, Python {platform.python_version()}, {chosen.rounds} rounds of")
        print(
            f"{chosen.calls} calls; filling {SMALL:,} and {chosen.large:,} waiters ...", flush=True
        )
        small.fill(tickets, SMALL)
        large.fill(tickets, chosen.large)
        print(f"\n| one call of | {SMALL:,} waiters | {chosen.large:,} waiters | ratio (spread) |")
        print("|---|---|---|---|")
        position_ratio = 0.0
        for name, (choose, script, outcome, share) in OPERATIONS.items():
            calls = max(20, int(chosen.calls * share))
            rounds = [
                (
                    measure(small, choose, script, outcome, calls),
                    measure(large, choose, script, outcome, calls),
                )
                for _ in range(chosen.rounds)
            ]
            ratios = sorted(many / few for few, many in rounds)
            few, many = (median(times) for times in zip(*rounds, strict=True))
            print(
                f"| {name} | {few:.0f} µs | {many:.0f} µs"
                f" | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
            )
            position_ratio = position_ratio or median(ratios)
    verdict = "holds" if position_ratio <= LIMIT else "DOES NOT HOLD"
    print(f"\nAt most {LIMIT} times for a position: {verdict}.")
    return int(position_ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
