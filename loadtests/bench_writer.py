"""What a change costs on its way into the record, beside COPY of the same rows: measured.

Brings up a Valkey and a PostgreSQL of its own, as `onsale up` runs them. A round fills the outbox
by the scripts (some changes an entry, as a busy service appends, then one an entry), has the real
writer catch up in a process of its own, and copies the same rows into a table with the journal's
columns, constraints and indexes. A writer with nothing to do is measured each round and taken off.
Then bookings come at a fixed rate, and the writer follows: what each change costs there, and when
it was on record. What counts is the median of the rounds.

    .venv/bin/python loadtests/bench_writer.py [--changes 48000] [--rounds 7] [--rate 15000]

`--following` leaves the first part out: what a change costs in steady state.

CPU time is user and system of all processes of a role, so that it says little of who else is there.
Exits 1 when catching up is slower than 0.4 of COPY, or the lag's p99 above 50 ms.
"""

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import asyncpg
import psutil
import redis
import uvloop

from service.app import make_writer, spare_the_collector
from service.embedded import EmbeddedPostgres, EmbeddedValkey, Store
from service.handshakes import make_handshakes, urls_of
from service.keys import event_keys, events_key, partition_keys
from service.metrics import Metrics
from service.migrations import migrate_up
from service.probes import NotReadyError
from service.redis_store import RedisStore
from service.rundir import RunDirectory, make_sockets, remove_sockets
from service.scripts import serving_scripts
from service.settings import Settings, load_settings

SQL = Path(__file__).parents[1] / "sql"
CATCH_UP = {16: 1.0, 1: 0.25}
"""Changes an entry, and the share of the changes that is written so."""

AN_ENTRY = 16
CALLS_MAX = 16
COPY_RATIO = 0.4
LAG_MS_MAX = 50.0
DETAILS = '{"name":"Bench","totalTickets":10000000}'
FOREVER = str(2**52)
NOT_READY = (NotReadyError, OSError, redis.ConnectionError)


class Spent(NamedTuple):
    """Seconds: of the clock, and of the processors by role."""

    wall: float
    writer: float
    postgresql: float
    valkey: float

    def less(self, other: "Spent") -> "Spent":
        """Return what is left when another run's time is taken off."""
        return Spent(*(mine - its for mine, its in zip(self, other, strict=True)))


@dataclass
class Stores:
    """Both servers, and one event that never sells out."""

    client: Any
    postgresql_url: str
    postgresql: psutil.Process
    valkey: psutil.Process
    users: Iterator[int]
    calls: Iterator[int]

    def book(self, pipeline: Any, people: int) -> None:
        """Have strangers book in one call."""
        words = [word for _ in range(people) for word in ("1", f"user-{next(self.users)}", "")]
        self._call(pipeline, "book", "1", "1", *words)

    def open(self) -> None:
        """Open the event."""
        self._call(self.client, "open_event", "1", "1", "1", "10000000", "Bench", DETAILS)

    def _call(self, client: Any, script: str, *arguments: str) -> None:
        keys = [*partition_keys(0), *event_keys(0, 1)]
        keys += [events_key(0)] if script == "open_event" else []
        head = [f"bench:{script}", str(next(self.calls)), FOREVER, FOREVER, "0"]
        sha = serving_scripts(0, 1)[script].sha
        reply = client.evalsha(sha, len(keys), *keys, *head, *arguments)
        assert client is not self.client or reply[0] == "OK", reply

    def fill(self, changes: int, an_entry: int) -> None:
        """Append so many changes to the outbox."""
        for start in range(0, changes, 100 * an_entry):
            with self.client.pipeline(transaction=False) as pipeline:
                for _ in range(start, min(changes, start + 100 * an_entry), an_entry):
                    self.book(pipeline, an_entry)
                assert all(reply[0] == "OK" for reply in pipeline.execute())

    def cpu(self) -> tuple[float, float]:
        """Return the CPU seconds of PostgreSQL, with those who have ended, and of Valkey."""
        spent = 0.0
        for process in (self.postgresql, *self.postgresql.children(recursive=True)):
            times = process.cpu_times()
            spent += times.user + times.system
        ended = self.postgresql.cpu_times()
        valkey = self.valkey.cpu_times()
        return spent + ended.children_user + ended.children_system, valkey.user + valkey.system


@contextmanager
def stores() -> Iterator[Stores]:
    """Run both servers, with a record in its first epoch and an event that is open."""
    with tempfile.TemporaryDirectory() as directory:
        run = RunDirectory(Path(directory))
        run.acquire()
        sockets = make_sockets(run.data)
        servers: list[Store] = [EmbeddedValkey(run, sockets), EmbeddedPostgres(run, sockets)]
        started = []
        try:
            for server in servers:
                asyncio.run(server.prepare())
                assert server.role is not None
                log = (run.data / f"{server.name}.log").open("wb")
                started.append(subprocess.Popen(server.role.argv, stdout=log, stderr=log))
                print(asyncio.run(_answers(server)), end=", ")
            valkey, postgresql = servers
            os.environ.update(REDIS_URL=valkey.url, DATABASE_URL=postgresql.url)
            os.environ.update(ONSALE_DATA_DIR=directory)
            asyncio.run(migrate_up(postgresql.url, SQL))
            asyncio.run(_first_epoch(load_settings()))
            client: Any = redis.Redis.from_url(valkey.url, decode_responses=True)
            processes = [psutil.Process(child.pid) for child in started]
            found = Stores(client, postgresql.url, processes[1], processes[0], count(1), count(1))
            found.open()
            yield found
        finally:
            for child in reversed(started):
                child.send_signal(2)
                child.wait()
            remove_sockets(sockets)
            run.release()


async def _answers(server: Store) -> str:
    async with asyncio.timeout(20):
        while True:
            try:
                return str(await server.probe())
            except NOT_READY:
                await asyncio.sleep(0.02)


async def _first_epoch(settings: Settings) -> None:
    store = RedisStore(urls_of(settings)[0])
    await make_handshakes(settings, store, "bench", Metrics())[0].run()
    await store.aclose()


def start_writer(*, drain: bool) -> int:
    """Return the pid of a writer that carries over what there is, or follows until it is told."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    spare_the_collector()
    try:
        code = 0 if uvloop.run(_write(drain=drain)) else 1
    finally:
        os._exit(code)


async def _write(*, drain: bool) -> bool:
    settings = load_settings()
    redis_store = RedisStore(urls_of(settings)[0])
    writer = make_writer(settings, redis_store)
    if drain:
        writer.drain()
    else:
        asyncio.get_running_loop().add_signal_handler(15, writer.drain)
    return await writer.run()


def catch_up(found: Stores) -> Spent:
    """Have a writer bring all that is there on record; return what that took."""
    postgresql, valkey = found.cpu()
    began = time.perf_counter()
    _, status, usage = os.wait4(start_writer(drain=True), 0)
    wall = time.perf_counter() - began
    assert status == 0, "the writer did not get to the end"
    after = found.cpu()
    writer = usage.ru_utime + usage.ru_stime
    return Spent(wall, writer, after[0] - postgresql, after[1] - valkey)


async def copy(found: Stores, rows: int) -> float:
    """Copy the journal's latest rows into a table like it; return the seconds it took."""
    connection = await asyncpg.connect(found.postgresql_url)
    try:
        await connection.execute("CREATE TABLE copied (LIKE journal INCLUDING ALL)")
        held = await connection.fetch("SELECT * FROM journal ORDER BY seq DESC LIMIT $1", rows)
        records = [tuple(row) for row in reversed(held)]
        began = time.perf_counter()
        await connection.copy_records_to_table("copied", records=records)
        took = time.perf_counter() - began
        await connection.execute("DROP TABLE copied")
        return took
    finally:
        await connection.close()


def follow(found: Stores, rate: int, seconds: float) -> tuple[Spent, list[float], int]:
    """Book at a rate while a writer follows.

    Returns what it spent, each entry's lag in ms, and how many changes there were. Valkey's share
    is not told from what the bookings cost.
    """
    meta = partition_keys(0).meta
    pid = start_writer(drain=False)
    time.sleep(1.0)  # its start is not what is measured
    writer, before = psutil.Process(pid), found.cpu()
    started = writer.cpu_times()
    waiting: list[tuple[int, float]] = []
    lags: list[float] = []
    calls, began = 0, time.perf_counter()
    while calls < int(seconds * rate / AN_ENTRY) or waiting:
        passed = min(seconds, time.perf_counter() - began)
        due = min(CALLS_MAX, int(passed * rate / AN_ENTRY) - calls)
        with found.client.pipeline(transaction=False) as pipeline:
            for _ in range(due):
                found.book(pipeline, AN_ENTRY)
            pipeline.hget(meta, "recorded")
            *replies, recorded = pipeline.execute()
        now = time.perf_counter()
        waiting += [(int(reply[2]), now) for reply in replies]
        calls += due
        lags += [1000 * (now - since) for seq, since in waiting if seq <= int(recorded)]
        waiting = [entry for entry in waiting if entry[0] > int(recorded)]
        time.sleep(0.001)
    changes = calls * AN_ENTRY
    ended, after = writer.cpu_times(), found.cpu()
    took = time.perf_counter() - began
    writer.terminate()
    os.waitpid(pid, 0)
    of_writer = ended.user + ended.system - started.user - started.system
    spent = Spent(took, of_writer, after[0] - before[0], after[1] - before[1])
    return spent, lags, changes


def _row(name: str, changes: int, rounds: Sequence[Spent], last: str) -> None:
    each = [[1e6 * spent[place] / changes for spent in rounds] for place in (1, 2, 3)]
    micros = " | ".join(f"{median(of_role):.1f}" for of_role in each)
    print(
        f"| {name} | {median(changes / spent.wall for spent in rounds):,.0f} | {micros} | {last} |"
    )


def measure_catching_up(found: Stores, changes: int, rounds: int) -> float:
    """Print what a change costs a writer that is behind; return the ratio to COPY."""
    ratios = {}
    for an_entry, share in CATCH_UP.items():
        wanted = int(changes * share)
        spent, copied = [], []
        for _ in range(rounds):
            idle = catch_up(found)
            found.fill(wanted, an_entry)
            spent.append(catch_up(found).less(idle))
            copied.append(asyncio.run(copy(found, wanted)))
        each = sorted(took / one.wall for one, took in zip(spent, copied, strict=True))
        ratios[an_entry] = median(each)
        last = f"{median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f}) of COPY's"
        last += f" {wanted / median(copied):,.0f}/s"
        _row(f"catching up, {an_entry} an entry", wanted, spent, last)
    return ratios[max(ratios)]


def main() -> int:
    """Fill, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--changes", type=int, default=48_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rate", type=int, default=15_000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--following", action="store_true", help="only the bookings at a rate")
    chosen = parser.parse_args()
    with stores() as found:
        print(f"Python {platform.python_version()}, {chosen.rounds} rounds\n")
        print(
            "| | changes/s | writer µs | PostgreSQL µs | Valkey µs | |\n|---|---|---|---|---|---|"
        )
        ratio = COPY_RATIO
        if not chosen.following:
            ratio = measure_catching_up(found, chosen.changes, chosen.rounds)
        runs = [follow(found, chosen.rate, chosen.seconds) for _ in range(chosen.rounds)]
        tails = sorted(quantiles(lags, n=100)[98] for _, lags, _ in runs)
        lag = f"lag p99 {median(tails):.0f} ms ({tails[0]:.0f} to {tails[-1]:.0f})"
        lag += f", p50 {median(median(lags) for _, lags, _ in runs):.0f}"
        _row("following", runs[0][2], [spent for spent, _, _ in runs], lag)
    holds = ratio >= COPY_RATIO and median(tails) <= LAG_MS_MAX
    catching_up = "" if chosen.following else f"at least {COPY_RATIO} of COPY, "
    print(f"\nGoal: {catching_up}at most {LAG_MS_MAX:.0f} ms:", end=" ")
    print("holds." if holds else "DOES NOT HOLD.")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
