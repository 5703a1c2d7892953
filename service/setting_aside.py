"""Which change PostgreSQL refuses, and how it is set aside or put back (PROTOCOL, rule 25).

What is refused is never taken from a log or a memory: it is tried, under the cursor's lock, in a
transaction that is undone. The work on the record is done as an order to a handshake, while the
partition is closed, so that a new epoch begins behind it: whoever waits for the change to be on
record is told that it is not known, and Redis is told by that epoch which events are frozen. It may
die anywhere: what it has committed is whole, and any handshake after it says the rest to Redis. A
record that went back to before a change was set aside meets it again: then this is part of the
replay, and what leads to the change is proven first, from P to R, as a replay proves it.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import asyncpg
import structlog

from service.bringing_forward import BringingForward
from service.errors import CorruptEntryError, LineageError, RefusedChangeError
from service.ledger import Ledger
from service.orders import Order
from service.outbox import Change, Entry
from service.record import Application, Refused, change_of
from service.redis_store import Closed, RedisStore
from service.unrecorded import Touch
from service.verdicts import went_back

log = structlog.stdlib.get_logger("onsale.deadletters")


class NotPossible(Exception):
    """What was asked for cannot be done as things are, and why."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The entry behind which the writer of a partition stands.

    `refused` holds, by event, the first of its changes that PostgreSQL refuses; of an entry that
    cannot be read or does not follow there is none, and `why` says so. `went_back`: Redis knows of
    more on record, so that it is a replay which stands there, and the partition stays closed.
    """

    partition: int
    entry: Entry | None = None
    refused: Mapping[int, Refused] = field(default_factory=dict)
    why: str = ""
    went_back: bool = False

    @property
    def changes(self) -> list[Change]:
        """The changes that are refused, in order."""
        seqs = {refused.seq for refused in self.refused.values()}
        return [c for c in self.entry.changes if c.seq in seqs] if self.entry else []

    def following(self, refused: Change) -> list[Change]:
        """Return the later changes of the same event in the entry, which would go with it."""
        assert self.entry is not None  # it has the refused change
        same = (c for c in self.entry.changes if c.event_id == refused.event_id)
        return [change for change in same if change.seq > refused.seq]


class _UndoneError(Exception):
    """Thrown to have a transaction rolled back that was only a trial."""


async def standing(redis: RedisStore, ledger: Ledger, partition: int) -> Standing | None:
    """Return what a partition's writer stands before, None when it can go on. Changes nothing.

    Raises what the stores' clients raise; an error of PostgreSQL that is about no change is one of
    these.
    """
    found: Standing | None = None
    with suppress(_UndoneError):
        async with ledger.applying([partition]) as application:
            found = await _standing(redis, application, partition)
            raise _UndoneError
    return found


def moving(redis: RedisStore, partition: int, seqs: Collection[int]) -> Order:
    """Return the order to set the refused changes with these seqs aside.

    Its work raises NotPossible where these are not exactly what PostgreSQL refuses by then.
    """

    async def move(ledger: Ledger, closed: Closed, touch: Touch) -> None:
        if await _went_back(ledger, partition, closed):
            await _lead_up(BringingForward(partition, redis, ledger, closed, touch))
        async with ledger.applying([partition]) as application:
            if await application.letters.holds(partition, seqs):
                return  # done, by this order's attempt before
            found = await _standing(redis, application, partition)
            check_seqs(found, partition, seqs)
            assert found is not None  # or the check had raised
            assert found.entry is not None
            await application.record(partition, found.entry.changes, found.refused)
        log.warning("changes set aside", partition=partition, seqs=sorted(seqs))

    words = ", ".join(map(str, sorted(seqs)))
    return Order(reason=f"an operator has set aside change {words}", while_closed=move)


def retrying(partition: int, event_id: int) -> Order:
    """Return the order to put all dead letters of an event on record.

    Its work raises RefusedChangeError where one of them is refused again; then nothing is done.
    """

    async def put_back(ledger: Ledger, _: Closed, __: Touch) -> None:
        async with ledger.applying([partition]) as application:
            letters = await application.letters.kept(event_id)
            await _restore(application, partition, letters)
            await application.letters.remove(event_id)
        log.warning("dead letters put on record", event_id=event_id, count=len(letters))

    reason = f"an operator has put the dead letters of event {event_id} on record"
    return Order(reason=reason, while_closed=put_back)


async def _went_back(ledger: Ledger, partition: int, closed: Closed) -> bool:
    recorded = await ledger.cursor(partition)
    return went_back(closed, recorded, (await ledger.lineages([partition]))[partition])


async def _lead_up(forward: BringingForward) -> None:
    """Bring a record that went back forward, up to what it refuses. Raises NotPossible.

    What this proves, from P to R, holds for the entry that is about to be split.
    """
    try:
        await forward.run()
    except RefusedChangeError:
        pass  # this is where it stands
    except (LineageError, CorruptEntryError) as error:
        msg = f"PostgreSQL went back, and cannot be brought forward: {error}"
        raise NotPossible(msg) from error


async def refused_again(ledger: Ledger, partition: int, event_id: int) -> Refused | None:
    """Return which of an event's dead letters is still refused, None when none is.

    Changes nothing; PostgreSQL answers the trial as it would answer the retry.
    """
    found: Refused | None = None
    with suppress(_UndoneError):
        async with ledger.applying([partition]) as application:
            letters = await application.letters.kept(event_id)
            found = await _first_refused(application, partition, letters)
            raise _UndoneError
    return found


def check_seqs(found: Standing | None, partition: int, seqs: Collection[int]) -> None:
    """Raise NotPossible unless these are the changes before which a partition's writer stands."""
    if found is None:
        msg = f"nothing stands in partition {partition}: PostgreSQL takes what comes next"
        raise NotPossible(msg)
    if found.entry is None:
        msg = f"partition {partition}: {found.why}; what cannot be read cannot be set aside"
        raise NotPossible(msg)
    refused = {change.seq for change in found.changes}
    if refused != {*seqs}:
        words = " and ".join(map(str, sorted(refused)))
        msg = f"what PostgreSQL refuses in entry {found.entry.last.entry_id} is change {words}"
        raise NotPossible(msg)


async def _standing(redis: RedisStore, application: Application, partition: int) -> Standing | None:
    if partition not in application.cursors:
        return None
    at = application.cursors[partition].last
    try:
        async with aclosing(redis.outbox_after(partition, at)) as entries:
            entry = await anext(entries, None)
    except CorruptEntryError as error:
        return Standing(partition, why=str(error))
    if entry is None:
        return None
    if not application.lineages[partition].follows(at, entry.first, entry.last):
        why = f"entry {entry.last.entry_id} does not follow {at.entry_id}"
        return Standing(partition, why=why)
    try:
        refused = await _refused(application, partition, entry)
    except RefusedChangeError as error:
        return Standing(partition, why=f"entry {entry.last.entry_id}: {error}")
    if not refused:
        return None
    meta = await redis.meta(partition)
    return Standing(partition, entry, refused, went_back=meta is not None and meta.recorded > at)


async def _refused(application: Application, partition: int, entry: Entry) -> dict[int, Refused]:
    """Try an entry whole, then change by change; return the first refused one of each event.

    Raises RefusedChangeError where that is about no event, or the whole is refused and no part.
    """
    refused: dict[int, Refused] = {}
    try:
        await _try(application, partition, entry.changes, refused)
    except RefusedChangeError:
        with suppress(_UndoneError):
            async with application.savepoint():
                for change in entry.changes:
                    try:
                        async with application.savepoint():
                            await application.record(partition, [change], refused)
                    except RefusedChangeError as error:
                        if change.event_id is None:
                            raise
                        refused[change.event_id] = Refused(change.seq, str(error))
                raise _UndoneError from None
        await _try(application, partition, entry.changes, refused)
    return refused


async def _try(
    application: Application,
    partition: int,
    changes: Sequence[Change],
    refused: Mapping[int, Refused],
) -> None:
    with suppress(_UndoneError):
        async with application.savepoint():
            await application.record(partition, changes, refused)
            raise _UndoneError


async def _restore(
    application: Application, partition: int, letters: Sequence[asyncpg.Record]
) -> None:
    hashes = {letter["seq"]: letter["hash"] for letter in letters}
    await application.restore(partition, [change_of(letter) for letter in letters], hashes)


async def _first_refused(
    application: Application, partition: int, letters: Sequence[asyncpg.Record]
) -> Refused | None:
    """Halve until the first letter is found with which those before it are refused."""
    taken, refused, reason = 0, len(letters) + 1, ""
    probe = len(letters)
    while refused - taken > 1:
        try:
            with suppress(_UndoneError):
                async with application.savepoint():
                    await _restore(application, partition, letters[:probe])
                    raise _UndoneError
            taken = probe
        except RefusedChangeError as error:
            refused, reason = probe, str(error)
        probe = (taken + refused) // 2
    return None if refused > len(letters) else Refused(letters[refused - 1]["seq"], reason)
