"""What a writer that is behind has ready before it is its turn, and what it then makes of it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from service.lineage import Position
from service.lingering import Lingering, Raw
from service.loads import Load, Loads
from service.outbox import Change
from service.record import Cursor
from service.redis_store import RedisStore
from service.rows import chained, rows_of

LOAD = 300
"""Changes of a full load; as many are decoded in two turns."""

START = Position(1, 10)
HEAD = b"h" * 32


def line(seq: int) -> str:
    """Return a change as an entry holds it."""
    return f"booked 1 u{seq}"


class Outboxes:
    """Outboxes that hold an entry for each seq up to an end, read as Redis does."""

    def __init__(self, **ends: int) -> None:
        """Take the last seq of each partition, `p0` and on."""
        self.ends = {int(name[1:]): end for name, end in ends.items()}
        self.wrong: dict[int, dict[str, str]] = {}
        self.is_away = False
        self.asked: list[Mapping[int, Position]] = []
        self.blocked: list[int] = []

    async def read_outboxes(
        self, after: Mapping[int, Position], *, block_ms: int, count: int
    ) -> Raw:
        """Return what follows."""
        self.asked.append(dict(after))
        self.blocked.append(block_ms)
        await asyncio.sleep(0)
        if self.is_away:
            raise RedisConnectionError
        found = {
            p: [self._entry(seq) for seq in range(at.seq + 1, self.ends[p] + 1)][:count]
            for p, at in after.items()
        }
        return {p: entries for p, entries in found.items() if entries}

    def _entry(self, seq: int) -> tuple[str, dict[str, str]]:
        fields = {"v": "2", "at": str(1_000_000 + seq), "first": str(seq), "changes": line(seq)}
        return f"1-{seq}", fields | self.wrong.get(seq, {})


def loads_of(outboxes: Outboxes) -> Loads:
    """Return what is tested."""

    async def sleep(_: float) -> None: ...

    return Loads(
        Lingering(
            cast(RedisStore, outboxes),
            linger_s=0.0,
            clock=lambda: 0.0,
            sleep=sleep,
            load_changes=LOAD,
        )
    )


async def taken(loads: Loads, after: Mapping[int, Position]) -> Load:
    """Take a load that must be there."""
    load = await loads.take(after)
    assert load is not None
    return load


def seqs(load: Load, partition: int = 0) -> list[int]:
    """Return the seqs of a load's changes."""
    return [c.seq for entry in load.entries.get(partition, ()) for c in entry.changes]


def changes(load: Load, partition: int = 0) -> list[Change]:
    """Return a load's changes."""
    return [c for entry in load.entries[partition] for c in entry.changes]


def until(done: Callable[[], bool]) -> Awaitable[None]:
    """Work that goes on until something is seen."""

    async def work() -> None:
        async with asyncio.timeout(10):
            while not done():
                await asyncio.sleep(0)

    return work()


async def nothing() -> None:
    """Work that is done at once."""


async def test_the_next_load_is_read_while_one_goes_on_record() -> None:
    """And taken without another look, as what was read anew would be."""
    outboxes = Outboxes(p0=10 + 3 * LOAD)
    loads = loads_of(outboxes)
    load = await taken(loads, {0: START})
    read = len(outboxes.asked)
    await loads.during(load, until(lambda: len(outboxes.asked) > read))
    read = len(outboxes.asked)
    after = {0: Position(1, seqs(load)[-1])}
    ahead = await taken(loads, after)
    assert len(outboxes.asked) == read
    anew = await taken(loads_of(outboxes), after)
    assert ahead == anew
    assert seqs(ahead)[0] == seqs(load)[-1] + 1
    assert any(outboxes.blocked[:1])
    assert not any(outboxes.blocked[1:read])


@pytest.mark.parametrize("end", [10 + LOAD - 1, 11])
async def test_nothing_is_read_ahead_of_a_load_that_is_not_full(end: int) -> None:
    """Whoever keeps up commits as before: what comes meanwhile shares the next commit."""
    outboxes = Outboxes(p0=end)
    loads = loads_of(outboxes)
    load = await taken(loads, {0: START})
    assert not load.is_full
    assert not load.rows
    read = len(outboxes.asked)
    outboxes.ends[0] += 2 * LOAD
    await loads.during(load, nothing())
    assert len(outboxes.asked) == read


@pytest.mark.parametrize(
    "after",
    [
        {0: Position(1, 10 + LOAD // 2)},
        {0: Position(2, 522)},
        {0: Position(1, 522), 1: Position(1, 0)},
    ],
    ids=["not all of it went on record", "another epoch", "one partition more"],
)
async def test_what_was_read_for_another_place_is_forgotten(after: dict[int, Position]) -> None:
    """It is read anew from where the writer stands."""
    outboxes = Outboxes(p0=10 + 4 * LOAD, p1=1)
    loads = loads_of(outboxes)
    load = await taken(loads, {0: START})
    assert seqs(load)[-1] == 522  # twice 256 entries were read
    await loads.during(load, nothing())
    read = len(outboxes.asked)
    again = await taken(loads, after)
    assert outboxes.asked[read] == after
    assert seqs(again)[0] == after[0].seq + 1


async def test_rows_are_made_from_the_chains_head_on() -> None:
    """Those of load after load are what the transaction would make of the same changes."""
    outboxes = Outboxes(p0=10 + 4 * LOAD)
    loads = loads_of(outboxes)
    loads.begin_at({0: Cursor(START, HEAD)})
    after, head = START, HEAD
    for _ in range(2):
        load = await taken(loads, {0: after})
        assert load.is_full
        wanted = changes(load)
        assert load.rows == {0: rows_of(head, wanted, chained(head, 0, wanted))}
        after, head = Position(1, wanted[-1].seq), load.rows[0].head
        await loads.during(load, nothing())


async def test_rows_are_made_of_nothing_whose_head_is_not_known() -> None:
    """A head is good for its position; where none is known the transaction makes the rows."""
    outboxes = Outboxes(p0=10 + 4 * LOAD)
    loads = loads_of(outboxes)
    loads.begin_at({0: Cursor(Position(1, 9), HEAD), 1: Cursor(START, HEAD)})
    load = await taken(loads, {0: START})
    assert load.is_full
    assert not load.rows
    await loads.during(load, nothing())
    after = Position(1, seqs(load)[-1])
    loads.begin_at({0: Cursor(after, HEAD)})
    ahead = await taken(loads, {0: after})
    assert ahead.rows[0].after == HEAD


@pytest.mark.parametrize("place", [11, 600], ids=["in the first load", "in the one read ahead"])
@pytest.mark.parametrize(
    "wrong",
    [{"at": "9" * 18}, {"changes": 'opened 9 - {"name":"\udcff","totalTickets":1}'}],
    ids=["a time beyond all calendars", "a name that is no text"],
)
async def test_what_does_not_fit_into_rows_is_for_the_transaction(
    place: int, wrong: dict[str, str]
) -> None:
    """What no statement could take: the load is there, without rows, and nothing is raised."""
    outboxes = Outboxes(p0=10 + 4 * LOAD)
    outboxes.wrong[place] = wrong
    loads = loads_of(outboxes)
    loads.begin_at({0: Cursor(START, HEAD)})
    after = START
    while True:
        load = await taken(loads, {0: after})
        assert load.is_full
        await loads.during(load, nothing())
        if place in seqs(load):
            break
        assert load.rows
        after = Position(1, seqs(load)[-1])
    assert not load.rows


async def test_each_partition_has_its_head() -> None:
    """One that has nothing in a load has rows in the next, whatever the others have had."""
    outboxes = Outboxes(p0=10 + 4 * LOAD, p1=1)
    loads = loads_of(outboxes)
    loads.begin_at({0: Cursor(START, HEAD), 1: Cursor(Position(1, 1), b"1" * 32)})
    after = {0: START, 1: Position(1, 1)}
    load = await taken(loads, after)
    assert load.rows.keys() == {0}
    outboxes.ends[1] = 5
    await loads.during(load, nothing())
    ahead = await taken(loads, {**after, 0: Position(1, seqs(load)[-1])})
    assert ahead.rows.keys() == {0, 1}
    assert ahead.rows[1].after == b"1" * 32


async def test_what_is_forgotten_is_read_anew() -> None:
    """After a handshake what was ahead may be of an epoch that has ended, wherever it begins."""
    outboxes = Outboxes(p0=10 + 4 * LOAD)
    loads = loads_of(outboxes)
    load = await taken(loads, {0: START})
    await loads.during(load, nothing())
    read = len(outboxes.asked)
    loads.forget()
    await taken(loads, {0: Position(1, seqs(load)[-1])})
    assert len(outboxes.asked) > read


async def test_an_entry_that_cannot_be_read_ends_its_partitions_load() -> None:
    """With what is wrong with it; those before it, and the other partition's, are there."""
    outboxes = Outboxes(p0=20, p1=30)
    outboxes.wrong[15] = {"changes": "?"}
    load = await taken(loads_of(outboxes), {0: START, 1: Position(1, 20)})
    assert seqs(load) == [11, 12, 13, 14]
    assert seqs(load, 1) == list(range(21, 31))
    assert "1-15" in load.unreadable[0]
    assert list(load.unreadable) == [0]


async def test_a_redis_that_goes_away_meanwhile_is_met_at_the_next_reading() -> None:
    """The commit that is under way has nothing to do with it."""
    outboxes = Outboxes(p0=10 + 3 * LOAD)
    loads = loads_of(outboxes)
    load = await taken(loads, {0: START})
    outboxes.is_away = True
    await loads.during(load, nothing())
    with pytest.raises(RedisConnectionError):
        await loads.take({0: Position(1, seqs(load)[-1])})


async def test_a_commit_that_fails_leaves_nothing_behind() -> None:
    """Neither a reading that goes on nor a load: whoever begins afresh reads afresh."""
    outboxes = Outboxes(p0=10 + 3 * LOAD)
    loads = loads_of(outboxes)
    load = await taken(loads, {0: START})
    tasks = asyncio.all_tasks()

    async def fails() -> None:
        await until(lambda: len(outboxes.asked) > read)
        raise asyncio.IncompleteReadError(b"", 1)

    read = len(outboxes.asked)
    with pytest.raises(asyncio.IncompleteReadError):
        await loads.during(load, fails())
    assert asyncio.all_tasks() == tasks
    read = len(outboxes.asked)
    await taken(loads, {0: Position(1, seqs(load)[-1])})
    assert len(outboxes.asked) > read
