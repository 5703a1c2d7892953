"""What goes wrong in a world: each seed draws some kinds of faults, and when they strike.

A fault strikes after a number of steps, so between any two awaits of anybody, or after a time. Each
ends by itself after a while; `heal` ends whatever is left.
"""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeVar

from service.orders import Order
from tests.simulation.network import CALM, Server, Troubles
from tests.simulation.postgres_server import Record
from tests.simulation.redis_server import State

if TYPE_CHECKING:
    from tests.simulation.world import World

Until = Callable[[Callable[[], bool]], bool]
Any = TypeVar("Any")


def strike(world: "World", until: Until) -> None:
    """Have the seed's faults strike, one after the other."""
    random, loop = world.random, world.loop
    kinds = [kind for kind in FAULTS if random.random() < 0.4]
    # A store that comes back older is the rarer and the harder case: not in every world.
    if random.random() < 0.45:
        kinds = [kind for kind in kinds if kind not in GOING_BACK]
    steps = random.choice((30, 120, 400))
    is_troubled = random.random() < 0.4
    if world.focus.kinds:
        kinds = [kind for kind in world.focus.kinds if kind in FAULTS]
        is_troubled = NETWORK in world.focus.kinds
    if is_troubled:
        most = 0.15 if NETWORK in world.focus.kinds else random.choice((0.01, 0.05, 0.15))
        world.network.troubles = _drawn_troubles(random, most)
    until(lambda: loop.steps >= int(random.random() * 400) + 40)
    if not kinds:
        last = loop.steps + random.randrange(2_000)
        until(lambda: loop.steps >= last)
        return
    for _ in range(random.randint(1, 7)):
        kind = random.choice(kinds)
        if FAULTS[kind](world):
            world.count(kind)
        if random.random() < 0.7:
            upto = loop.steps + int(random.expovariate(1 / steps)) + 1
            until(lambda upto=upto: loop.steps >= upto)  # type: ignore[misc]
        else:
            when = loop.time() + random.expovariate(1 / 2)
            until(lambda when=when: loop.time() >= when)  # type: ignore[misc]


def heal(world: "World") -> None:
    """End all faults that have not ended by themselves."""
    world.network.troubles = CALM
    world.network.cut.clear()
    for slot, role in list(world.roles.items()):
        if role.process.dead:
            world.start(slot)
        world.loop.thaw(role.process)
    for server in (world.redis, world.postgres):
        world.loop.thaw(server.process)
        server.up = True


def _drawn_troubles(random: Random, most: float) -> Troubles:
    share = [most * random.random() if random.random() < 0.6 else 0.0 for _ in range(5)]
    return Troubles(*share)


def _slot(world: "World", kind: str) -> str | None:
    slots = [
        slot
        for slot, role in world.roles.items()
        if slot.startswith(kind) and not role.process.dead
    ]
    return world.random.choice(slots) if slots else None


def _kill(kind: str, world: "World") -> bool:
    slot = _slot(world, kind)
    if slot is None:
        return False
    role = world.roles[slot]
    role.kill()

    def again() -> None:
        if world.roles[slot] is role:
            world.start(slot)

    world.network.later(3 * world.random.random() ** 2, world.loop.world, again)
    return True


def _freeze(kind: str, world: "World") -> bool:
    slot = _slot(world, kind)
    if slot is None:
        return False
    role = world.roles[slot]
    world.note(f"{role.name} is frozen")
    world.loop.freeze(role.process)
    seconds = world.random.choice((0.05, 0.5, 2, 8, 25)) * world.random.random()
    world.network.later(seconds, world.loop.world, partial(_thaw, world, role))
    return True


def _freeze_store(name: str, world: "World") -> bool:
    server: Server = getattr(world, name)
    if not server.up:
        return False
    world.note(f"{name} is frozen")
    world.loop.freeze(server.process)
    seconds = world.random.choice((0.5, 3, 10)) * world.random.random()
    world.network.later(seconds, world.loop.world, partial(_thaw, world, server))
    return True


def _thaw(world: "World", server: Server) -> None:
    if server.process.frozen:
        world.note(f"{server.name} goes on")
        world.loop.thaw(server.process)


def _down(world: "World", server: Server) -> None:
    """Have a store that has just crashed come up again in a while."""
    world.loop.thaw(server.process)

    def up() -> None:
        server.up = True
        world.note(f"{server.name} is up")

    world.network.later(2 * world.random.random() ** 3, world.loop.world, up)


def _restart_redis(world: "World") -> bool:
    if not world.redis.up:
        return False
    world.redis.crash()
    world.note(f"redis crashes, at {world.redis.state.last.entry_id}")
    _down(world, world.redis)
    return True


def _wipe_redis(world: "World") -> bool:
    if not _restart_redis(world):
        return False
    world.redis.put_back(State())
    world.note("redis is wiped")
    return True


def _stale_redis(world: "World") -> bool:
    if not _restart_redis(world):
        return False
    state = _older(world.random, world.redis.past)
    world.redis.put_back(state)
    world.note(f"redis is put back to {state.last.entry_id}")
    return True


def _restart_postgres(world: "World") -> bool:
    if not world.postgres.up:
        return False
    world.postgres.crash()
    world.note(f"postgres crashes, at {world.postgres.committed.last.entry_id}")
    _down(world, world.postgres)
    return True


def _stale_postgres(world: "World") -> bool:
    if not _restart_postgres(world):
        return False
    past = [record for record in world.postgres.past if record.cursor] or [Record()]
    record = _older(world.random, past)
    world.postgres.put_back(record)
    world.note(f"postgres is put back to {record.last.entry_id}")
    return True


def _both_stale(world: "World") -> bool:
    stale = _stale_postgres(world)
    return _stale_redis(world) or stale


def _older(random: Random, past: "list[Any]") -> "Any":
    """Return an older copy: of a moment ago, more often than of long ago."""
    back = int(len(past) * random.random() ** 3)
    return past[len(past) - 1 - back]


def _cut(world: "World") -> bool:
    role = world.random.choice([*world.roles.values()])
    server = world.random.choice((world.redis, world.postgres))
    pair = (role.process.name, server.name)
    world.network.cut.add(pair)
    world.note(f"{pair[0]} does not reach {pair[1]}")
    seconds = 8 * world.random.random() ** 2
    world.network.later(seconds, world.loop.world, partial(world.network.cut.discard, pair))
    return True


def _order(world: "World") -> bool:
    operator = world.operator()
    verdict = world.random.choice(("rebuild", "stay_closed", "open", "confirm"))
    world.note(f"operator orders {verdict}")
    if verdict == "confirm":
        coro = operator.confirm_loss()
    elif verdict == "open":
        coro = operator.order(None)
    else:
        coro = operator.order(Order(ORDERED, verdict))
    world.loop.start(operator.process, coro)
    return True


NETWORK = "network"
"""In a focus: questions and answers are lost, late and cut off."""

ORDERED = "an operator ordered it"

FAULTS: Mapping[str, Callable[["World"], bool]] = {
    "kill_api": partial(_kill, "api"),
    "kill_writer": partial(_kill, "writer"),
    "freeze_api": partial(_freeze, "api"),
    "freeze_writer": partial(_freeze, "writer"),
    "restart_redis": _restart_redis,
    "restart_postgres": _restart_postgres,
    "freeze_redis": partial(_freeze_store, "redis"),
    "freeze_postgres": partial(_freeze_store, "postgres"),
    "cut": _cut,
    "order": _order,
    "wipe_redis": _wipe_redis,
    "stale_redis": _stale_redis,
    "stale_postgres": _stale_postgres,
    "both_stale": _both_stale,
}

GOING_BACK = ("wipe_redis", "stale_redis", "stale_postgres", "both_stale")
