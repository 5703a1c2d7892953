"""The waiting list read in pages, and its order: whatever happens while it is read."""

import random
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.findings import Drift
from service.waiting_list import WaitingListCopy, compare_order, ordinal, out_of_order

PAGE = 10


class Sale:
    """A waiting list as the scripts keep it."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.gaps: set[str] = set()
        self.waiting: dict[str, str] = {}
        self.next_turn = 1
        self._seq = 0

    def join(self) -> None:
        self._seq += 1
        user = f"u{self._seq}"
        self.waiting[user] = f"waiting {self._seq} 1 {self.next_turn}"
        self.elements.append(f"{self.next_turn} {user}")
        self.next_turn += 1

    def leave(self, place: int) -> None:
        if self.waiting:
            user = list(self.waiting)[place % len(self.waiting)]
            self.gaps.add(self.waiting.pop(user).split(" ")[3])
            self._drop_all_when_nobody_waits()

    def promote(self) -> None:
        while self.elements:
            user = self.elements.pop(0).split(" ")[1]
            if self.waiting.pop(user, None):
                break
        self._drop_all_when_nobody_waits()

    def _drop_all_when_nobody_waits(self) -> None:
        if not self.waiting:
            self.elements, self.gaps = [], set()

    def step(self, number: int) -> None:
        """Do one of these, joining twice as often as the others."""
        if number % 4 < 2:
            self.join()
        elif number % 4 == 2:
            self.promote()
        else:
            self.leave(number)

    def compared(self) -> list[Drift]:
        """Compare it with itself."""
        return compare_order(
            7,
            self.elements,
            str(self.next_turn),
            self.waiting,
            self.gaps,
            passed_over=(),
            moved=(),
        )


def sale(steps: list[int]) -> Sale:
    """Return a sale after some steps."""
    made = Sale()
    for step in steps:
        made.step(step)
    return made


STEPS = st.lists(st.integers(0, 1_000), max_size=60)


class TestCopy:
    """Pages of a list that changes between them add up to the list."""

    @given(before=STEPS, between=st.lists(STEPS, max_size=12), overlap=st.integers(0, PAGE - 1))
    def test_the_pages_add_up_to_the_list_as_it_is_at_the_last(
        self, before: list[int], between: list[list[int]], overlap: int
    ) -> None:
        """However many join and go between two pages, nobody is left out and nobody comes twice."""
        made, copy, rest = sale(before), WaitingListCopy(overlap), list(between)
        for _ in range(1_000):
            start = copy.next_start
            page = made.elements[start : start + PAGE]
            copy.take(str(made.next_turn), start, page, len(made.elements))
            if copy.whole:
                break
            for step in rest.pop() if rest else ():
                made.step(step)
        assert copy.whole
        assert copy.elements == made.elements

    @given(st.lists(st.lists(st.text("0123456789 ab", max_size=4), max_size=30), min_size=1))
    def test_a_list_that_a_hand_changes_meanwhile_is_read_to_an_end(
        self, lists: list[list[str]]
    ) -> None:
        """Whatever it holds from page to page; once it stands still the copy is whole."""
        copy = WaitingListCopy(1)
        for number in range(len(lists) + 100):
            held = lists[min(number, len(lists) - 1)]
            start = copy.next_start
            copy.take(str(len(held) + 1), start, held[start : start + PAGE], len(held))
        assert copy.whole

    def test_a_next_turn_that_is_lost_does_not_matter(self) -> None:
        """The copy is the same, for the base is only off by as much as before."""
        copy = WaitingListCopy(0)
        copy.take(None, 0, ["1 a", "2 b"], 3)
        copy.take(None, copy.next_start, ["3 c"], 3)
        assert (copy.whole, copy.elements) == (True, ["1 a", "2 b", "3 c"])


class TestOrder:
    """A list that the scripts made is right; one that a hand changed is not."""

    @given(STEPS)
    def test_what_the_scripts_do_is_no_drift(self, steps: list[int]) -> None:
        """Joining, leaving and promotions in any order."""
        assert sale(steps).compared() == []

    @given(
        steps=STEPS.filter(lambda steps: len(sale(steps).waiting) > 1), seed=st.integers(0, 2**32)
    )
    def test_whoever_waits_and_was_moved_is_named(self, steps: list[int], seed: int) -> None:
        """One user moved anywhere else among those who wait: the user, or the one passed by."""
        made, choice = sale(steps), random.Random(seed)
        live = [e for e in made.elements if e.split(" ")[1] in made.waiting]
        moved = choice.choice(live)
        others = [e for e in made.elements if e != moved]
        at = choice.choice(
            [
                place
                for place in range(len(others) + 1)
                if [e for e in (*others[:place], moved, *others[place:]) if e in live] != live
            ]
        )
        made.elements = [*others[:at], moved, *others[at:]]
        named = [drift.user_id for drift in made.compared() if drift.kind == "misplaced"]
        places = {live.index(moved), [e for e in made.elements if e in live].index(moved)}
        neighbours = {e.split(" ")[1] for e in live} if max(places) - min(places) == 1 else set()
        assert len(named) == 1
        assert named[0] in {moved.split(" ")[1], *neighbours}

    @given(steps=STEPS.filter(lambda steps: bool(sale(steps).gaps)), place=st.integers(0, 1_000))
    def test_a_gap_that_is_lost_is_named_while_it_counts(
        self, steps: list[int], place: int
    ) -> None:
        """Behind the head it counts for nobody, and is none."""
        made = sale(steps)
        gap = sorted(made.gaps)[place % len(made.gaps)]
        made.gaps.remove(gap)
        users = [e.split(" ")[1] for e in made.elements if e.split(" ")[0] == gap]
        assert [(drift.user_id, drift.kind) for drift in made.compared()] == [
            (user, "gap") for user in users
        ]

    def test_places_are_told_in_words(self) -> None:
        """Where somebody stands, and where he would by the order in which people joined."""
        waiting = {user: f"waiting {seq} 1 {seq}" for seq, user in enumerate("abcd", start=1)}
        (drift,) = compare_order(
            7, ["4 d", "1 a", "2 b", "3 c"], "5", waiting, (), passed_over=(), moved=()
        )
        assert drift == Drift(7, "d", "misplaced", "1st in line", "4th in line")

    def test_who_is_passed_over_stands_in_nobodys_way(self) -> None:
        """Neither named, nor counted among those in order."""
        waiting = {user: f"waiting {seq} 1 {seq}" for seq, user in enumerate("abc", start=1)}
        found = compare_order(
            7, ["3 c", "1 a", "2 b"], "3", waiting, (), passed_over={"c"}, moved=()
        )
        assert {drift.user_id for drift in found} <= {"a", None}
        assert not [drift for drift in found if drift.kind == "misplaced"]


@given(st.lists(st.integers(0, 20), max_size=9))
def test_as_few_as_will_do_are_out_of_order(seqs: list[int]) -> None:
    """Without them the rest increases, and with fewer it would not."""
    out = out_of_order(seqs)
    kept = [seq for index, seq in enumerate(seqs) if index not in out]
    assert all(a < b for a, b in pairwise(kept))
    longer = combinations(seqs, len(kept) + 1)
    assert not any(all(a < b for a, b in pairwise(some)) for some in longer)


@pytest.mark.parametrize(
    ("place", "word"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"),
     (21, "21st"), (102, "102nd"), (111, "111th")],
)  # fmt: skip
def test_ordinals(place: int, word: str) -> None:
    """As they are said."""
    assert ordinal(place) == word
