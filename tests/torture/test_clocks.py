"""Clocks that jump by an hour or a day, either way: Redis's, PostgreSQL's, the service's own."""

from functools import partial
from pathlib import Path

import pytest

from tests.deployment import USUAL, Build
from tests.torture.broken import without
from tests.torture.clocks import Clock
from tests.torture.faults import in_one_sale
from tests.torture.people import PATIENCE_S
from tests.torture.sale import Sale, deployed, holds, judge, selling

OFFSETS = (-86_400, -3_600, 0, 3_600, 86_400)
STALL_S = 5.0
"""No jump may keep everybody waiting for longer than a busy machine does."""


@pytest.mark.torture("clocks_moved")
async def test_clocks_are_moved(template: Path, tmp_path: Path, seed: int) -> None:
    """Order, ids and keys know of no clock, and the sale goes on."""
    holds(await _clocks_moved(tmp_path / "service", template, seed))


@pytest.mark.torture("clocks_moved")
async def test_control_of_clocks_moved(template: Path, tmp_path: Path) -> None:
    """Who keeps to the difference that two clocks once had is refused for a day."""
    learnt = "self._clock_ahead_us = int("
    once = "self._clock_ahead_us = self._clock_ahead_us or int("
    build = without(tmp_path, ("service/partition.py", learnt, once))
    assert await _clocks_moved(tmp_path / "service", template, 0, build, control=True)


async def _clocks_moved(
    directory: Path, template: Path, seed: int, build: Build = USUAL, *, control: bool = False
) -> list[str]:
    names = ("valkey", "postgresql", "service")
    clocks = {name: Clock(directory.with_name(f"{name}.clock")) for name in names}
    build = Build(
        {**build.settings, **clocks["service"].environment},
        redis_prefix=clocks["valkey"].prefix,
        postgresql_prefix=clocks["postgresql"].prefix,
    )
    patience_s = 5.0 if control else PATIENCE_S
    async with deployed(directory, template, build) as deployment:
        async with selling("clocks_moved", seed, deployment, patience_s=patience_s) as sale:
            for number in range(1 if control else in_one_sale(sale.fault)):
                await sale.some(20, 60)
                await sale.do(partial(_move, sale, clocks, number, control=control))
        slow = [f"nobody was answered for {s:.1f} s" for s in sale.measured if s > STALL_S]
        return await judge(sale, control=control, also=slow)


def _move(sale: Sale, clocks: dict[str, Clock], number: int, *, control: bool) -> None:
    """Move one of them, or all apart; at one of five points Redis is restarted on it."""
    if control:
        clocks["valkey"].move(86_400)
        return
    names = [*clocks] if number % 4 == 3 else [sale.chance.choice([*clocks])]
    for name in names:
        clocks[name].move(sale.chance.choice(OFFSETS))
    if number % 5 == 4:
        sale.deployment.restart_valkey()
