"""The waiting list of one event: a copy read in pages, and its order against the record's. Pure.

While it is read, heads are taken off and people join at the end; nothing else moves. The number of
turns given less the length of the list grows by one with each head that goes, so an index plus
this *base* is an address that stays. A list damaged by hand is read all the same.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from service.findings import Drift


class WaitingListCopy:
    """The list as it stood at the last page that was taken."""

    def __init__(self, overlap: int) -> None:
        """Empty, before the first page.

        `overlap`: how far a page begins before the end of the last one, less than a page; so many
        heads may go between two pages without a page being passed over.
        """
        self._overlap = overlap
        self._elements: list[str] = []
        self._first = 0
        self._base = 0
        self.whole = False

    @property
    def next_start(self) -> int:
        """The index (0-based) from which to read the next page."""
        return max(0, self._first + len(self._elements) - self._base - self._overlap)

    @property
    def elements(self) -> list[str]:
        """The elements, head first."""
        return self._elements[max(0, self._base - self._first) :]

    def take(self, next_turn: str | None, start: int, page: Sequence[str], length: int) -> None:
        """Take a page that begins at `start` of a list of `length`; afterwards it may be `whole`.

        A page that begins behind the end of the copy is passed over, and `next_start` is lower.
        """
        self._base = (number(next_turn) or 0) - length
        address = self._base + start
        if not self._first <= address <= self._first + len(self._elements):
            if start:
                if address < self._first:  # only a hand puts something before the head
                    self._elements, self._first = [], self._base
                self.whole = False
                return
            self._elements, self._first = [], address
        self._elements[address - self._first :] = page
        self.whole = start + len(page) >= length


def compare_order(
    event_id: int,
    elements: Sequence[str],
    next_turn: str | None,
    waiting: Mapping[str, str],
    gaps: Collection[str],
    *,
    passed_over: Collection[str],
    moved: Collection[str],
) -> list[Drift]:
    """Return what is wrong with a waiting list, and with whom.

    `waiting` holds whoever waits, as `waiting <seq> <quantity> <turn>` and keys; its seqs are the
    record's, for who disagrees is `passed_over`, like who changed since he was read. Of the `moved`
    no gap is looked at: theirs may be younger than what was read of the gaps.
    """
    order = _Order(event_id, waiting, gaps, passed_over, moved)
    for element in elements:
        order.take(element)
    order.compare_places()
    order.compare_turns(number(next_turn))
    return order.drifts


class _Order:
    """One pass over the elements, head first, and what it leads to."""

    def __init__(
        self,
        event_id: int,
        waiting: Mapping[str, str],
        gaps: Collection[str],
        passed_over: Collection[str],
        moved: Collection[str],
    ) -> None:
        self.drifts: list[Drift] = []
        self._event_id = event_id
        self._waiting = waiting
        self._gaps = gaps
        self._passed_over = passed_over
        self._moved = moved
        self._live: list[tuple[int, str]] = []
        self._seen: set[str] = set()
        self._last_turn: int | None = None
        self._breaks: list[tuple[str, str]] = []

    def take(self, element: str) -> None:
        """Look at the next element: whether it lives, and whether the turns go on."""
        turn, _, user = element.partition(" ")
        if not user or not turn.isdecimal():
            self._add(None, "unreadable", f"the element {element[:80]!r}")
            return
        if self._last_turn is not None and int(turn) != self._last_turn + 1:
            self._breaks.append((user, f"turn {turn} comes after turn {self._last_turn}"))
        self._last_turn = int(turn)
        if user in self._passed_over:
            return
        _, seq, _, turn_held = self._waiting.get(user, "- - - -").split(" ", 4)[:4]
        lives = turn == turn_held
        if lives and user in self._seen:
            self._add(user, "twice_in_waiting_list", f"turn {turn} twice")
        elif lives:
            self._seen.add(user)
            self._live.append((int(seq), user))
        if lives == (turn in self._gaps) and user not in self._moved:
            says = "waits, and counts as gone" if lives else "has left, and still counts"
            self._add(user, "gap", f"turn {turn} {says}")

    def compare_places(self) -> None:
        """Name who is out of order, as few as will do, and who waits without an element."""
        absent = sorted(
            user
            for user in self._waiting
            if user not in self._seen and user not in self._passed_over
        )
        misplaced = out_of_order([seq for seq, _ in self._live])
        if not misplaced and not absent:
            return
        joined = [seq for seq, _ in self._live] + [self._joined(user) for user in absent]
        joined.sort()
        for index in misplaced:
            seq, user = self._live[index]
            place = bisect_left(joined, seq) + 1
            here = f"{ordinal(index + 1)} in line"
            self._add(user, "misplaced", here, f"{ordinal(place)} in line")
        for user in absent:
            seq, turn = self._joined(user), self._waiting[user].split(" ", 4)[3]
            place = bisect_left(joined, seq) + 1
            says = f"waiting since seq {seq} with turn {turn[:20]}, which the list does not hold"
            self._add(user, "not_in_waiting_list", says, f"{ordinal(place)} in line")

    def compare_turns(self, coming: int | None) -> None:
        """Name where turns jump, unless what was found already explains it; and gaps to come."""
        if not self.drifts:
            for user, says in self._breaks:
                self._add(user, "turns", says)
            if self._last_turn is not None and self._last_turn + 1 != coming:
                says = f"the last turn is {self._last_turn}, and the next will be {coming}"
                self._add(None, "turns", says)
        for gap in sorted(self._gaps):
            if coming is not None and (number(gap) or 0) >= coming:
                self._add(None, "gap", f"turn {gap} counts as gone, and nobody has had it")

    def _joined(self, user: str) -> int:
        return int(self._waiting[user].split(" ", 2)[1])

    def _add(self, user: str | None, kind: str, redis: str, record: str | None = None) -> None:
        self.drifts.append(Drift(self._event_id, user, kind, redis, record))


def out_of_order(seqs: Sequence[int]) -> list[int]:
    """Return the fewest indexes without which the seqs strictly increase."""
    if all(a < b for a, b in pairwise(seqs)):
        return []
    # The longest increasing run: by length, the index that ends the run with the least number.
    ends: list[int] = []
    least: list[int] = []
    before: list[int] = []
    for index, seq in enumerate(seqs):
        length = bisect_left(least, seq)
        before.append(ends[length - 1] if length else -1)
        ends[length : length + 1] = [index]
        least[length : length + 1] = [seq]
    kept: set[int] = set()
    at = ends[-1]
    while at >= 0:
        kept.add(at)
        at = before[at]
    return [index for index in range(len(seqs)) if index not in kept]


def number(text: str | None) -> int | None:
    """Return what a field of Redis says, None where that is no number."""
    return int(text) if text is not None and text.isdecimal() else None


def ordinal(place: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{'th' if place % 100 // 10 == 1 else ending}"
