"""A sale to do harm to, and the verdict on it."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from service import health
from tests.deployment import USUAL, Build, Deployment
from tests.http.conftest import LoggedRole
from tests.torture import scores
from tests.torture.checker import check
from tests.torture.history import read_journal, write
from tests.torture.people import PATIENCE_S, PEOPLE, RECORDED, People, people_at
from tests.torture.scores import Score

TICKETS = (80, 40, 20, 5, 200)
"""Of five events: some sell out at once, one hardly."""


@contextlib.asynccontextmanager
async def deployed(
    directory: Path,
    template: Path,
    build: Build = USUAL,
    *,
    api: type[LoggedRole] = LoggedRole,
    writer: type[LoggedRole] = LoggedRole,
) -> AsyncIterator[Deployment]:
    """Run a service that sells."""
    deployment = Deployment(directory, template, build, api=api, writer=writer)
    try:
        await asyncio.to_thread(deployment.start)
        yield deployment
    finally:
        await asyncio.to_thread(deployment.stop)


@dataclass(repr=False)
class Sale:
    """One sale of one seed; `chance` draws what is done to it, and when.

    `measured` holds, for each fault, the seconds from its beginning to the first answer after it;
    `found` what was seen to be wrong on the way.
    """

    fault: str
    seed: int
    deployment: Deployment
    people: People
    chance: Random
    runs: int = 0
    measured: list[float] = field(default_factory=list)
    found: list[str] = field(default_factory=list)

    async def do(self, fault: Callable[[], object], count: int = 30) -> None:
        """Do it once while people go on; return when so many more operations have ended."""
        began = time.monotonic()
        await asyncio.to_thread(fault)
        await self.people.grow(1)
        self.measured.append(time.monotonic() - began)
        await self.people.grow(count)
        self.runs += 1

    async def some(self, least: int, most: int, unless: Callable[[], bool] = lambda: False) -> None:
        """Let some operations end, unless something has come that all may be waiting behind."""
        await self.people.grow(self.chance.randint(least, most), unless)


@contextlib.asynccontextmanager
async def selling(
    fault: str,
    seed: int,
    deployment: Deployment,
    *,
    people: int = PEOPLE,
    crowd: type[People] = People,
    patience_s: float = PATIENCE_S,
    recorded: float = RECORDED,
) -> AsyncIterator[Sale]:
    """Sell until the end of the block, and to the end of every operation.

    A block that waits in vain is left, and that is one of the things that are wrong.
    """
    chance = Random(f"{fault} {seed}")
    tickets = [max(1, int(count * chance.uniform(0.5, 1.5))) for count in TICKETS]
    async with people_at(
        deployment.url,
        tickets,
        seed,
        count=people,
        crowd=crowd,
        patience_s=patience_s,
        recorded=recorded,
    ) as attending:
        sale = Sale(fault, seed, deployment, attending, chance)
        try:
            yield sale
        except TimeoutError as error:
            sale.found.append(f"waited in vain: {error!r}")


def until_it_sells(deployment: Deployment) -> None:
    """Wait until it sells again; where it found that answers were lost, confirm that they are."""
    until = time.monotonic() + 60
    while not (found := asyncio.run(health.ask(deployment.url, "/readyz"))).healthy:
        assert time.monotonic() < until, found
        if found.code == "closed":
            deployment.onsale("confirm-loss", "--apply")


async def judge(sale: Sale, *, control: bool = False, also: Sequence[str] = ()) -> list[str]:
    """Hold stores and answers to what was promised; note it; return everything that is wrong.

    `also`: what was found wrong otherwise.
    """
    wrong = sorted([*also, *await _wrong(sale)], key=_says_little)
    operations = len(sale.people.history)
    scores.note(
        Score(sale.fault, sale.seed, sale.runs, operations, wrong[:5], control, sale.measured)
    )
    if wrong and (path := os.environ.get("ONSALE_TEST_TORTURE_HISTORY")):
        write(path, sale.people.history)
    return wrong


def _says_little(wrong: str) -> bool:
    """Whether something only was not there in time: what else is wrong is told before it."""
    return "waited in vain" in wrong or "it has no end" in wrong


def holds(wrong: list[str]) -> None:
    """Fail if anything is wrong, and say the first of it."""
    assert not wrong, "\n".join([f"{len(wrong)} things are wrong:", *wrong[:10]])


async def _wrong(sale: Sale) -> list[str]:
    deployment = sale.deployment
    wrong = [*sale.found]
    try:
        await deployment.is_recorded()
    except TimeoutError:
        wrong.append("not everything came on record")
    for command in ("reconcile", "audit"):
        ended = await asyncio.to_thread(deployment.onsale, command)
        if ended.returncode:
            wrong.append(f"onsale {command} exits with {ended.returncode}: {ended.stdout}")
    rows = await read_journal(deployment.servers.postgresql_url)
    return wrong + check(sale.people.history, rows)
