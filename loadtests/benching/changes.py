"""Changes other than a booking of one event: waiting, cancelling, many events, catching up."""

import os
import signal
import time

from loadtests.benching.measures import Measured, Sent
from loadtests.benching.stage import Stage
from loadtests.benching.traffic import BOOKING, Traffic, booking
from loadtests.benching.variants import TICKETS, Book, CpuWatch, OnsaleVariant, broken, unlike

_FILL_STEP_S = 5.0
_FEW = 20_000
_SPREAD = "Spread"


class SoldOut(OnsaleVariant):
    """New people come to an event that is sold out, and wait.

    `waiters`: how many wait there when a round begins; in each round an event of its own unless
    they are too many to fill it anew, which the many are.
    """

    leaves = "waiting"
    what = "POST /book of a sold-out event, each by another user, who then waits"

    def __init__(self, name: str, waiters: int = 0, *, many: bool = False) -> None:
        """Take how many wait there already; `many`: as the command line says."""
        super().__init__(name)
        self._waiters, self._many = waiters, many

    async def prepare(self, stage: Stage) -> None:
        """Fill what is too long to be filled for each round."""
        await super().prepare(stage)
        if self._many:
            self._waiters = stage.options.waiters
            await self._fill()

    async def before(self, number: int, seconds: float) -> None:
        """Sell an event out."""
        del number, seconds
        if not self._many:
            await self._fill()

    async def _fill(self) -> None:
        self.event = await self.onsale.open(1)
        address = self.onsale.address
        few = min(self._waiters, _FEW) + 1
        await self.stage.send_each(address, booking(self.event, "w0-"), few)
        step = 1
        while await self._waiting() < self._waiters:
            traffic = booking(self.event, f"w{step}-")
            connections = self.stage.options.connections
            await self.stage.send(address, traffic, _FILL_STEP_S, connections)
            step += 1

    async def _waiting(self) -> int:
        await self.onsale.drain()
        query = "SELECT waiting FROM events WHERE id = $1"
        return int(await self.onsale.postgresql.fetchval(query, self.event))

    def traffic(self, number: int) -> Traffic:
        """Return bookings by this round's users."""
        return booking(self.event, f"r{number:02}-")


class Cancel(OnsaleVariant):
    """Tickets come back, nobody waits."""

    leaves = "cancelled"
    what = "POST /cancel, each by another user"

    async def before(self, number: int, seconds: float) -> None:
        """Book more than can be cancelled in the time."""
        traffic = booking(self.event, f"c{number:02}-")
        address, connections = self.onsale.address, self.stage.options.connections
        if self.stage.options.wrk:
            await self.stage.send(address, traffic, 2 * seconds, connections)
        else:
            await self.stage.send_each(address, traffic, round(20_000 * seconds))

    def traffic(self, number: int) -> Traffic:
        """Return cancellations in the order of the bookings."""
        events = range(self.event, self.event + 1)
        return Traffic("POST", "/cancel", BOOKING, events=events, users=f"c{number:02}-")


class ManyEvents(Book):
    """Bookings that are spread over many events at random."""

    what = "POST /book, each of one of 10,000 events at random (--events)"

    async def prepare(self, stage: Stage) -> None:
        """Open them."""
        await super().prepare(stage)
        many = stage.options.events
        body = f'{{"name":"{_SPREAD}","totalTickets":{TICKETS}}}'
        await stage.send_each(self.onsale.address, Traffic("POST", "/initialize", body), many)
        await self.onsale.settle()
        query = "SELECT id FROM events WHERE name = $1 AND status = 'open' ORDER BY id"
        ids = [row["id"] for row in await self.onsale.postgresql.fetch(query, _SPREAD)]
        self._events = range(ids[0], ids[-1] + 1)
        if list(self._events) != ids or len(ids) != many:
            msg = f"{len(ids)} of {many} events were opened, from {ids[0]} to {ids[-1]}"
            raise RuntimeError(msg)

    def traffic(self, number: int) -> Traffic:
        """Return bookings by this round's users."""
        return booking(self._events, f"r{number:02}-")


class CatchUp(Book):
    """What the writer puts on record when it has been away: changes per second.

    It is frozen while a crowd books, and measured alone: nobody books then.
    """

    what = "changes per second that a writer puts on record when it was away (frozen)"

    async def run(self, number: int, seconds: float) -> Measured:
        """Freeze the writer, book, and measure from its first moment until all is on record."""
        before = await self.onsale.settle()
        (writer,) = self.onsale.roots["writer"]
        os.kill(writer, signal.SIGSTOP)
        try:
            sent = await self.send(self.traffic(number), seconds)
            last = await self.onsale.last()
            watch = CpuWatch({name: self.onsale.roots[name] for name in ("writer", "postgresql")})
            began = time.monotonic()
        finally:
            os.kill(writer, signal.SIGCONT)
        await self.onsale.drain()
        took = time.monotonic() - began
        caught = Sent(took, last - before, 0, 0, 0.0, 0.0)
        cpu = watch.per_answer(caught)
        await self.onsale.settle()
        changes = await self.onsale.changes_after(before)
        wrong = [*broken(sent), *unlike(changes, self.leaves, sent)]
        return Measured(caught, cpu, others=watch.others, wrong=wrong)
