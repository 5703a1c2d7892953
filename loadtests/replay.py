"""One event's journal, replayed in the order of seq: what was unlawful, and who was where when.

What is lawful, `service/replay.py` says, as for the audit; this remembers who was where when, and a
test holds it equal to `tests/model.py` on random histories. Logarithmic work per question, at a
million waiters too.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.outbox import STATUS_AFTER
from service.replay import Breach, EventReplay

_FOR_EVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the journal, about a user of the event."""

    seq: int
    kind: str
    user: str


@dataclass(frozen=True, slots=True)
class Stay:
    """A user's state from one change up to the next, which is `until`.

    `turn` counts those who joined the waiting list, from 1; 0 for who does not wait.
    """

    user: str
    state: str
    since: int
    until: int = _FOR_EVER
    turn: int = 0

    def meets(self, first: int, last: int) -> bool:
        """Whether it was so after some change between two seqs, both included."""
        return self.since <= last and self.until > first


class History:
    """What the rows amount to. The lists of what is wrong hold a sentence each."""

    def __init__(self, opened: int, capacity: int, rows: Sequence[Row]) -> None:
        """Replay an event that the change `opened` opened; rows in the order of seq."""
        self.opened = opened
        self.capacity = capacity
        self.rows = {row.seq: row for row in rows}
        self.stays: dict[int, Stay] = {}  # by the seq of the change that each began with
        self.states: dict[str, Stay] = {}  # by user, after the last row
        self.reassigned: set[int] = set()  # cancellations whose ticket a waiter got
        self.oversold: list[str] = []
        self.unlawful: list[str] = []
        self.out_of_order: list[str] = []
        self._rules = EventReplay(capacity)
        self._line: dict[str, int] = {}  # who waits, in the order of joining, with the turn
        self._turns = 0
        self._gone: list[tuple[int, int]] = []  # seq and turn of who left the line
        self._visible = [opened]  # the seqs after which a reader could look
        self._counts = {(capacity, 0): [opened]}  # remaining and waiting → those seqs
        for row, following in zip(rows, [*rows[1:], None], strict=False):
            promotes = (
                following is not None
                and following.kind == "promoted"
                and following.seq == row.seq + 1
            )
            for breach in self._rules.apply(row.seq, row.kind, row.user):
                self._note(breach)
            self._apply(row, promotes=promotes)
        for breach in self._rules.end():
            self._note(breach)

    @property
    def sold(self) -> int:
        """How many hold a ticket after the last row."""
        return self._rules.sold

    @property
    def most_sold(self) -> int:
        """The most that did after any row."""
        return self._rules.most_sold

    @property
    def waiting(self) -> int:
        """How many wait after the last row."""
        return len(self._line)

    def had_counts(self, remaining: int, waiting: int, first: int, last: int) -> bool:
        """Whether the event stood so after some change between two seqs, both included."""
        return self.when_counts(remaining, waiting, first, last) is not None

    def when_counts(
        self, remaining: int, waiting: int, first: int, last: int
    ) -> tuple[int, int] | None:
        """Return from which seq on, and up to before which, the event may have stood so.

        As seen after some change between two seqs, both included; None where it never stood so.
        """
        seqs = self._counts.get((remaining, waiting), [])
        latest = bisect_right(seqs, last) - 1
        if latest < 0 or self._next(seqs[latest]) <= first:
            return None
        # Of two that follow each other only the first can be over by then.
        earliest = max(0, bisect_right(seqs, first) - 1)
        earliest += self._next(seqs[earliest]) <= first
        return seqs[earliest], self._next(seqs[latest])

    def _next(self, seq: int) -> int:
        """Return the seq after which a reader could first see something else than after this."""
        following = bisect_right(self._visible, seq)
        return self._visible[following] if following < len(self._visible) else _FOR_EVER

    def positions(self, asked: Sequence[tuple[int, int]]) -> list[int]:
        """Return the place in the line, from 1, of pairs (after which seq, whose turn).

        For who has gone by then it is the place that would be theirs.
        """
        found = [0] * len(asked)
        gone: list[int] = []
        leaving = iter([*self._gone, (_FOR_EVER, 0)])
        seq, turn = next(leaving)
        for place in sorted(range(len(asked)), key=lambda place: asked[place][0]):
            wanted_seq, wanted_turn = asked[place]
            while seq <= wanted_seq:
                insort(gone, turn)
                seq, turn = next(leaving)
            found[place] = wanted_turn - bisect_left(gone, wanted_turn)
        return found

    def _note(self, breach: Breach) -> None:
        says = f"seq {breach.seq}: {breach.says}"
        if breach.rule != "oversold":
            says = f"seq {breach.seq}: {breach.user_id} {breach.says}"
        getattr(self, breach.rule).append(says)

    def _apply(self, row: Row, *, promotes: bool) -> None:
        before = self.states.get(row.user)
        if before is not None:
            self.stays[before.since] = replace(before, until=row.seq)
        if turn := self._line.pop(row.user, 0):
            self._gone.append((row.seq, turn))
        turn = 0
        if row.kind == "waiting":
            self._turns += 1
            turn = self._line[row.user] = self._turns
        stay = Stay(row.user, STATUS_AFTER[row.kind], row.seq, turn=turn)
        self.stays[row.seq] = self.states[row.user] = stay
        if row.kind == "cancelled" and promotes:
            # Cancellation and promotion are one step: nobody can look in between.
            self.reassigned.add(row.seq)
            return
        self._visible.append(row.seq)
        counts = (self.capacity - self.sold, len(self._line))
        self._counts.setdefault(counts, []).append(row.seq)
