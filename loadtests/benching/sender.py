"""The bench's own load generator: a process of its own, one connection a protocol, nothing else.

Closed loop (each connection sends its next request when it has an answer) where there is no wrk,
and open loop: requests are due at a fixed rate whatever the answers do, wait for a connection where
none is idle, and their time counts from when they were due. Both wait for what is in flight at the
end, so that nothing that was sent stays uncounted.

    python -m loadtests.benching.sender '{"address": …, "traffic": {…}, "connections": …,
                                          "seconds": …, "rate": …, "count": …}'
"""

import asyncio
import contextlib
import gc
import json
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import uvloop

from loadtests.benching.measures import Sent, percentile
from loadtests.benching.traffic import Traffic

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TICK_S = 0.001
_GRACE_S = 10.0


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    def __init__(self, run: "_Run") -> None:
        self._run = run
        self._buffer = b""
        self._due = 0.0
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._run.idle(self)

    def send(self, request: bytes, due: float) -> None:
        """Send a request, whose time counts from when it was due."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        found = _LENGTH.search(self._buffer, 0, head + 2)
        if len(self._buffer) < head + 4 + (int(found[1]) if found else 0):
            return
        status = int(self._buffer[9:12])
        self._buffer = b""
        due, self._due = self._due, 0.0
        self._run.answered(status, due)
        self._run.idle(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._run.lost(self, in_flight=bool(self._due))

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


class _Run:
    """One run: who is idle, what is due, and what came of it."""

    def __init__(
        self, address: str, traffic: Traffic, connections: int, rate: float, count: int
    ) -> None:
        self._host, _, port = address.removeprefix("http://").rpartition(":")
        self._port = int(port)
        self._requests = traffic.requests(f"{self._host}:{port}")
        self._connections = connections
        self._rate = rate
        self._count = count
        self._idle: list[_Connection] = []
        self._waiting: deque[float] = deque()
        self._begun = self._until = 0.0
        self._over = asyncio.Event()
        self.sent = self.unsent = self.errors = 0
        self.times_ms: dict[int, list[float]] = {}
        self.late_ms: list[float] = []

    async def send(self, seconds: float) -> float:
        """Send for so long, and wait for what is in flight; return the seconds it took."""
        loop = asyncio.get_running_loop()
        for _ in range(self._connections):
            await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        gc.freeze()
        self._begun = time.perf_counter()
        self._until = self._begun + seconds
        if self._rate:
            await self._on_schedule(loop)
        else:
            for connection in self._take_all():
                self.idle(connection)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._over.wait()
            self._until = min(self._until, time.perf_counter())
        self.unsent = len(self._waiting)
        self._waiting.clear()
        if self._in_flight:
            try:
                async with asyncio.timeout(_GRACE_S):
                    await self._over.wait()
            except TimeoutError:
                self.errors += self._in_flight
        return time.perf_counter() - self._begun

    @property
    def _in_flight(self) -> int:
        return self.sent - sum(map(len, self.times_ms.values())) - self.errors

    @property
    def _is_enough(self) -> bool:
        return 0 < self._count <= self.sent

    def _take_all(self) -> list[_Connection]:
        taken, self._idle = self._idle, []
        return taken

    async def _on_schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send what is due, tick by tick."""
        done, number = loop.create_future(), 0

        def tick() -> None:
            nonlocal number
            now = time.perf_counter()
            while (due := self._begun + number / self._rate) <= min(now, self._until):
                number += 1
                if self._idle:
                    self._go(self._idle.pop(), due)
                else:
                    self._waiting.append(due)
            if now < self._until:
                loop.call_later(_TICK_S, tick)
            else:
                done.set_result(None)

        tick()
        await done

    def _go(self, connection: _Connection, due: float) -> None:
        self.sent += 1
        if self._rate:
            self.late_ms.append((time.perf_counter() - due) * 1000)
        connection.send(next(self._requests), due)

    def idle(self, connection: _Connection) -> None:
        """Have a connection send what is next, if anything is."""
        now = time.perf_counter()
        if self._waiting:
            self._go(connection, self._waiting.popleft())
        elif not self._rate and now < self._until and not self._is_enough:
            self._go(connection, now)
        else:
            self._idle.append(connection)
            if self._until and not self._in_flight and (now >= self._until or self._is_enough):
                self._over.set()

    def answered(self, status: int, due: float) -> None:
        """Count an answer."""
        taken = (time.perf_counter() - due) * 1000
        self.times_ms.setdefault(status, []).append(taken)

    def lost(self, connection: _Connection, *, in_flight: bool) -> None:
        """Count a connection that broke. None is made in its place: it should not happen."""
        self.errors += in_flight
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Hang up."""
        for connection in self._take_all():
            connection.close()

    def told(self, seconds: float) -> dict[str, object]:
        """Return what came of it, for JSON."""
        every = [taken for times in self.times_ms.values() for taken in times]
        return {
            "seconds": seconds,
            "answers": len(every),
            "refused": sum(len(times) for status, times in self.times_ms.items() if status >= 400),
            "errors": self.errors,
            "sent": self.sent,
            "unsent": self.unsent,
            "p50": percentile(every, 0.5),
            "p99": percentile(every, 0.99),
            "late_p99": percentile(self.late_ms, 0.99),
            "statuses": Counter({str(s): len(times) for s, times in self.times_ms.items()}),
            "by_status": {
                str(status): [percentile(times, 0.5), percentile(times, 0.99)]
                for status, times in self.times_ms.items()
            },
        }


def sent_of(found: Mapping[str, Any]) -> Sent:
    """Return what a run has told, as wrk would have."""
    return Sent(
        seconds=found["seconds"],
        answers=found["answers"],
        refused=found["refused"],
        errors=found["errors"],
        p50_ms=found["p50"],
        p99_ms=found["p99"],
        statuses=found["statuses"],
    )


async def send(
    address: str,
    traffic: Traffic,
    *,
    connections: int,
    seconds: float,
    rate: float = 0.0,
    count: int = 0,
) -> dict[str, Any]:
    """Send in a process of its own; return what it told.

    `rate` 0: closed loop. `count`: no more requests than so many, 0 for any number.
    """
    wanted = {
        "address": address,
        "traffic": {**asdict(traffic), "events": [traffic.events[0], traffic.events[-1] + 1]},
        "connections": connections,
        "seconds": seconds,
        "rate": rate,
        "count": count,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, json.dumps(wanted)), stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found: dict[str, Any] = json.loads(output)
    return found


async def _main(wanted: dict[str, Any]) -> None:
    events = range(*wanted["traffic"].pop("events"))
    headers = tuple((name, value) for name, value in wanted["traffic"].pop("headers"))
    traffic = Traffic(**wanted["traffic"], events=events, headers=headers)
    run = _Run(wanted["address"], traffic, wanted["connections"], wanted["rate"], wanted["count"])
    seconds = await run.send(wanted["seconds"])
    run.close()
    print(json.dumps(run.told(seconds)))


if __name__ == "__main__":
    uvloop.run(_main(json.loads(sys.argv[1])))
