"""The workload: people who book, cancel and look, and repeat an operation until they know.

Every operation has a key of its own, and is sent again under it until an answer says what it came
to, whatever happens to the service: a history has no open ends. Most users are one person's; some
are everybody's, so that two at once change the same one.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
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

    async def grow(self, count: int) -> None:
        """Wait until so many more operations have come to their end."""
        target = self.answered + count
        async with asyncio.timeout(PATIENCE_S):
            while self.answered < target:
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
            self.answered += 1

    async def _to_the_end(self, client: Client, one: Operation, prefer: str) -> None:
        until = time.monotonic() + self.patience_s
        while time.monotonic() < until:
            one.sends += 1
            sent = time.monotonic()
            answer = await self._ask(client, one, prefer)
            self.slowest_s = max(self.slowest_s, time.monotonic() - sent)
            is_pending = answer.body.get("status") == "pending"
            if answer.status not in (0, 503) and not is_pending:
                one.completed = time.monotonic()
                one.status, one.body = answer.status, answer.body
                return
            await asyncio.sleep(PAUSE_S)

    @staticmethod
    async def _ask(client: Client, one: Operation, prefer: str) -> Answer:
        if one.kind == "look":
            return await client.get(f"/status/{one.event_id}")
        if one.kind == "poll":
            return await client.get(f"/events/{one.event_id}/users/{one.user}")
        body = {"eventId": one.event_id, "userId": one.user}
        return await client.post(f"/{one.kind}", body, one.key, prefer=prefer)


@contextlib.asynccontextmanager
async def people_at(
    url: str,
    tickets: Sequence[int],
    seed: int,
    *,
    count: int = PEOPLE,
    patience_s: float = PATIENCE_S,
    recorded: float = RECORDED,
) -> AsyncIterator[People]:
    """Open events with so many tickets, and have people come until the end of the block.

    Whoever is in the middle of an operation then is waited for.
    """
    async with connected(url, count) as clients:
        opened = [
            await clients[0].post_until_answered(
                "/initialize", {"name": f"Seed {seed}, {number}", "totalTickets": capacity}
            )
            for number, capacity in enumerate(tickets)
        ]
        event_ids = [int(one.body["event"]["id"]) for one in opened]
        people = People(event_ids, seed, patience_s=patience_s, recorded=recorded)
        tasks = [
            asyncio.create_task(people.attend(client, number))
            for number, client in enumerate(clients)
        ]
        try:
            yield people
        finally:
            people.stopping = True
            await asyncio.gather(*tasks)
