"""One event's changes, replayed in the order of seq: the one list of what a sale may do. Pure.

It knows the rules and nothing of the scripts that keep them; a test holds it equal to
`tests/model.py`: what the model cannot have made is a breach, what it has made is none. A change
that breaks a rule is applied all the same, so that what follows is judged by what is on record.
Constant work per change, at a million waiters too.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from service.outbox import STATUS_AFTER

_STRANGER = ("", 0)
_LAWFUL_FROM: Mapping[str, tuple[str, ...]] = {
    "booked": ("", "cancelled", "left_waiting_list"),
    "waiting": ("", "cancelled", "left_waiting_list"),
    "promoted": ("waiting",),
    "cancelled": ("booked",),
    "left": ("waiting",),
}
_WORDS: Mapping[str, str] = {"": "a stranger", "left_waiting_list": "gone from the waiting list"}


class Breach(NamedTuple):
    """One rule of `RULES` that the change with this seq breaks."""

    rule: str
    seq: int
    user_id: str
    says: str


class EventReplay:
    """One event. `states` holds each user's status and the seq of the change that led to it.

    `line` holds those who wait, in the order in which they joined; its first is found in constant
    time, which a plain dict does not do after many removals.
    """

    def __init__(self, capacity: int | None = None) -> None:
        """Begin with nobody. Without a capacity what depends on it is not judged."""
        self.capacity = capacity
        self.states: dict[str, tuple[str, int]] = {}
        self.line: OrderedDict[str, None] = OrderedDict()
        self.sold = 0
        self.most_sold = 0
        self.changes = 0
        self._owed: tuple[int, str] | None = None  # a cancellation, and whose its ticket is

    def apply(self, seq: int, kind: str, user: str) -> list[Breach]:
        """Judge the next change about a user, of a kind in `STATUS_AFTER`, and apply it."""
        held = self.states.get(user, _STRANGER)[0]
        first = next(iter(self.line), "")
        breaches = []
        if self._owed is not None:
            if kind != "promoted" or seq != self._owed[0] + 1:
                breaches += self.end()
            self._owed = None
        if held not in _LAWFUL_FROM[kind]:
            says = f"{kind}, who was {_WORDS.get(held, held)}"
            breaches.append(Breach("unlawful", seq, user, says))
        if first and first != user and kind in ("booked", "promoted"):
            says = f"{kind} before {first}"
            breaches.append(Breach("out_of_order", seq, user, says))
        if kind == "waiting" and not first and self._free():
            breaches.append(Breach("out_of_order", seq, user, "waits though a ticket is free"))
        before = self.sold
        self._become(user, held, STATUS_AFTER[kind], seq)
        if kind == "cancelled" and self.line:
            self._owed = seq, next(iter(self.line))
        if self.capacity is not None and self.sold > max(self.capacity, before):
            says = f"{self.sold:,} of {self.capacity:,} tickets sold"
            breaches.append(Breach("oversold", seq, user, says))
        return breaches

    @property
    def owes(self) -> bool:
        """Whether the last change was a cancellation whose ticket a waiter gets with the next."""
        return self._owed is not None

    def end(self) -> list[Breach]:
        """Return what is wrong if no further change comes: a waiter's ticket was kept back."""
        if self._owed is None:
            return []
        seq, first = self._owed
        return [Breach("out_of_order", seq, first, "waited, and was not promoted")]

    def _free(self) -> bool:
        return self.capacity is not None and self.sold < self.capacity

    def _become(self, user: str, held: str, status: str, seq: int) -> None:
        self.sold += (status == "booked") - (held == "booked")
        self.most_sold = max(self.most_sold, self.sold)
        if held == "waiting":
            del self.line[user]
        if status == "waiting":
            self.line[user] = None
        self.states[user] = status, seq
        self.changes += 1
