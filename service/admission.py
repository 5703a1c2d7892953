"""Whom a worker lets in while more comes than it can do: decided by time, not by length.

Knows nothing of HTTP, of tickets or of Redis. Two delays are watched: how long a turn of the loop
has gone on, for who comes late in it had to wait for all before it; and how long who comes now will
wait in a queue. A delay above its target for `STANDS_S` without a break stands (a burst does not):
from then on whoever comes while it is above the target is refused, until nobody had to be for as
long. Reads are refused at half of the target and wherever bookings are, bookings at the target,
cancellations never. Nothing here has an effect on what was let in.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

READ, BOOK, CANCEL = range(3)
"""What is asked for, first to be refused first."""

STANDS_S = 0.05
"""From a delay above its target to the first refusal, and from the last refusal to calm."""

_LOOK_S = 0.005
"""Between two looks at the queues: there may be three hundred."""


class Queue(Protocol):
    """Where requests wait."""

    def behind_s(self, now: float) -> float:
        """Return how long who comes now will wait for others, 0 where all will leave together."""


class Admission:
    """What one worker decides, for itself alone. Not for several threads."""

    def __init__(self, target_s: float, clock: Callable[[], float] | None = None) -> None:
        """`target_s`: how long bookings may stand waiting. `clock`: the loop's where none is given.

        The clock tells the time that the queues understand, in seconds.
        """
        self.sheds = False
        """Whether anybody may be refused now; as long as not, a request costs 0.03 µs here."""
        self._clock = clock
        self._target_s = target_s
        self._turn = _Place(target_s)
        self._turn_began = -math.inf
        self._in_turn = False
        self._shut_to = -1
        self._partitions: list[_Partition] = []
        self._looked_at = -math.inf

    def watch(self, read: Queue, book: Queue, cancel: Queue) -> None:
        """Watch the queues of the next partition, from 0."""
        self._partitions.append(_Partition(self._target_s, read, book, cancel))

    def refuses(self, kind: int) -> bool:
        """Whether to refuse a request that has not been read: its partition is not known.

        So a queue counts only where there is one partition. Nothing else may come of a request that
        is refused.
        """
        if not self._in_turn:
            self._begin_turn()
        if not self.sheds or kind == CANCEL:
            return False
        if kind > self._shut_to:
            if not self._is_late(kind, 0 if len(self._partitions) == 1 else None):
                return False
            # Within a turn nothing leaves a queue: who comes later is no less late.
            self._shut_to = kind
        return True

    def refuses_at(self, kind: int, partition: int) -> bool:
        """Whether to refuse a request for a partition."""
        if not self._in_turn:
            self._begin_turn()
        return self.sheds and kind != CANCEL and self._is_late(kind, partition)

    def _is_late(self, kind: int, partition: int | None) -> bool:
        now = self._now()
        turn_s = now - self._turn_began
        return self._turn.refuses(kind, turn_s, turn_s, now) or (
            partition is not None and self._partitions[partition].refuses(kind, now)
        )

    def _begin_turn(self) -> None:
        """Begin with the first request of a turn; what is called soon runs behind its last."""
        self._in_turn = True
        self._shut_to = -1
        self._turn_began = self._now()
        asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._in_turn = False
        now = self._now()
        turn_s = now - self._turn_began
        self._turn.saw(turn_s, turn_s, now)
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            for partition in self._partitions:
                partition.look(now)
            self.sheds = self._turn.stands or any(place.stands for place in self._partitions)
        elif self._turn.stands:
            self.sheds = True

    def _now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()


class _Delay:
    """One delay, and whether it stands: CoDel's question."""

    __slots__ = ("_seen_at", "_since", "refused_at", "stands", "target_s")

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self.stands = False
        self.refused_at = -math.inf
        self._since = math.inf
        self._seen_at = -math.inf

    def saw(self, delay_s: float, now: float) -> None:
        """Take note of the delay."""
        if now - self._seen_at > STANDS_S:
            self._since = math.inf  # nobody came for so long: what was above then says nothing
        self._seen_at = now
        if delay_s > self.target_s:
            self._since = min(self._since, now)
            self.stands = self.stands or now - self._since >= STANDS_S
        else:
            self._since = math.inf
            self.stands = self.stands and now - self.refused_at < STANDS_S

    def refuses(self, delay_s: float, now: float) -> bool:
        """Whether who comes now is refused."""
        if not self.stands or delay_s <= self.target_s:
            return False
        self.refused_at = now
        return True


class _Place:
    """One place where requests wait: a delay for reads, and one for bookings."""

    def __init__(self, target_s: float) -> None:
        self._read = _Delay(target_s / 2)
        self._book = _Delay(target_s)
        self.stands = False

    def saw(self, read_s: float, book_s: float, now: float) -> None:
        """Take note of how long reads and bookings have to wait."""
        self._read.saw(read_s, now)
        self._book.saw(book_s, now)
        self.stands = self._read.stands or self._book.stands

    def refuses(self, kind: int, read_s: float, book_s: float, now: float) -> bool:
        """Whether who comes now is refused."""
        if kind == BOOK:
            return self._book.refuses(book_s, now)
        return now - self._book.refused_at < STANDS_S or self._read.refuses(read_s, now)


class _Partition(_Place):
    """The queues of a partition. A kind waits for its own, and for those that come before it."""

    def __init__(self, target_s: float, read: Queue, book: Queue, cancel: Queue) -> None:
        super().__init__(target_s)
        self._reads, self._books, self._cancels = read, book, cancel

    def look(self, now: float) -> None:
        """Take note of how long they make wait."""
        self.saw(*self._delays(now), now)

    def refuses(self, kind: int, now: float) -> bool:  # type: ignore[override]
        """Whether who comes now is refused."""
        return super().refuses(kind, *self._delays(now), now)

    def _delays(self, now: float) -> tuple[float, float]:
        book_s = max(self._books.behind_s(now), self._cancels.behind_s(now))
        return max(book_s, self._reads.behind_s(now)), book_s
