"""Compares two trees: the same load to one and then the other, in alternating rounds.

Both services stay up for the whole run, and one of them is loaded at a time. A round measures both,
one right after the other, and the next round in the other order (A B B A): a drift of the machine
is in both, and so is the advantage of being second. A ratio is that of one round.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loadtests.benching import groups
from loadtests.benching.cpu import snapshot
from loadtests.benching.measures import Change, Measured, change, summed_us
from loadtests.benching.rounds import GroupResult, say, verify
from loadtests.benching.stage import Options, Stage
from loadtests.benching.trees import HERE, Tree
from loadtests.benching.variants import OnsaleVariant

SCENARIOS = ("book", "recorded 1024", "sold out", "cancel", "repeat", "status", "user")
"""Scenarios that are compared where none is named."""

ROUNDS = 15
LOOK_S = 2.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scenario's numbers: this tree's as a ratio to the other's."""

    scenario: str
    result: GroupResult
    rate: Change
    cpu: Change
    idle_before: float


def scenarios() -> dict[str, OnsaleVariant]:
    """Return what can be compared, by name: what is sent to the service itself."""
    every = (variant for group in groups.GROUPS for variant in group.variants())
    return {each.name: each for each in every if isinstance(each, OnsaleVariant)}


async def measure(name: str, base: Tree, options: Options) -> Comparison:
    """Measure one scenario on empty stores, in a directory that is gone afterwards."""
    trees = (base, HERE)
    rounds: dict[str, list[Measured]] = {tree.name: [] for tree in trees}
    verified: list[str] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="onsale-bench-") as directory:
        async with contextlib.AsyncExitStack() as taken:
            say(f"{name}: bringing up {base.name} and {HERE.name}")
            sides: list[tuple[Stage, OnsaleVariant]] = []
            for number, tree in enumerate(trees):
                stage = Stage(Path(directory) / str(number), options, taken, tree)
                sides.append((stage, scenarios()[name]))
                await sides[-1][1].prepare(stage)
            idle = await _idle_share()
            for number in range(options.rounds + 1):
                for stage, variant in order(sides, number):
                    seconds = options.seconds if number else options.seconds / 2
                    measured = await variant.run(number, seconds)
                    if number:
                        rounds[stage.tree.name].append(measured)
                if number:
                    say(
                        f"  round {number}: {_in_words(*(rounds[tree.name][-1] for tree in trees))}"
                    )
            for stage, _ in sides:
                holds, not_ = await verify(stage)
                verified += [f"{stage.tree.name}, {what}" for what in holds]
                wrong += [f"{stage.tree.name}, {what}" for what in not_]
    wrong += [
        f"{tree}, round {number}: {what}"
        for tree, found in rounds.items()
        for number, each in enumerate(found, 1)
        for what in each.wrong
    ]
    before, after = (rounds[tree.name] for tree in trees)
    return Comparison(
        name,
        GroupResult(f"{name}: {HERE.name} and {base.name}", rounds, (), verified, wrong),
        change([each.sent.rate for each in after], [each.sent.rate for each in before]),
        change([summed_us(each) for each in after], [summed_us(each) for each in before]),
        idle,
    )


def order(sides: Sequence[T], number: int) -> Sequence[T]:
    """Return the two in the order of a round: A B, then B A."""
    return sides if number % 2 else sides[::-1]


def _in_words(base: Measured, here: Measured) -> str:
    told = (f"{each.sent.rate:,.0f}/s at {summed_us(each):.1f} µs" for each in (base, here))
    return ", ".join(told)


async def _idle_share() -> float:
    """Return the share of the processors' time in which nothing ran, with both services unasked."""
    before = snapshot()
    await asyncio.sleep(LOOK_S)
    after = snapshot()
    return 1 - (after.busy_s - before.busy_s) / max(after.all_s - before.all_s, 1e-9)
