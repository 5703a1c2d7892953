"""Runs worlds: one seed, or many on several processes; the same seed does the same everywhere."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from unittest import mock

import structlog

from tests.simulation.checks import Broken
from tests.simulation.ledger import SimulatedEndOfRecord
from tests.simulation.loop import SimulatedLoop
from tests.simulation.world import ANY, Focus, World


@dataclass(frozen=True, slots=True)
class Ran:
    """What one seed came to. `digest` is of all that happened."""

    seed: int
    steps: int
    digest: int
    faults: dict[str, int]
    broken: tuple[Broken, ...]
    stayed_closed: bool
    changes: int
    answers: int
    trace: tuple[str, ...] = ()


class _Time:
    """In place of the module `time`, for what reads a clock by itself."""

    @staticmethod
    def monotonic() -> float:
        return asyncio.get_running_loop().time()


class _Secrets:
    """In place of the module `secrets`."""

    @staticmethod
    def token_hex(_: int) -> str:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        return loop.token()


class _Log:
    """In place of the service's log: heard where a run is traced, and nowhere else."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def bind(self, **_: object) -> "_Log":
        return self

    def __getattr__(self, level: str) -> Callable[..., None]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        return partial(loop.hear, level) if loop.hear else _unheard


def _unheard(*_: object, **__: object) -> None:
    pass


@contextmanager
def standing_in() -> Iterator[None]:
    """Put the simulation's stand-ins where the service takes something that it is not given."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=_Log,  # type: ignore[arg-type]  # it binds nothing
        # A logger that is cached now would be the simulation's for ever.
        cache_logger_on_first_use=False,
    )
    with ExitStack() as stack:
        for target, stand_in in (
            ("service.unrecorded.time", _Time),
            ("service.loader.secrets", _Secrets),
            ("service.bringing_forward.EndOfRecord", SimulatedEndOfRecord),
        ):
            stack.enter_context(mock.patch(target, stand_in))
        try:
            yield
        finally:
            structlog.configure(**before)


def run_one(seed: int, *, focus: Focus = ANY, traced: bool = False) -> Ran:
    """Run one seed, or with a `focus` on some kinds of faults. To be called in `standing_in`."""
    world = World(seed, focus=focus, traced=traced)
    world.run()
    answered = sum(operation.answer is not None for operation in world.operations)
    return Ran(
        seed,
        world.loop.steps,
        world.digest,
        dict(world.faults),
        tuple(world.checks.violations),
        world.checks.stayed_closed,
        len(world.postgres.committed.journal),
        answered,
        tuple(world.trace),
    )
