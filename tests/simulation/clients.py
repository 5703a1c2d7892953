"""People: each asks for one thing after the other, and repeats what has no plain answer."""

import asyncio
from typing import TYPE_CHECKING

from service.keyed import digest_of
from service.results import OpenedEvent
from tests.simulation.history import Attempt, Operation
from tests.simulation.network import Refused, Reset, Silent

if TYPE_CHECKING:
    from tests.simulation.world import World

_PATIENCE_S = 6.0
_PLAIN = ("event_not_found", "not_booked", "idempotency_key_reused")


async def perform(world: "World", operation: Operation, slot: str = "") -> None:
    """Ask until the answer is plain: the worker of a slot, or any."""
    draw = world.random.random
    pause = 0.05
    while True:
        worker = world.worker(slot)
        attempt = Attempt(worker.name, world.loop.steps)
        operation.attempts.append(attempt)
        try:
            attempt.result = await world.network.ask(worker, worker.serving(operation), _PATIENCE_S)
        except Refused:
            attempt.result = "unavailable"
        except (Reset, Silent):
            pass
        attempt.ended = world.loop.steps
        world.note(f"{operation.user} {operation.kind} {operation.key} -> {attempt.result}")
        if attempt.result in _PLAIN or not isinstance(attempt.result, str | None):
            return
        await asyncio.sleep(pause * (0.5 + draw()))
        pause = min(2 * pause, 2.0)


async def open_event(world: "World") -> int:
    """Open an event; an attempt of which nothing is known may have opened another."""
    operation = Operation("open", 0, "organiser")
    await perform(world, operation)
    opened = operation.answer
    assert isinstance(opened, OpenedEvent)
    return opened.event_id


async def attend(world: "World", user: str, events: list[int]) -> None:
    """One person's wishes, one after the other."""
    random, mix = world.random, world.mix
    for number in range(mix.operations):
        await asyncio.sleep(mix.think_s * random.random() ** 2)
        kind = random.choices(("book", "cancel", "user", "event"), (55, 35, 5, 5))[0]
        key = ""
        if kind in ("book", "cancel") and random.random() < mix.keyed:
            key = f"{user}-{number}/{digest_of(kind)}"
        awaited = random.random() < mix.awaited
        operation = Operation(kind, random.choice(events), user, key, awaited)
        world.operations.append(operation)
        await perform(world, operation)
