"""One simulated world: a seed, and all that follows from it.

It owns the seed's generator, the list of what has happened, and the course of a run: start, faults,
healing, the last questions, the judgement.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from zlib import crc32

from service.lineage import Position
from service.losses import Loss
from tests.simulation import clients, faults
from tests.simulation.checks import Checks
from tests.simulation.history import Operation
from tests.simulation.loop import PROCESS, START, Process, SimulatedLoop
from tests.simulation.network import Network
from tests.simulation.postgres_server import PostgresServer
from tests.simulation.redis_server import RedisServer
from tests.simulation.roles import ApiWorker, Files, Operator, Role, WriterRole

STEPS_MAX = 60_000
"""Callbacks of one run; a world that is not at peace after so many is a violation."""

_HEALED_S = 240.0


@dataclass(frozen=True, slots=True)
class Mix:
    """What a seed makes of its world."""

    workers: int
    writers: int
    people: int
    operations: int
    events: int
    capacity: int
    think_s: float
    keyed: float
    awaited: float
    unrecorded_max: int
    linger_s: float
    retained_bytes: int
    load_changes: int

    @staticmethod
    def drawn(random: Random) -> "Mix":
        """Draw one."""
        return Mix(
            workers=random.choice((1, 2, 2)),
            writers=random.choice((1, 1, 2)),
            people=random.randint(2, 5),
            operations=random.randint(2, 7),
            events=random.choice((1, 1, 2)),
            capacity=random.randint(1, 3),
            think_s=random.choice((0.0, 0.05, 0.5, 3.0)),
            keyed=random.choice((0.0, 0.5, 1.0)),
            awaited=random.choice((0.0, 0.3, 1.0)),
            unrecorded_max=random.choice((6, 1_000, 1_000, 1_000)),
            linger_s=random.choice((0.0, 0.02, 0.02, 1.0)),
            retained_bytes=random.choice((0, 300, 1_000, 10**9, 10**9)),
            load_changes=random.choice((1, 3, 4_096)),
        )


@dataclass(frozen=True, slots=True)
class Focus:
    """What is the same in all worlds: these kinds of faults and no others, this part of the mix."""

    kinds: Sequence[str] = ()
    mix: Mapping[str, Any] = field(default_factory=dict)


ANY = Focus()


class World:
    """One run."""

    def __init__(self, seed: int, *, focus: Focus = ANY, traced: bool = False) -> None:
        """Take the seed, and what is drawn no more where there is a focus."""
        self.seed = seed
        self.focus = focus
        self.random = Random(seed)
        # What asyncio's tasks, time-outs and queues ask of a loop is there; the rest is not.
        self.loop = SimulatedLoop(self.random)  # type: ignore[abstract]
        self.traced = traced
        self.loop.hear = self._hear if traced else None
        self.trace: list[str] = []
        self.digest = 0
        self.faults: Counter[str] = Counter()
        self.mix = replace(Mix.drawn(self.random), **focus.mix)
        self.network = Network(self)
        self.checks = Checks(self)
        self.redis = RedisServer(self)
        self.postgres = PostgresServer(self)
        self.files: Files = {}
        self.confirmed: list[Loss] = []
        self.operations: list[Operation] = []
        self.events: list[int] = []
        self.roles: dict[str, Role] = {}
        self.done = False
        self._names: Counter[str] = Counter()
        self._people = self.process("people")

    # What its parts ask of it.

    def process(self, name: str) -> Process:
        """Return a new process."""
        return Process(name)

    def fresh_name(self, slot: str) -> str:
        """Return the name of the next process in a slot."""
        self._names[slot] += 1
        return f"{slot}#{self._names[slot]}"

    def token(self) -> str:
        """Return a text that nobody else has."""
        return self.loop.token()

    def note(self, text: str) -> None:
        """Take note of what happened: of these lines a run's digest is made."""
        self.digest = crc32(text.encode(), self.digest)
        if self.traced:
            at = self.loop.time() - START
            self.trace.append(f"{self.loop.steps:6} {at:9.4f} s  {text}")

    def _hear(self, level: str, event: str, **fields: object) -> None:
        process = PROCESS.get(self.loop.world)
        told = " ".join(f"{name}={value}" for name, value in fields.items())
        at = self.loop.time() - START
        self.trace.append(f"{self.loop.steps:6} {at:9.4f} s  [{process} {level}] {event} {told}")

    def count(self, fault: str) -> None:
        """Count a fault."""
        self.faults[fault] += 1

    async def disk(self) -> None:
        """Take the time that a disk takes."""
        if PROCESS.get().dead:
            raise asyncio.CancelledError
        await asyncio.sleep(0.0005 * self.random.random())
        if PROCESS.get().dead:
            raise asyncio.CancelledError

    async def answered_on_host(self) -> list[Position]:
        """Return every H in the files of this host."""
        await self.disk()
        return [at for slot in sorted(self.files) for at in self.files[slot].get(0, ())]

    def worker(self, slot: str = "") -> ApiWorker:
        """Return the API worker of a slot, or some."""
        workers = [
            role
            for role in self.roles.values()
            if isinstance(role, ApiWorker) and slot in ("", role.slot)
        ]
        return self.random.choice(workers)

    def start(self, slot: str) -> None:
        """Start what runs in a slot."""
        kind = {"api": ApiWorker, "writer": WriterRole, "operator": Operator}[
            slot.partition("-")[0]
        ]
        self.roles[slot] = kind(self, slot)
        self.roles[slot].start()

    def operator(self) -> Operator:
        """Return the operator."""
        operator = self.roles["operator"]
        assert isinstance(operator, Operator)
        return operator

    # Its course.

    def run(self) -> None:
        """From the start to the judgement."""
        for number in range(self.mix.workers):
            self.start(f"api-{number}")
        for number in range(self.mix.writers):
            self.start(f"writer-{number}")
        self.start("operator")
        people = self.loop.start(self._people, self._attend())
        faults.strike(self, self._until)
        self.note("everything heals")
        faults.heal(self)
        self.loop.start(self._people, self._settle(people))
        if not self._until(lambda: self.done) and not self.checks.violations:
            self.checks.violate("at_rest", f"not at rest after {self.loop.steps} steps")
        self._unwind()
        if not self.checks.violations:
            self.checks.judge()

    def _until(self, so: Callable[[], bool]) -> bool:
        violations = self.checks.violations
        left = STEPS_MAX - self.loop.steps
        return self.loop.run(lambda: so() or bool(violations), steps_max=left)

    async def _attend(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self.mix.events):
            self.events.append(await clients.open_event(self))
        people = [
            loop.create_task(clients.attend(self, f"u{number}", self.events))
            for number in range(self.mix.people)
        ]
        for person in people:
            await person

    async def _settle(self, people: "asyncio.Task[None]") -> None:
        """Wait for peace: everybody has an answer, and both stores say the same."""
        until = self.loop.time() + _HEALED_S
        asking: asyncio.Task[None] | None = None
        while self.loop.time() < until:
            await asyncio.sleep(0.25)
            if self.checks.is_given_up:
                break
            await self._operate()
            if people.done() and asking is None:
                asking = asyncio.get_running_loop().create_task(self._ask_all())
            if asking is not None and asking.done() and self.checks.is_at_rest:
                self.done = True
                return
        if self.checks.may_stay_closed:
            self.checks.stayed_closed = True
            people.cancel()
        else:
            self.checks.violate("at_rest", f"not at rest: {self.checks.situation}")
        self.done = True

    async def _operate(self) -> None:
        """The operator looks at a sale that stays closed, and does what the runbook says."""
        meta = self.redis.state.meta
        if meta is None or meta.open or meta.next or not meta.reason:
            return
        loop, operator = self.loop, self.operator()
        self.checks.tries += 1
        await loop.start(operator.process, operator.confirm_loss())
        meta = self.redis.state.meta
        if meta is not None and not meta.open:
            await loop.start(operator.process, operator.order(None))

    async def _ask_all(self) -> None:
        """Ask every worker about every event: what is not in Redis comes back from the record."""
        for slot, role in list(self.roles.items()):
            if not isinstance(role, ApiWorker):
                continue
            for event_id in self.events:
                operation = Operation("event", event_id, slot)
                await clients.perform(self, operation, slot)

    def _unwind(self) -> None:
        """End whatever runs, so that no coroutine is left in the middle."""
        for process in self.loop.processes():
            self.loop.kill(process)
        self.loop.run(lambda: not any(p.tasks for p in self.loop.processes()), steps_max=20_000)
