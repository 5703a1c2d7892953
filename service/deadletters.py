"""The operator's way with refused changes: what is kept, what stands, setting aside, putting back.

Each plan is a trial that changes nothing; each deed is an order to the handshake of its partition.
What is refused is found before anything is closed, and where the deed fails all the same, the
partition is opened again as it was.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import asyncpg
import structlog
from redis.exceptions import RedisError

from service.errors import RefusedChangeError
from service.handshake import Handshake, HandshakeImpossible, Opened, StaysClosed
from service.keys import partition_of
from service.ledger import Ledger, connect
from service.orders import Order
from service.record import Refused
from service.record_view import RecordView
from service.redis_store import RedisStore
from service.setting_aside import (
    NotPossible,
    Standing,
    check_seqs,
    moving,
    refused_again,
    retrying,
    standing,
)

log = structlog.stdlib.get_logger("onsale.deadletters")


@dataclass(frozen=True, slots=True)
class Kept:
    """All dead letters by partition and seq, the partitions that stand, and those not looked at."""

    letters: Sequence[asyncpg.Record]
    standing: Sequence[Standing]
    unknown: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Retry:
    """The letters of an event, and which of them is refused; `done` once they are on record.

    Without letters there is nothing to do, or no more.
    """

    letters: Sequence[asyncpg.Record]
    refused: Refused | None
    done: Opened | StaysClosed | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """What stands, None where it is set aside already; `done` once this has been."""

    found: Standing | None
    done: Opened | StaysClosed | None = None


class DeadLetters:
    """The three deeds, on two stores. Methods raise what the stores' clients raise."""

    def __init__(
        self, redis: RedisStore, ledger: Ledger, handshakes: Mapping[int, Handshake]
    ) -> None:
        """Take what it works with; `handshakes` are those of all partitions."""
        self._redis = redis
        self._ledger = ledger
        self._handshakes = handshakes

    @classmethod
    async def open(
        cls,
        redis_url: str,
        postgresql_url: str,
        make: Callable[[RedisStore, int], Mapping[int, Handshake]],
    ) -> Self:
        """Connect. `make` gives the handshakes of as many partitions as are on record."""
        async with await RecordView.open(postgresql_url, purpose="deadletters") as record:
            partitions = await record.partitions() or 0
        redis = RedisStore(redis_url)
        ledger = await connect(postgresql_url, purpose="deadletters")
        return cls(redis, ledger, make(redis, partitions) if partitions else {})

    async def __aenter__(self) -> Self:
        """Nothing to do: it is connected."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close both connections."""
        await self._ledger.__aexit__(kind, error, traceback)
        await self._redis.aclose()

    async def kept(self) -> Kept:
        """Return what is kept, and what stands."""
        letters = await self._ledger.letters.kept()
        stand, unknown = [], {}
        for partition in self._handshakes:
            try:
                found = await standing(self._redis, self._ledger, partition)
            except RedisError as error:
                unknown[partition] = f"Redis: {error or type(error).__name__}"
                continue
            if found is not None:
                stand.append(found)
        return Kept(letters, stand, unknown)

    async def move(self, partition: int, seqs: Collection[int], *, apply: bool) -> Move:
        """Set the refused changes with these seqs aside, or plan to.

        Raises NotPossible, and HandshakeImpossible where it cannot be done at the moment.
        """
        if partition not in self._handshakes:
            msg = f"the record has no partition {partition}"
            raise NotPossible(msg)
        if await self._ledger.letters.holds(partition, seqs):
            return Move(None)
        found = await standing(self._redis, self._ledger, partition)
        check_seqs(found, partition, seqs)
        if not apply:
            return Move(found)
        return Move(found, await self._do(partition, moving(self._redis, partition, seqs)))

    async def retry(self, event_id: int, *, apply: bool) -> Retry:
        """Put an event's dead letters on record, or plan to; one that is refused says why anew.

        May be repeated. Raises NotPossible where the record has no such event, and
        HandshakeImpossible.
        """
        letters = await self._ledger.letters.kept(event_id)
        if not letters:
            number = partition_of(event_id, max(1, len(self._handshakes)))
            if not (await self._ledger.event_record.look(event_id, number)).drawn:
                msg = f"the record has no event {event_id}"
                raise NotPossible(msg)
            return Retry(letters, None)
        partition: int = letters[0]["partition"]
        refused = await refused_again(self._ledger, partition, event_id)
        if refused is not None and apply:
            await self._ledger.letters.note(partition, refused.seq, refused.reason)
        if refused is not None or not apply:
            return Retry(letters, refused)
        return Retry(letters, None, await self._do(partition, retrying(partition, event_id)))

    async def _do(self, partition: int, order: Order) -> Opened | StaysClosed:
        """Run the handshake with an order; open again what a deed that failed has closed."""
        handshake = self._handshakes[partition]
        try:
            return await handshake.run(order=order)
        except (NotPossible, RefusedChangeError) as error:
            log.warning("not done, the partition is opened again", partition=partition)
            try:
                await handshake.run()
            except HandshakeImpossible as impossible:
                log.warning("cannot open now, the service will", why=str(impossible))
            raise NotPossible(str(error)) from error
