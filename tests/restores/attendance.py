"""People who book, cancel, look and repeat, and everything that they were answered."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random

from loadtests.answers import KEPT, Told
from service.crowd import Operation
from service.lineage import Position
from tests.crowd import Answer, Client, connected
from tests.deployment import Deployment

PEOPLE = 8
PAUSE_S = 0.02
CHOICES: dict[Operation, float] = {"book": 0.55, "cancel": 0.2, "poll": 0.15, "look": 0.1}


@dataclass(frozen=True)
class Heard:
    """One answer; `at` is the change that it tells of, None for an answer that tells of none."""

    told: Told
    at: Position | None = None
    code: str = ""
    detail: str = ""

    @property
    def is_pending(self) -> bool:
        """Whether a change was made, and nothing promised yet."""
        return self.told.state == "pending"


@dataclass
class Attendance:
    """Everybody at one event. `heard` has all answers, in their order.

    At the level `recorded` every other request asks for it.
    """

    event_id: int
    seed: int
    level: str
    heard: list[Heard] = field(default_factory=list)
    answered: int = 0
    stopping: bool = False

    async def grow(self, count: int) -> None:
        """Wait until so many more requests had an answer that says something."""
        target = self.answered + count
        async with asyncio.timeout(90):
            while self.answered < target:
                await asyncio.sleep(0.005)

    async def are_told(self, code: str) -> None:
        """Wait until somebody is refused with that code."""
        known = len(self.heard)
        async with asyncio.timeout(90):
            while all(one.code != code for one in self.heard[known:]):
                await asyncio.sleep(0.01)

    async def grow_or_wait(self, count: int) -> None:
        """Wait until so many more had an answer, or all may be waiting for one of the record."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self.grow(count)

    async def attend(self, client: Client, number: int) -> None:
        """One person, with ever new names; each request is repeated until it is answered."""
        chance = Random(f"{self.level} {self.seed} {number}")
        names: list[str] = []
        asked = 0
        while not self.stopping:
            operation = chance.choices([*CHOICES], [*CHOICES.values()])[0]
            if operation in ("book", "look") or not names:
                operation = "look" if operation == "look" else "book"
                again = names and operation == "book" and chance.random() < 0.2
                user = chance.choice(names) if again else f"p{number}-{asked}"
            else:
                user = chance.choice(names)
            prefers = self.level == "recorded" and chance.random() < 0.5
            heard = await self._until_answered(client, operation, user, prefers=prefers)
            # Who was told nothing yet learns the place in the line too late to compare it.
            if operation == "book":
                names = [name for name in names if name != user]
                names += [user] if heard and not heard.is_pending else []
            asked += operation == "book"

    async def _until_answered(
        self, client: Client, operation: Operation, user: str, *, prefers: bool
    ) -> Heard | None:
        while not self.stopping:
            sent = time.monotonic()
            answer = await self._ask(client, operation, user, prefers=prefers)
            self.heard.append(_heard(operation, user, answer, sent))
            if answer.status not in (0, 503):
                self.answered += 1
                return self.heard[-1]
            await asyncio.sleep(PAUSE_S)
        return None

    async def _ask(
        self, client: Client, operation: Operation, user: str, *, prefers: bool
    ) -> Answer:
        if operation == "look":
            return await client.get(f"/status/{self.event_id}")
        if operation == "poll":
            return await client.get(f"/events/{self.event_id}/users/{user}")
        body = {"eventId": self.event_id, "userId": user}
        return await client.post(
            f"/{operation}", body, prefer="durability=recorded" if prefers else ""
        )


def _heard(operation: Operation, user: str, answer: Answer, sent: float) -> Heard:
    body = {**answer.body, "state": answer.body.get("status")}
    code = body.get("code", "")
    if code:
        body["state"] = None  # in a problem `status` is the number once more
    kept = {name: body.get(name) for name in KEPT}
    told = Told(
        operation,
        user,
        answer.status,
        sent,
        time.monotonic(),
        seq=kept["seq"],
        state=kept["state"],
        position=kept["position"],
        reassigned=kept["reassigned"],
        durability=kept["durability"],
        remaining=kept["remainingTickets"],
        waiting=kept["waitingListCount"],
        code=kept["code"],
    )
    at = Position(body["epoch"], body["seq"]) if "epoch" in body and "seq" in body else None
    return Heard(told, at, code, body.get("detail", ""))


@contextlib.asynccontextmanager
async def attending(
    deployment: Deployment, tickets: int, seed: int, level: str
) -> AsyncIterator[Attendance]:
    """Open an event, which is put on record, and have people come until the end of the block."""
    async with connected(deployment.url, PEOPLE) as clients:
        opened = await clients[0].post_until_answered(
            "/initialize", {"name": f"Seed {seed}", "totalTickets": tickets}
        )
        await deployment.is_recorded()
        attendance = Attendance(int(opened.body["event"]["id"]), seed, level)
        people = [
            asyncio.create_task(attendance.attend(client, number))
            for number, client in enumerate(clients)
        ]
        try:
            yield attendance
        finally:
            attendance.stopping = True
            await asyncio.gather(*people)
            deployment.answered = attendance.answered
