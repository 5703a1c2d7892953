"""The processes of a deployment: API workers, writers, an operator. The service's own code inside.

A role is wired here as `service.app` and `service.handshakes` wire it, on simulated stores. It is
killed and started anew as a whole; what it kept on disk stays.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import RedisError

from service.admission import Admission
from service.engine import Engine
from service.errors import Problem
from service.handshake import Handshake, HandshakeImpossible
from service.lanes import Bounds
from service.ledger import UNAVAILABLE, Ledger
from service.lineage import Position
from service.metrics import Metrics
from service.orders import Order
from service.partition import Partition
from service.room import UnrecordedBounds
from service.watermark import Watermarks
from service.witness import Witness
from service.writer import Writer
from tests.simulation.history import Given, Operation
from tests.simulation.ledger import SimulatedLedgerPool, connect
from tests.simulation.loop import PROCESS
from tests.simulation.network import Answer, Server
from tests.simulation.redis_clients import NoWakeups, SimulatedRedisStore, SimulatedWire

if TYPE_CHECKING:
    from tests.simulation.world import World

DEADLINE_S = 3.0


class Uncounted:
    """In place of every family of metrics: counting costs time and changes nothing."""

    def __getattr__(self, _: str) -> "Uncounted":
        return self

    def __call__(self, *_: object) -> "Uncounted":
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


METRICS = cast(Metrics, Uncounted())


class SimulatedWitness(Witness):
    """H, on a disk that outlives the process; written whole or not at all."""

    def __init__(self, world: "World", slot: str) -> None:
        self._world = world
        self._slot = slot
        self._answered = dict(world.files.get(slot, {}))

    def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._keeping = loop.create_task(self._keep())

    async def write(self) -> None:
        await self._world.disk()
        self._world.files[self._slot] = dict(self._answered)
        self._world.checks.kept(self._answered.get(0, ()))
        await self._world.disk()

    async def answered(self, partition: int) -> list[Position]:
        await self.write()
        return [*self._answered.get(partition, ()), *await self._world.answered_on_host()]


class Role(Server):
    """One process, from its start to its end."""

    def __init__(self, world: "World", slot: str) -> None:
        name = world.fresh_name(slot)
        super().__init__(name, world.process(name))
        self.world = world
        self.slot = slot
        self.store = SimulatedRedisStore(world.network, world.redis)

    def start(self) -> None:
        """Begin to run."""
        self.world.note(f"{self.name} starts")
        self.world.loop.start(self.process, self.run())

    async def run(self) -> None:
        """What it does."""

    def kill(self) -> None:
        """End it, as SIGKILL does; the machine closes its connections."""
        self.world.note(f"{self.name} is killed")
        self.end()
        self.world.loop.kill(self.process)
        postgres = self.world.postgres
        ending = partial(postgres.end_sessions_of, self.name)
        self.world.network.later(self.world.network.latency(), postgres.process, ending)

    def connect(self, idle_s: float = 0) -> Any:
        """Open a session with the record."""
        world = self.world
        return connect(world.network, world.postgres, self.name, idle_s=idle_s)

    def handshake(self, answered: Callable[[int], Any] | None = None) -> Handshake:
        """Return this role's handshake."""
        told = partial(answered, 0) if answered else self.world.answered_on_host
        return Handshake(
            0, self.store, self.connect, assure=_sound, answered=told, token=self.world.token
        )


async def _sound(_: Ledger | None) -> None:
    """The stores' configuration is not simulated."""


class ApiWorker(Role):
    """An API process: the engine, and all below it but the connections."""

    def __init__(self, world: "World", slot: str) -> None:
        super().__init__(world, slot)
        self.witness = SimulatedWitness(world, slot)
        wire = SimulatedWire(world.network, world.redis)
        handshake = self.handshake(self.witness.answered)
        partition = Partition(0, wire, self.store, handshake, worker=world.token())
        bounds = Bounds(
            items_max=4,
            waiting_max=100,
            deadline_s=DEADLINE_S,
            unrecorded=UnrecordedBounds(world.mix.unrecorded_max, world.mix.unrecorded_max + 4),
        )
        watermarks = Watermarks(
            self.store, NoWakeups(world.network), 1, waiting_max=100, metrics=METRICS
        )
        self.engine = Engine(
            [partition],
            SimulatedLedgerPool(self.connect),
            bounds,
            METRICS,
            watermarks,
            "fsync",
            self.witness.note,
            Admission(0.02),
        )

    async def run(self) -> None:
        self.witness.open()
        self.engine.start()

    def serving(self, operation: Operation) -> Callable[[Answer], None]:
        """Return what serves a request."""

        def begin(answer: Answer) -> None:
            self.world.loop.start(self.process, self._serve(operation, answer))

        return begin

    async def _serve(self, operation: Operation, answer: Answer) -> None:
        try:
            result: Given | str = await self._do(operation)
        except Problem as problem:
            result = problem.code
        if not PROCESS.get().dead:
            answer(result)

    async def _do(self, operation: Operation) -> Given:
        engine, event_id, user = self.engine, operation.event_id, operation.user
        prefer = "recorded" if operation.awaited else ""
        if operation.kind == "open":
            return await engine.initialize("Night", self.world.mix.capacity, prefer)
        if operation.kind == "book":
            return await engine.book(event_id, user, keyed=operation.key, prefer=prefer)
        if operation.kind == "cancel":
            return await engine.cancel(event_id, user, keyed=operation.key, prefer=prefer)
        if operation.kind == "user":
            return await engine.user(event_id, user, prefer)
        return await engine.event(event_id)


class WriterRole(Role):
    """A writer process."""

    async def run(self) -> None:
        mix, loop = self.world.mix, self.world.loop
        writer = Writer(
            self.store,
            self.connect,
            {0: self.handshake()},
            linger_s=mix.linger_s,
            retained_bytes=mix.retained_bytes,
            clock=loop.time,
            metrics=METRICS,
            load_changes=mix.load_changes,
        )
        await writer.run()


class Operator(Role):
    """Somebody with the command line."""

    async def order(self, order: Order | None) -> None:
        """Run the handshake with an order; what cannot be done now is not done."""
        try:
            result = await self.handshake().run(order=order)
            self.world.note(f"operator: {result}")
        except (HandshakeImpossible, RedisError, *UNAVAILABLE) as error:
            self.world.note(f"operator: {error}")

    async def confirm_loss(self) -> None:
        """`onsale confirm-loss --apply`."""
        try:
            async with await self.connect() as ledger, ledger.deciding(0) as decision:
                closed = await decision.closed_epoch()
                if closed is None or closed.loss is None:
                    return
                self.world.confirmed.append(closed.loss)  # told; the commit's answer may be lost
                await decision.confirm(closed.epoch)
        except UNAVAILABLE as error:
            self.world.note(f"operator: {error}")
            return
        await self.order(Order(f"the loss of {closed.loss} was confirmed"))


Files = dict[str, Mapping[int, tuple[Position, ...]]]
