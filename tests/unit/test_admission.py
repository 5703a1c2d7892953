"""Who is refused while more comes than a worker can do, and who is not."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import pytest

from service.admission import BOOK, CANCEL, READ, STANDS_S, Admission

TARGET_S = 0.02
KINDS = (READ, BOOK, CANCEL)


class Line:
    """A queue whose oldest item waits as long as the test says."""

    def __init__(self) -> None:
        self.waits_s = 0.0

    def behind_s(self, _: float) -> float:
        """Return what the test says."""
        return self.waits_s


class Door:
    """An admission with a clock and queues in the test's hand."""

    def __init__(self, partitions: int = 1) -> None:
        self.now = 1_000.0
        self.admission = Admission(TARGET_S, lambda: self.now)
        self.lines = [[Line() for _ in KINDS] for _ in range(partitions)]
        for lines in self.lines:
            self.admission.watch(*lines)

    def all_wait(self, seconds: float, *, kind: int = BOOK, partition: int = 0) -> None:
        """Have the oldest of a queue wait so long, until it is said otherwise."""
        self.lines[partition][kind].waits_s = seconds

    async def turn(self, seconds: float = 0.0) -> list[int]:
        """Have one request of each kind come at the end of a turn; return who was refused."""
        self.admission.refuses(CANCEL)
        self.now += seconds
        refused = [kind for kind in KINDS if self.admission.refuses(kind)]
        await asyncio.sleep(0)
        return refused

    async def go_on(self, seconds: float, *, turn_s: float = 0.0) -> list[list[int]]:
        """Let time pass, with a turn each 10 ms at least; return who was refused in each."""
        until, found = self.now + seconds, []
        while self.now < until:
            self.now += max(0.0, 0.01 - turn_s)
            found.append(await self.turn(turn_s))
        return found


async def test_a_burst_is_let_in() -> None:
    """However late it is, nobody is refused before the delay has stood."""
    door = Door()
    door.all_wait(10 * TARGET_S)
    assert not any(await door.go_on(0.9 * STANDS_S))
    door.all_wait(0.0)
    assert not any(await door.go_on(1.0))


async def test_a_delay_that_comes_and_goes_does_not_stand() -> None:
    """One look that finds it below its target begins anew."""
    door = Door()
    for _ in range(20):
        door.all_wait(10 * TARGET_S)
        assert not any(await door.go_on(STANDS_S * 0.5))
        door.all_wait(TARGET_S / 4)
        assert not any(await door.go_on(0.01))


async def test_a_queue_that_stands_refuses_all_but_cancellations() -> None:
    """Whoever comes while it is late; and nobody while it is not."""
    door = Door()
    door.all_wait(1.5 * TARGET_S)
    await door.go_on(2 * STANDS_S)
    assert await door.turn() == [READ, BOOK]
    door.all_wait(0.9 * TARGET_S)
    assert BOOK not in await door.turn()


async def test_reads_are_refused_before_bookings() -> None:
    """At half of the target; bookings are let in."""
    door = Door()
    door.all_wait(0.75 * TARGET_S)
    await door.go_on(2 * STANDS_S)
    assert await door.turn() == [READ]


async def test_reads_are_refused_where_bookings_were_a_moment_ago() -> None:
    """What reads cost is what bookings lack."""
    door = Door()
    door.all_wait(1.5 * TARGET_S)
    await door.go_on(2 * STANDS_S)
    door.all_wait(0.0)
    assert await door.turn() == [READ]
    assert (await door.go_on(2 * STANDS_S))[-1] == []


@pytest.mark.parametrize(
    ("late", "refused"), [(READ, [READ]), (BOOK, [READ, BOOK]), (CANCEL, [READ, BOOK])]
)
async def test_nobody_is_refused_for_who_comes_behind_him(late: int, refused: list[int]) -> None:
    """A queue of reads is no reason to refuse a booking; one of cancellations is."""
    door = Door()
    door.all_wait(1.5 * TARGET_S, kind=late)
    await door.go_on(2 * STANDS_S)
    assert await door.turn() == refused


async def test_a_turn_that_takes_long_refuses_who_comes_late_in_it() -> None:
    """Where the processor is what lacks, the queue is in the sockets; who comes early is let in."""
    door = Door()
    await door.go_on(2 * STANDS_S, turn_s=1.5 * TARGET_S)
    assert await door.turn(0.0) == [READ]  # a booking was refused a moment ago
    assert await door.turn(0.75 * TARGET_S) == [READ]
    assert await door.turn(1.5 * TARGET_S) == [READ, BOOK]


async def test_it_is_over_when_nobody_had_to_be_refused_for_a_while() -> None:
    """Then a delay must stand anew before anybody is refused."""
    door = Door()
    door.all_wait(1.5 * TARGET_S)
    await door.go_on(2 * STANDS_S)
    door.all_wait(0.0)
    await door.go_on(3 * STANDS_S)
    assert not door.admission.sheds
    door.all_wait(1.5 * TARGET_S)
    assert await door.turn() == []


async def test_what_was_late_before_a_pause_says_nothing() -> None:
    """Nobody came for a while: a delay must stand anew."""
    door = Door()
    for _ in range(10):
        door.all_wait(10 * TARGET_S)
        assert await door.turn() == []
        door.now += 10 * STANDS_S


async def test_a_partition_that_stands_shuts_no_other() -> None:
    """Of one that is not read yet it is not known where it belongs: it is let in that far."""
    door = Door(partitions=2)
    door.all_wait(1.5 * TARGET_S, partition=1)
    await door.go_on(2 * STANDS_S)
    assert await door.turn() == []
    assert [door.admission.refuses_at(BOOK, partition) for partition in (0, 1)] == [False, True]
    assert not door.admission.refuses_at(CANCEL, 1)


async def test_who_was_refused_first_in_a_turn_was_not_the_last() -> None:
    """Within a turn nobody who comes later is let in."""
    door = Door()
    door.all_wait(1.5 * TARGET_S)
    await door.go_on(2 * STANDS_S)
    assert door.admission.refuses(BOOK)
    assert door.admission.refuses(READ)
    assert not door.admission.refuses(CANCEL)
    door.all_wait(0.0)
    assert door.admission.refuses(BOOK)


STEP_S = 0.001
CALL_STEPS = 6
CALL_ITEMS = 128
CALL_S = CALL_STEPS * STEP_S
CAPACITY = CALL_ITEMS / CALL_S


@dataclass
class Sale:
    """A lane in front of a store that takes a call's worth at a time, and a crowd, in steps."""

    rate: float
    until: float
    steady_from: float = 0.5
    now: float = 0.0
    took_at: float = 0.0
    waiting: deque[float] = field(default_factory=deque)
    waited: list[float] = field(default_factory=list)
    refused: int = 0

    def behind_s(self, now: float) -> float:
        """As a batcher has it."""
        calls = len(self.waiting) / CALL_ITEMS
        return calls * max(CALL_S, now - self.took_at) if calls > 1 else 0.0

    async def held(self) -> "Sale":
        """Let the crowd come at its rate; a refusal costs nothing here."""
        due, step, call_ends = 0.0, 0, 0
        admission = Admission(TARGET_S, lambda: self.now)
        admission.watch(Line(), self, Line())
        while self.now < self.until:
            due += self.rate * STEP_S
            while due >= 1:
                due -= 1
                if admission.refuses(BOOK):
                    self.refused += self.now >= self.steady_from
                else:
                    self.waiting.append(self.now)
            if step >= call_ends and self.waiting:
                call_ends = step + CALL_STEPS
                self.took_at = self.now
                for _ in range(min(CALL_ITEMS, len(self.waiting))):
                    came = self.waiting.popleft()
                    if self.now >= self.steady_from:
                        self.waited.append(call_ends * STEP_S - came)
            await asyncio.sleep(0)
            step += 1
            self.now = step * STEP_S
        return self

    @property
    def goodput(self) -> float:
        """What was served, of what can be."""
        return len(self.waited) / (self.until - self.steady_from) / CAPACITY


@pytest.mark.parametrize("times", [1.2, 2.0, 5.0])
async def test_at_more_than_the_capacity_the_store_stays_busy_and_nobody_waits_long(
    times: float,
) -> None:
    """All that can be served is served, each soon after he came; the rest is refused at once."""
    sale = await Sale(times * CAPACITY, until=2.0).held()
    assert sale.goodput >= 0.95
    assert max(sale.waited) <= TARGET_S + 3 * CALL_S
    share = sale.refused / (sale.refused + len(sale.waited))
    assert share == pytest.approx(1 - 1 / times, abs=0.05)


async def test_below_the_capacity_nobody_is_refused() -> None:
    """At 95 of 100."""
    sale = await Sale(0.95 * CAPACITY, until=2.0, steady_from=0.0).held()
    assert sale.refused == 0
    assert sale.goodput == pytest.approx(0.95, abs=0.02)
