"""What others reach on the same stores: services that book by themselves, and bare ceilings.

`incr` and `copy` speak no HTTP: what Valkey and PostgreSQL do at most, asked by a process each.

    python -m loadtests.benching.ceilings incr|copy URL SECONDS
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

import asyncpg

from loadtests.benching.baselines import Baseline
from loadtests.benching.measures import Measured, Sent
from loadtests.benching.processes import python
from loadtests.benching.rivals import EVALSHA_KEYS
from loadtests.benching.stage import Stage
from loadtests.benching.traffic import booking
from loadtests.benching.variants import CpuWatch, Variant, broken

_PIPELINE = 100
_COPY_ROWS = 10_000
_STORE_OF = {
    "postgresql": "postgresql",
    "evalsha": "valkey",
    "incr": "valkey",
    "copy": "postgresql",
}


class Rival(Variant):
    """Another service that books, held against its own store."""

    def __init__(self, name: str, what: str) -> None:
        """Take which of `rivals.py`."""
        super().__init__(name)
        self.what = what

    async def prepare(self, stage: Stage) -> None:
        """Start it on the stores of the service."""
        self._stage = stage
        self._onsale = await stage.onsale()
        self._target: Baseline = await stage.baseline(self.name)
        if self.name == "postgresql":
            self._database = await asyncpg.connect(await stage.database())

    async def run(self, number: int, seconds: float) -> Measured:
        """Send bookings to it."""
        store = _STORE_OF[self.name]
        before = await self._booked()
        watch = CpuWatch({"api": [self._target.pid], store: self._onsale.roots[store]})
        traffic, connections = booking(1, f"r{number:02}-"), self.connections(self._stage)
        sent = await self._stage.send(self._target.address, traffic, seconds, connections)
        cpu = watch.per_answer(sent)
        wrong, booked = broken(sent), await self._booked() - before
        if not sent.good <= booked <= sent.good + sent.in_flight_max:
            wrong.append(f"{booked} bookings after {sent.good} good answers")
        return Measured(sent, cpu, others=watch.others, wrong=wrong)

    async def _booked(self) -> int:
        if self.name == "postgresql":
            return int(await self._database.fetchval("SELECT count(*) FROM bookings"))
        return int(await self._onsale.redis.hlen(EVALSHA_KEYS[1]))


class Ceiling(Variant):
    """What a store does at most, without HTTP and without a decision."""

    def __init__(self, name: str, what: str) -> None:
        """Take which: `incr` or `copy`."""
        super().__init__(name)
        self.what = what

    async def prepare(self, stage: Stage) -> None:
        """Bring the stores up."""
        self._onsale = await stage.onsale()
        of_copy = self.name == "copy"
        self._url = await stage.database() if of_copy else self._onsale.service.redis

    async def run(self, number: int, seconds: float) -> Measured:
        """Run it in a process of its own."""
        store = _STORE_OF[self.name]
        watch = CpuWatch({store: self._onsale.roots[store]})
        arguments = ("-m", __name__, self.name, self._url, str(seconds), str(number))
        process = await asyncio.create_subprocess_exec(
            *python(*arguments), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        done, took = json.loads(output)
        sent = Sent(took, done, 0, 0, 0.0, 0.0)
        return Measured(sent, watch.per_answer(sent), others=watch.others)


def incr(url: str, seconds: float) -> tuple[int, float]:
    """Send INCR of one key, 100 at a time, and wait for the answers; return how many, how long."""
    calls = b"*2\r\n$4\r\nINCR\r\n$12\r\n{bench}:incr\r\n" * _PIPELINE
    done = 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(unquote(urlsplit(url).path))
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            connection.sendall(calls)
            answered = 0
            while answered < _PIPELINE:
                answered += connection.recv(1 << 16).count(b"\r\n")
            done += _PIPELINE
    return done, took


async def copy(url: str, seconds: float) -> tuple[int, float]:
    """COPY rows like the journal's, 10,000 a commit; return how many, and how long it took."""
    connection = await asyncpg.connect(url)
    seq = int(await connection.fetchval("SELECT coalesce(max(seq), 0) FROM journal"))
    done, used = 0, 0.0
    while used < seconds:
        rows = list(_rows(seq + 1))
        began = time.perf_counter()
        await connection.copy_records_to_table("journal", records=rows)
        used += time.perf_counter() - began
        seq, done = seq + _COPY_ROWS, done + _COPY_ROWS
    await connection.close()
    return done, used


def _rows(first: int) -> Iterator[tuple[object, ...]]:
    now = datetime.now(UTC)
    for seq in range(first, first + _COPY_ROWS):
        hash_ = seq.to_bytes(32, "big")
        yield 0, seq, 1, now, "booked", 1, f"r00-{seq:09}", None, hash_


if __name__ == "__main__":
    _, _which, _url, _seconds, _ = sys.argv
    print(
        json.dumps(
            incr(_url, float(_seconds))
            if _which == "incr"
            else asyncio.run(copy(_url, float(_seconds)))
        )
    )
