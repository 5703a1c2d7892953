"""How an event comes into Redis that Redis does not know: from a record that has caught up.

A script that misses an event says R; the record must have reached that R before the event is read
from it, in one snapshot with P. Loads of one event share one attempt. A miss is remembered briefly,
within its epoch, in a bounded number, and only saves the question to PostgreSQL, after Redis was
asked. Only a record that cannot have lost an event is believed that there is none: what Redis does
not hold was on record when its epoch began, so a record that has the epoch and reaches W has it. Of
any other, the stores are compared, and Redis is asked again.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import structlog

from service.errors import Problem
from service.event_record import Extent, Look, UserOnRecord
from service.keys import event_keys, events_key
from service.ledger import UNAVAILABLE, Ledger, LedgerPool
from service.lineage import Position
from service.partition import Partition

log = structlog.stdlib.get_logger("onsale.loader")

_CHUNK_USERS = 1_000
_CATCH_UP_S = 10.0
_POLL_S = 0.005
_POLL_MAX_S = 0.1
_BUSY_S = 0.05
_BUSY_MAX_S = 1.0
_CLAIM_EVERY_S = 0.5
_MISS_S = 1.0
_MISSES_MAX = 10_000
_CALL_S = 3.0


class Loader:
    """Loads events of one partition for one worker."""

    def __init__(self, partition: Partition, ledgers: LedgerPool) -> None:
        """Nothing is loaded until somebody misses it."""
        self._partition = partition
        self._ledgers = ledgers
        self._loads: dict[int, asyncio.Task[None]] = {}
        self._misses: OrderedDict[int, tuple[int, float]] = OrderedDict()
        self._pauses: dict[int, float] = {}

    async def load(self, event_id: int, missed_at: Position, deadline: float) -> None:
        """Load an event that a script missed at `missed_at`; afterwards, ask the script again.

        Raises Problem: `event_not_found`, or `unavailable` when the deadline comes first (the load
        goes on).
        """
        loop = asyncio.get_running_loop()
        epoch, until = self._misses.get(event_id, (0, 0.0))
        if epoch == missed_at.epoch and until > loop.time():
            raise Problem("event_not_found")
        task = self._loads.get(event_id)
        if task is None:
            task = self._loads[event_id] = loop.create_task(self._load(event_id, missed_at))
            task.add_done_callback(lambda done: self._forget(event_id, done))
        done, _ = await asyncio.wait({task}, timeout=max(0.0, deadline - loop.time()))
        if not done:
            raise Problem("unavailable", "The event is being loaded.")
        task.result()

    async def stop(self) -> None:
        """End all loads; one that is cut off counts as abandoned."""
        for task in self._loads.values():
            task.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)

    def _forget(self, event_id: int, done: asyncio.Task[None]) -> None:
        self._loads.pop(event_id, None)
        if not done.cancelled():
            done.exception()  # looked at: those who waited may all have given up

    def _missed(self, event_id: int, epoch: int) -> Problem:
        self._misses[event_id] = epoch, asyncio.get_running_loop().time() + _MISS_S
        self._misses.move_to_end(event_id)
        while len(self._misses) > _MISSES_MAX:
            self._misses.popitem(last=False)
        return Problem("event_not_found")

    async def _load(self, event_id: int, missed_at: Position) -> None:
        try:
            # W before P, which a sound record never has below it.
            recorded = await self._partition.watermark(missed_at.epoch)
            if recorded is None:
                return
            async with self._ledgers.acquire() as ledger:
                found = await ledger.event_record.look(event_id, self._partition.number)
            if self._doubts(found.extent, missed_at.epoch, recorded):
                return
            if not found.drawn:
                raise self._missed(event_id, missed_at.epoch)
            await self._catch_up(missed_at)
            async with self._ledgers.acquire() as ledger, ledger.snapshot():
                found = await ledger.event_record.look(event_id, self._partition.number)
                if self._doubts(found.extent, missed_at.epoch, missed_at):
                    return
                if found.event is None:
                    raise self._missed(event_id, missed_at.epoch)
                outcome = await self._carry(ledger, event_id, found, missed_at.epoch)
            await self._wait_for_another(event_id, outcome)
        except UNAVAILABLE as error:
            log.warning(
                "event cannot be loaded", event_id=event_id, why=str(error) or type(error).__name__
            )
            raise Problem("unavailable") from error

    async def _wait_for_another(self, event_id: int, outcome: str) -> None:
        """Let some time pass where another worker loads the event: more, the longer it takes."""
        pause = self._pauses.pop(event_id, _BUSY_S)
        if outcome == "BUSY":
            self._pauses[event_id] = min(2 * pause, _BUSY_MAX_S)
            await asyncio.sleep(pause)

    def _doubts(self, extent: Extent, epoch: int, at: Position) -> bool:
        """Whether a record may have lost the event; if so, have it compared before the next call.

        `at` is what it has to reach.
        """
        if extent.reaches(epoch, at):
            return False
        log.warning(
            "this record may lack events, it is to be compared",
            partition=self._partition.number,
            wanted=at.entry_id,
            found=extent.recorded.entry_id,
            epoch=epoch,
            newest_epoch=extent.newest,
        )
        self._partition.doubt(epoch)
        return True

    async def _catch_up(self, missed_at: Position) -> None:
        """Wait until P has reached the R at which the event was missed.

        Each look borrows a connection anew, so that loads which wait for a writer that is away keep
        nobody else from the record.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _CATCH_UP_S
        pause = _POLL_S
        while True:
            async with self._ledgers.acquire() as ledger:
                if await ledger.cursor(self._partition.number) >= missed_at:
                    return
            if loop.time() > until:
                raise Problem("unavailable", "The record has not caught up yet.")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _POLL_MAX_S)

    async def _carry(self, ledger: Ledger, event_id: int, found: Look, epoch: int) -> str:
        """Bring one event over, in chunks, and make it present with the last call.

        Returns what the load script said last. The claim of this loader, which counts as gone after
        two silent seconds, is kept while PostgreSQL reads.
        All in the epoch in which it was missed: a snapshot says nothing about a later one.
        """
        event = found.event
        assert event is not None  # or there is nothing to carry
        call = partial(self._call, event_id, epoch)
        token = secrets.token_hex(8)
        # Before anything is read that costs: of all workers one reads.
        outcome = await call("begin", token, found.extent.recorded.seq)
        if outcome != "BEGUN":
            return outcome
        turn = waiting = booked = 0
        async for page in _while_claimed(
            ledger.event_record.users(event_id, count=_CHUNK_USERS), partial(call, "chunk", token)
        ):
            chunk: list[str | int] = []
            for user in page:
                waits = user.status == "waiting"
                turn += waits
                waiting += waits
                booked += user.status == "booked"
                chunk += _held(user, turn if waits else 0)
            if await call("chunk", token, *chunk) != "ADDED":
                return "TAKEN"
        if (booked, waiting) != (event.sold, event.waiting):
            log.error(
                "the record of an event does not add up",
                event_id=event_id,
                counted={"sold": event.sold, "waiting": event.waiting},
                listed={"booked": booked, "waiting": waiting},
            )
            raise Problem("closed", "The record of this event does not add up.")
        outcome = await call(
            "finish", token, event.capacity, event.capacity - booked, waiting, turn + 1,
            event.name, event.created_at, event.updated_at,
        )  # fmt: skip
        if outcome == "LOADED":
            log.info("event loaded", event_id=event_id, booked=booked, waiting=waiting)
        return outcome

    async def _call(
        self, event_id: int, epoch: int, step: str, token: str, *arguments: str | int
    ) -> str:
        """One call of the load script.

        Not numbered: a chunk whose fate is unknown is not sent again under the same token, and the
        next attempt starts over from empty keys.
        """
        keys = [
            self._partition.keys.meta,
            *event_keys(self._partition.number, event_id),
            events_key(self._partition.number),
        ]
        deadline = asyncio.get_running_loop().time() + _CALL_S
        arguments = (step, token, *arguments)
        reply = await self._partition.once("load_event", keys, arguments, deadline, epoch=epoch)
        return reply.words[0]


async def _while_claimed(
    pages: AsyncIterator[list[UserOnRecord]], claim: Callable[[], Awaitable[str]]
) -> AsyncIterator[list[UserOnRecord]]:
    """Yield pages, and say every half second that the loader waits for one and is not gone."""
    while True:
        asked = asyncio.ensure_future(anext(pages, None))
        try:
            while not (await asyncio.wait({asked}, timeout=_CLAIM_EVERY_S))[0]:
                await claim()  # where it is lost, the next chunk is told so
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.wait({asked})
        page = asked.result()
        if page is None:
            return
        yield page


def _held(user: UserOnRecord, turn: int) -> list[str | int]:
    """Return what the load script takes for one user: user, state as Redis holds it, turn."""
    state = f"{user.status} {user.seq} {user.quantity} {turn} {user.keyed}".rstrip()
    return [user.user_id, state, turn or ""]
