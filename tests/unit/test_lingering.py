"""When a commit is worth it: a stream and a clock of the test's own."""

from collections.abc import Mapping
from typing import cast

from service.lineage import Position
from service.lingering import Lingering, Raw
from service.redis_store import RedisStore

LINGER_S = 0.02
Entry = tuple[str, dict[str, str]]


class Stream:
    """One partition's outbox, into which entries come at their times."""

    def __init__(self) -> None:
        """Begin empty, at no time."""
        self.now = 0.0
        self.coming: list[tuple[float, int, bool]] = []
        self.slept: list[float] = []

    def come(self, at: float, seq: int, *, awaited: bool = False) -> None:
        """Let an entry come at a time; `awaited`: somebody waits for it."""
        self.coming.append((at, seq, awaited))

    async def read_outboxes(
        self, after: Mapping[int, Position], *, block_ms: int, count: int
    ) -> Raw:
        """Read as Redis does."""
        if block_ms and not self._there(after[0]):
            later = [at for at, seq, _ in self.coming if seq > after[0].seq]
            self.now = min([*later, self.now + block_ms / 1000])
        found = self._there(after[0])[:count]
        return {0: found} if found else {}

    def _there(self, after: Position) -> list[Entry]:
        return [
            (f"1-{seq}", {"awaited": "1"} if awaited else {})
            for at, seq, awaited in self.coming
            if at <= self.now and seq > after.seq
        ]

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self.now += seconds


async def commits(stream: Stream, last: int) -> list[tuple[float, list[int]]]:
    """Return when each commit began and what it carried, up to a seq."""
    lingering = Lingering(
        cast(RedisStore, stream),
        linger_s=LINGER_S,
        clock=lambda: stream.now,
        sleep=stream.sleep,
    )
    at, found = 0, []
    while at < last:
        raw = await lingering.read({0: Position(1, at)})
        if raw:
            seqs = [int(entry_id.removeprefix("1-")) for entry_id, _ in raw[0]]
            found.append((round(stream.now, 3), seqs))
            at = seqs[-1]
    return found


async def test_an_idle_writer_commits_at_once() -> None:
    """What comes alone waits for nothing."""
    stream = Stream()
    stream.come(1.0, 1)
    stream.come(2.0, 2)
    assert await commits(stream, 2) == [(1.0, [1]), (2.0, [2])]
    assert stream.slept == []


async def test_a_busy_writer_lets_more_come() -> None:
    """A commit so long after the last one carries all that came in between, in order, once."""
    stream = Stream()
    for seq in range(1, 12):
        stream.come(1.0 + seq / 500, seq)
    assert await commits(stream, 11) == [(1.002, [1]), (1.022, list(range(2, 12)))]


async def test_what_somebody_waits_for_does_not_linger() -> None:
    """It is committed as it comes, right after another commit too."""
    stream = Stream()
    stream.come(1.0, 1)
    stream.come(1.001, 2, awaited=True)
    stream.come(1.002, 3, awaited=True)
    assert await commits(stream, 3) == [(1.0, [1]), (1.001, [2]), (1.002, [3])]
    assert stream.slept == []


async def test_what_comes_to_be_waited_for_ends_the_linger() -> None:
    """Within milliseconds; what had come before it is carried along."""
    stream = Stream()
    stream.come(1.0, 1)
    stream.come(1.001, 2)
    stream.come(1.004, 3, awaited=True)
    assert await commits(stream, 3) == [(1.0, [1]), (1.011, [2, 3])]


async def test_a_full_load_does_not_linger() -> None:
    """More than one transaction takes is there already; as much as it takes is read at once."""
    stream = Stream()
    stream.come(1.0, 1)
    for seq in range(2, 5_002):
        stream.come(1.0, seq)
    found = await commits(stream, 5_001)
    assert [len(seqs) for _, seqs in found] == [4_096, 905]
    assert found[0][0] == 1.0
    assert round(sum(stream.slept), 3) == LINGER_S  # the rest lets more come


async def test_entries_of_many_changes_are_counted_by_their_changes() -> None:
    """A transaction does not grow with what an entry holds."""
    stream = Stream()
    for seq in range(200, 200 * 601, 200):
        stream.come(1.0, seq)
    found = await commits(stream, 200 * 600)
    assert [len(seqs) for _, seqs in found] == [256, 256, 88]


async def test_an_id_that_cannot_be_read_is_passed_on() -> None:
    """Whoever decodes it says what is wrong with it; the linger ends there."""
    stream = Stream()
    stream.come(0.0, 1)
    lingering = Lingering(
        cast(RedisStore, stream), linger_s=LINGER_S, clock=lambda: stream.now, sleep=stream.sleep
    )
    await lingering.read({0: Position(1, 0)})
    stream.come(0.0, 0)
    raw = await lingering.read({0: Position(1, -1)})
    assert [entry_id for entry_id, _ in raw[0]] == ["1-1", "1-0"]
