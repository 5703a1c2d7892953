"""What is measured: a class for each kind, each of which knows what its answers must have left.

A variant is prepared once, with everything that it needs running, and then run round by round. Its
name is what `--only` takes.
"""

import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from loadtests.benching.baselines import Baseline
from loadtests.benching.cpu import Snapshot, snapshot
from loadtests.benching.lag import watched
from loadtests.benching.measures import Lag, Measured, Sent
from loadtests.benching.onsale import Onsale
from loadtests.benching.stage import Stage
from loadtests.benching.traffic import Traffic, booking

TICKETS = 10_000_000
"""The most that an event may have: nothing that is measured as a booking sells out."""


class Variant:
    """One thing that is measured."""

    what = ""
    """A line for `--list`."""

    def __init__(self, name: str, *, connections: int = 0) -> None:
        """Take its name, and its connections: 0 for what the command line says."""
        self.name = name
        self._connections = connections

    async def prepare(self, stage: Stage) -> None:
        """Bring up and fill what the rounds need."""
        raise NotImplementedError

    async def run(self, number: int, seconds: float) -> Measured:
        """Run once; round 0 warms up."""
        raise NotImplementedError

    def connections(self, stage: Stage) -> int:
        """Return how many connections it is measured with."""
        return self._connections or stage.options.connections


class NoOp(Variant):
    """A service that does nothing."""

    def __init__(
        self, name: str, application: str, traffic: Traffic, what: str, *, connections: int = 0
    ) -> None:
        """Take which application it is, and what is sent to it; connections as for all."""
        super().__init__(name, connections=connections)
        self._application = application
        self._traffic = traffic
        self.what = what

    async def prepare(self, stage: Stage) -> None:
        """Start it."""
        self._stage = stage
        self._target: Baseline = await stage.baseline(self._application)

    async def run(self, number: int, seconds: float) -> Measured:
        """Send to it."""
        del number
        watch = CpuWatch({"api": [self._target.pid]})
        sent = await self._stage.send(
            self._target.address, self._traffic, seconds, self.connections(self._stage)
        )
        return Measured(sent, watch.per_answer(sent), others=watch.others, wrong=broken(sent))


class OnsaleVariant(Variant):
    """Requests to the service, held against its record.

    `leaves` is the kind of change that each good answer leaves in the journal, empty for requests
    that change nothing.
    """

    leaves = ""

    def __init__(self, name: str, *, connections: int = 0, deployment: str = "fsync") -> None:
        """Take which deployment it is sent to."""
        super().__init__(name, connections=connections)
        self._deployment = deployment

    async def prepare(self, stage: Stage) -> None:
        """Start it, and open an event that does not sell out."""
        self.stage = stage
        self.onsale: Onsale = await stage.onsale(self._deployment)
        self.event = await self.onsale.open(TICKETS)

    async def before(self, number: int, seconds: float) -> None:
        """Do what a round needs and is not measured."""

    def traffic(self, number: int) -> Traffic:
        """Return what is sent in a round."""
        raise NotImplementedError

    async def send(self, traffic: Traffic, seconds: float) -> Sent:
        """Send, with this variant's connections."""
        connections = self.connections(self.stage)
        return await self.stage.send(self.onsale.address, traffic, seconds, connections)

    async def run(self, number: int, seconds: float) -> Measured:
        """Send for so long, wait until all is on record, and hold that against the answers."""
        await self.before(number, seconds)
        before = await self.onsale.settle()
        traffic, lag = self.traffic(number), None
        watch = CpuWatch(self.onsale.roots)
        if self.leaves:
            async with watched(self.onsale) as seen:
                sent = await self.send(traffic, seconds)
            lag = seen.told()
        else:
            sent = await self.send(traffic, seconds)
        return await self._held(watch, sent, lag, before)

    async def _held(self, watch: "CpuWatch", sent: Sent, lag: Lag | None, before: int) -> Measured:
        answered = time.monotonic()
        await self.onsale.drain()
        drained = time.monotonic() - answered
        cpu = watch.per_answer(sent)
        await self.onsale.settle()
        changes = await self.onsale.changes_after(before)
        wrong = [*broken(sent), *unlike(changes, self.leaves, sent)]
        drain_s = drained if self.leaves else None
        return Measured(sent, cpu, lag, drain_s, watch.others, watch.idle, wrong)


class Book(OnsaleVariant):
    """Bookings of one event, each by another user."""

    leaves = "booked"
    what = "POST /book, each by another user"

    def __init__(
        self,
        name: str,
        *,
        connections: int = 0,
        deployment: str = "fsync",
        prefer: str = "",
        counts_statuses: bool = False,
    ) -> None:
        """Take a durability that each asks for, and whether wrk shall tell each status."""
        super().__init__(name, connections=connections, deployment=deployment)
        self._prefer = prefer
        self._counts_statuses = counts_statuses

    def traffic(self, number: int) -> Traffic:
        """Return bookings by this round's users."""
        asked = booking(self.event, f"r{number:02}-", prefer=self._prefer)
        return replace(asked, counts_statuses=self._counts_statuses)

    async def run(self, number: int, seconds: float) -> Measured:
        """Run as ever; what is `pending` was not answered as it was asked for."""
        measured = await super().run(number, seconds)
        sent = measured.sent
        pending = sent.statuses.get("202", 0)
        return replace(measured, sent=replace(sent, refused=sent.refused + pending))


class CpuWatch:
    """What processes and the generator have used since this was made."""

    def __init__(self, roots: Mapping[str, Sequence[int]]) -> None:
        """Take the processes by what they are."""
        self._roots = {name: list(pids) for name, pids in roots.items()}
        self._generator = _children_s()
        self._before: Snapshot = snapshot()
        self.others = 0.0
        self.idle = 0.0

    def per_answer(self, sent: Sent) -> dict[str, float]:
        """Return microseconds per good answer of each, the generator last."""
        after, before = snapshot(), self._before
        used = {name: after.of(pids) - before.of(pids) for name, pids in self._roots.items()}
        used["generator"] = _children_s() - self._generator
        own = sum(used.values()) + after.used_s[os.getpid()] - before.used_s[os.getpid()]
        # What the bench reaped is in its own time as well, and is the generator's.
        own -= used["generator"]
        busy, whole = after.busy_s - before.busy_s, after.all_s - before.all_s
        self.others = max(0.0, busy - own) / max(whole, 1e-9)
        self.idle = 1 - busy / max(whole, 1e-9)
        return {name: seconds * 1e6 / max(1, sent.good) for name, seconds in used.items()}


def broken(sent: Sent) -> list[str]:
    """Say what went wrong between generator and service."""
    return [f"{sent.errors} connections broke or timed out"] if sent.errors else []


def unlike(changes: Mapping[str, int], leaves: str, sent: Sent) -> list[str]:
    """Say where the changes on record are not those of the answers.

    Each good answer left one change; besides, what was in flight when the generator hung up may
    have, and nothing else.
    """
    wrong = [f"{many} changes `{kind}`" for kind, many in changes.items() if kind != leaves]
    if leaves:
        many, least = changes.get(leaves, 0), sent.good
        if not least <= many <= least + sent.in_flight_max:
            wrong.append(f"{many} changes `{leaves}` after {least} good answers")
    return wrong


def _children_s() -> float:
    """Return the CPU seconds of children that have ended: between two calls, the generator's."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
