"""What one group of variants needs, brought up before its rounds and gone after them.

Each group begins with empty stores, so that none pays for what another has booked. Nothing here is
started twice, and all of it is stopped on every way out.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from loadtests.benching import baselines, onsale, sender, wrk
from loadtests.benching.measures import Sent
from loadtests.benching.onsale import Onsale
from loadtests.benching.rivals import make_database
from loadtests.benching.traffic import Traffic
from loadtests.benching.trees import HERE, Tree

_FILL_S = 600.0
_SETTINGS = {"two workers": {"WEB_CONCURRENCY": "2"}}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says of every run.

    `wrk`: send with it, else with the own sender. `waiters` and `events` are what many means.
    """

    rounds: int
    seconds: float
    connections: int
    wrk: bool
    waiters: int = 1_000_000
    events: int = 10_000


class Stage:
    """The services of one group, by name."""

    def __init__(
        self,
        directory: Path,
        options: Options,
        taken: contextlib.AsyncExitStack,
        tree: Tree = HERE,
    ) -> None:
        """Bring nothing up yet; `taken` gives everything back. The services are a tree's."""
        self._directory = directory
        self._taken = taken
        self._rivals_database = ""
        self.options = options
        self.tree = tree
        self.onsales: dict[str, Onsale] = {}

    async def onsale(self, name: str = "fsync") -> Onsale:
        """Return a service: `fsync` as it comes, `everysec`, or of `_SETTINGS`."""
        if name not in self.onsales:
            self.onsales[name] = await self._bring_up(name)
        return self.onsales[name]

    async def _bring_up(self, name: str) -> Onsale:
        directory = self._directory / name.replace(" ", "-")
        if name == "everysec":
            # `memory` is the one level at which the service takes a Redis that syncs each second.
            server = onsale.valkey(directory.with_name("valkey"), "--appendfsync", "everysec")
            url, pid = await self._taken.enter_async_context(server)
            settings = {"REDIS_URL": url, "ONSALE_DURABILITY": "memory"}
            running = onsale.running(directory, self.tree, **settings)
            up = await self._taken.enter_async_context(running)
            up.roots["valkey"] = [pid]
            return up
        settings = _SETTINGS.get(name, {})
        running = onsale.running(directory, self.tree, **settings)
        return await self._taken.enter_async_context(running)

    async def baseline(self, name: str) -> baselines.Baseline:
        """Return what the service is compared with; its stores are those of the service."""
        settings: dict[str, str] = {}
        if name == "postgresql":
            settings["BENCH_DATABASE_URL"] = await self.database()
        elif name == "evalsha":
            settings["BENCH_REDIS_URL"] = (await self.onsale()).service.redis
        running = baselines.running(name, self._directory, **settings)
        return await self._taken.enter_async_context(running)

    async def database(self) -> str:
        """Return the URL of the baselines' own database beside the service's."""
        if not self._rivals_database:
            url = (await self.onsale()).service.postgresql
            self._rivals_database = await make_database(url)
        return self._rivals_database

    async def send_each(self, address: str, traffic: Traffic, count: int) -> Sent:
        """Send so many requests, however long it takes."""
        told = await sender.send(
            address, traffic, connections=self.options.connections, seconds=_FILL_S, count=count
        )
        return sender.sent_of(told)

    async def send(self, address: str, traffic: Traffic, seconds: float, connections: int) -> Sent:
        """Send with the generator that was chosen."""
        if self.options.wrk:
            return await wrk.send(address, traffic, connections=connections, seconds=seconds)
        told = await sender.send(address, traffic, connections=connections, seconds=seconds)
        return sender.sent_of(told)
