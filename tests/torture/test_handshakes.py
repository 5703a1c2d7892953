"""Handshakes of a service that sells: killed, frozen and woken at each step, and many at once."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import redis

from tests.deployment import USUAL, Build, Deployment
from tests.http.conftest import LoggedRole
from tests.torture.broken import without
from tests.torture.failing import STEPS, VARIABLE, taken
from tests.torture.faults import in_one_sale
from tests.torture.people import IMPATIENT_S, PATIENCE_S, PEOPLE
from tests.torture.sale import Sale, deployed, holds, judge, selling

KILLED, FROZEN, AT_ONCE = "handshake_killed", "handshake_frozen", "handshakes_at_once"

MANY = 3 * PEOPLE
"""So many that each API process has some: a kernel may give one of them most."""


class Failing(LoggedRole):
    """A role that fails where it is told to."""

    module = "tests.torture.failing"


@asynccontextmanager
async def failing(directory: Path, template: Path, build: Build) -> AsyncIterator[Deployment]:
    """Run a service in which whoever shakes hands may fail."""
    settings = {**build.settings, VARIABLE: str(directory / "step")}
    build = replace(build, settings=settings)
    async with deployed(directory, template, build, api=Failing, writer=Failing) as deployment:
        yield deployment


def _flush_scripts(deployment: Deployment) -> None:
    with redis.Redis.from_url(deployment.servers.redis_url) as client:
        client.script_flush()


async def _failed(sale: Sale, what: str) -> LoggedRole:
    """Have the next handshake fail at a step; return the role whose process did."""
    path = sale.deployment.directory / "step"
    step = sale.chance.choice(STEPS)
    path.with_suffix(".new").write_text(f"{what} {step}")
    path.with_suffix(".new").rename(path)
    _flush_scripts(sale.deployment)
    async with asyncio.timeout(sale.people.patience_s):
        while path.exists():
            await asyncio.sleep(0.005)
    (pid,) = taken(path)
    path.with_name(f"{path.name}.{pid}").unlink()
    (role,) = (role for role in sale.deployment.roles if role.pid == pid)
    return role


async def _open_after(sale: Sale, epoch: int) -> None:
    """Wait until a later epoch is open."""
    async with asyncio.timeout(sale.people.patience_s):
        while await sale.deployment.epoch() <= epoch:
            await asyncio.sleep(0.01)


def _begin_again(deployment: Deployment, role: LoggedRole) -> None:
    role.kill()
    if role is deployment.writer:
        role.start()
    else:
        deployment.start_api(role)


@pytest.mark.torture(KILLED)
async def test_a_handshake_is_killed(template: Path, tmp_path: Path, seed: int) -> None:
    """Between the stores, or before, or after: the next one goes on, and nothing is thrown away."""
    async with failing(tmp_path, template, USUAL) as deployment:
        holds(await _killed(deployment, seed))


async def _killed(deployment: Deployment, seed: int, *, control: bool = False) -> list[str]:
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with selling(KILLED, seed, deployment, patience_s=patience_s) as sale:
        for _ in range(in_one_sale(KILLED)):
            await sale.some(5, 60)
            before = await deployment.epoch()
            # Half the time there is a tail that only Redis has.
            is_behind = sale.chance.random() < 0.5
            with deployment.writer_frozen() if is_behind else nullcontext():
                await sale.some(5, 10)
                role = await _failed(sale, "kill")
                await _open_after(sale, before)
            await asyncio.to_thread(_begin_again, deployment, role)
            await sale.some(30, 60)
            sale.runs += 1
    return await judge(sale, control=control)


@pytest.mark.torture(FROZEN)
async def test_a_handshake_is_frozen(template: Path, tmp_path: Path, seed: int) -> None:
    """Another takes over and sells; whoever held it wakes, and does nothing."""
    async with failing(tmp_path, template, USUAL) as deployment:
        holds(await _frozen(deployment, seed))


async def _frozen(deployment: Deployment, seed: int, *, control: bool = False) -> list[str]:
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with selling(FROZEN, seed, deployment, patience_s=patience_s) as sale:
        for _ in range(in_one_sale(FROZEN)):
            await sale.some(5, 60)
            before = await deployment.epoch()
            role = await _failed(sale, "freeze")
            try:
                await _open_after(sale, before)
                await sale.some(30, 60)
            finally:
                os.kill(role.pid, signal.SIGCONT)
            await sale.some(30, 60)
            sale.runs += 1
    return await judge(sale, control=control, also=await _rebuilt(deployment))


@pytest.mark.torture(AT_ONCE)
async def test_all_shake_hands_at_once(template: Path, tmp_path: Path, seed: int) -> None:
    """Who was fenced together settles on one epoch."""
    async with deployed(tmp_path, template) as deployment:
        holds(await _at_once(deployment, seed))


async def _at_once(deployment: Deployment, seed: int, *, control: bool = False) -> list[str]:
    patience_s = IMPATIENT_S if control else PATIENCE_S
    async with selling(AT_ONCE, seed, deployment, people=MANY, patience_s=patience_s) as sale:
        for _ in range(in_one_sale(AT_ONCE)):
            await sale.some(5, 60)
            if sale.chance.random() < 0.5:
                await sale.do(lambda: _flush_scripts(deployment))
            else:
                await sale.do(deployment.restart_valkey)
    epochs = await _epochs(deployment)
    if epochs != 1 + sale.runs:
        sale.found.append(f"{sale.runs} faults have begun {epochs - 1} epochs")
    return await judge(sale, control=control)


async def _rebuilt(deployment: Deployment) -> list[str]:
    """Return the epochs for which Redis was found to have gone back, or to be empty: it was not.

    Who sets it back is found out and made good, so that nothing may be wrong but this.
    """
    record = await asyncpg.connect(deployment.servers.postgresql_url)
    try:
        rows = await record.fetch("SELECT epoch, reason FROM epochs WHERE verdict = 'rebuild'")
    finally:
        await record.close()
    return [f"Redis was rebuilt for epoch {epoch}: {reason}" for epoch, reason in rows]


async def _epochs(deployment: Deployment) -> int:
    record = await asyncpg.connect(deployment.servers.postgresql_url)
    try:
        return int(await record.fetchval("SELECT count(*) FROM epochs"))
    finally:
        await record.close()


NOTHING_IS_ADOPTED = (
    "service/handshake.py",
    "            adopt\n            and not lost\n",
    "            False\n            and not lost\n",
)
ANY_TOKEN_BEGINS = (
    (
        "lua/begin_epoch.lua",
        "if meta[1] ~= '0' or meta[2] ~= next then",
        "if false then",
    ),
    # The second lock on that door: an id that is not above the last one is refused.
    ("lua/begin_epoch.lua", "redis.call('XADD', outbox_key", "redis.pcall('XADD', outbox_key"),
)
NOTHING_IS_RESUMED = (
    "service/handshake.py",
    "(epoch := died_between(meta, lineage, known))",
    "(epoch := None)",
)


@pytest.mark.torture("handshakes_at_once")
async def test_control_of_handshakes_at_once(template: Path, tmp_path: Path) -> None:
    """Where nobody adopts what another has made, everybody makes an epoch."""
    build = without(tmp_path, NOTHING_IS_ADOPTED)
    async with deployed(tmp_path, template, build) as deployment:
        assert await _at_once(deployment, 0, control=True)


@pytest.mark.torture("handshake_frozen")
async def test_control_of_handshake_frozen(template: Path, tmp_path: Path) -> None:
    """Where any token begins the epoch, who wakes up sets Redis back."""
    build = without(tmp_path, *ANY_TOKEN_BEGINS)
    async with failing(tmp_path, template, build) as deployment:
        assert await _frozen(deployment, 0, control=True)


@pytest.mark.torture("handshake_killed")
async def test_control_of_handshake_killed(template: Path, tmp_path: Path) -> None:
    """Where nobody resumes what another has decided, an answered tail is thrown away."""
    build = without(tmp_path, NOTHING_IS_RESUMED)
    async with failing(tmp_path, template, build) as deployment:
        assert await _killed(deployment, 0, control=True)
