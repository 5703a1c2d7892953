"""The workload: people who book, cancel and look, and repeat an operation until they know.

Every operation has a key of its own, and is sent again under it until an answer says what it came
to, whatever happens to the service: a history has no open ends. Most users are one person's; some
are everybody's, so that two at once change the same one.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.crowd import Answer, Client, connected
from tests.torture.history import Kind, Operation

PEOPLE = 8
CHOICES: dict[Kind, int] = {"book": 55, "cancel": 30, "look": 8, "poll": 7}
"""Of those that change something two of three book, as many as there are to wait for."""

OWN_USERS = 60
SHARED_USERS = 40
"""A key is forgotten after eight changes of its user: so many that nobody comes to that."""

RECORDED = 0.1
"""How many of the operations ask to be on record before they are answered."""

PAUSE_S = 0.02
PATIENCE_S = 90.0
IMPATIENT_S = 8.0
"""Of people at a service that is broken, and may never answer."""


@dataclass(repr=False)
class People:
    """Everybody at a few events. `history` holds each operation from when it was first sent.

    One that has no answer for `patience_s` is given up; the checker finds that it has no end.
    `slowest_s` is the longest that a sent request took to be answered, or to be lost.
    """

    event_ids: Sequence[int]
    seed: int
    history: list[Operation] = field(default_factory=list)
    patience_s: float = PATIENCE_S
    recorded: float = RECORDED
    slowest_s: float = 0.0
    answered: int = 0
    stopping: bool = False

    async def grow(self, count: int, unless: Callable[[], bool] = lambda: False) -> None:
        """Wait until so many more operations have come to their end. Raises TimeoutError.

        `unless`: something has come that they may all be waiting behind.
        """
        target = self.answered + count
        async with asyncio.timeout(self.patience_s):
            while self.answered < target and not unless():
                await asyncio.sleep(0.002)

    async def attend(self, client: Client, number: int) -> None:
        """One person, whose choices follow from the seed."""
        chance = Random(f"{self.seed} {number}")
        users = [f"p{number}-{one}" for one in range(OWN_USERS)]
        shared = [f"all-{one}" for one in range(SHARED_USERS)]
        count = 0
        while not self.stopping:
            kind = chance.choices([*CHOICES], [*CHOICES.values()])[0]
            user = chance.choice(shared if chance.random() < 0.15 else users)
            count += 1
            key = f"{self.seed}-{number}-{count}" if kind in ("book", "cancel") else ""
            prefers = "durability=recorded" if chance.random() < self.recorded else ""
            one = Operation(kind, chance.choice(self.event_ids), user, key, time.monotonic())
            self.history.append(one)
            await self._to_the_end(client, one, prefers)
            if one.completed is None:
                return
            self.answered += 1

    async def _to_the_end(self, client: Client, one: Operation, prefer: str) -> None:
        """Send until it is answered; who has lost patience leaves it without an end."""
        until = time.monotonic() + self.patience_s
        while time.monotonic() < until:
            one.sends += 1
            self.before_sending(one)
            sent = time.monotonic()
            answer = await self._ask(client, one, prefer)
            self.slowest_s = max(self.slowest_s, time.monotonic() - sent)
            is_pending = answer.body.get("status") == "pending"
            if answer.status not in (0, 503) and not is_pending:
                one.completed = time.monotonic()
                one.status, one.body = answer.status, answer.body
                return
            one.status, one.body = answer.status, answer.body
            await asyncio.sleep(PAUSE_S)

    def before_sending(self, one: Operation) -> None:
        """Do nothing: a key stays the same at each sending."""

    async def _ask(self, client: Client, one: Operation, prefer: str) -> Answer:
        if one.kind == "look":
            return await client.get(f"/status/{one.event_id}")
        if one.kind == "poll":
            return await client.get(f"/events/{one.event_id}/users/{one.user}")
        body = {"eventId": one.event_id, "userId": one.user}
        return await client.post(f"/{one.kind}", body, one.key, prefer=prefer)


class Forgetful(People):
    """People who break the rule: they repeat under another key. For negative controls."""

    def before_sending(self, one: Operation) -> None:
        """Take another key at each sending but the first."""
        if one.key and one.sends > 1:
            one.key += "-again"


@contextlib.asynccontextmanager
async def people_at(
    url: str,
    tickets: Sequence[int],
    seed: int,
    *,
    count: int = PEOPLE,
    crowd: type[People] = People,
    patience_s: float = PATIENCE_S,
    recorded: float = RECORDED,
) -> AsyncIterator[People]:
    """Open events with so many tickets, and have people come until the end of the block.

    Whoever is in the middle of an operation then is waited for, but not where the block fails.
    """
    async with connected(url, count) as clients:
        opened = [
            await clients[0].post_until_answered(
                "/initialize", {"name": f"Seed {seed}, {number}", "totalTickets": capacity}
            )
            for number, capacity in enumerate(tickets)
        ]
        event_ids = [int(one.body["event"]["id"]) for one in opened]
        people = crowd(event_ids, seed, patience_s=patience_s, recorded=recorded)
        tasks = [
            asyncio.create_task(people.attend(client, number))
            for number, client in enumerate(clients)
        ]
        try:
            yield people
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        finally:
            people.stopping = True
            await _ended(tasks)


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for everybody, then raise what the first of them failed with."""
    for found in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(found, Exception):
            raise found
