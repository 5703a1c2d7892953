"""What people were told, held against the journal: the checks that need no store.

Time is used in one direction only: a change whose answer had come before a request was sent lies
before that request, and one that was not yet asked for when an answer came lies behind it. Between
the two, every answer must be true at some seq.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from loadtests.answers import Answers, Told
from loadtests.replay import History, Row, Stay
from service.outbox import STATUS_AFTER

_ASKED_BY = {"booked": "book", "waiting": "book", "cancelled": "cancel", "left": "cancel"}
_KIND = {"cancelled": "cancelled", "left_waiting_list": "left"}
_PENDING = "pending"
_END = 1 << 62


@dataclass(slots=True)
class Check:
    """One promise: of how many things it was asked, and a sentence for each that broke it."""

    name: str
    looked_at: int = 0
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Look at one thing."""
        self.looked_at += 1
        if not holds:
            self.wrong.append(otherwise)


class Moments:
    """Between which seqs each request was carried out, as far as its times tell."""

    def __init__(self, told: Sequence[Told], history: History) -> None:
        """Take all answers, and the changes on record."""
        # A cancellation that was answered has promoted, too: that is one step.
        known = sorted(
            (one.answered, one.seq + (one.seq in history.reassigned))
            for one in told
            if one.seq is not None
        )
        self._answered = [at for at, _ in known]
        self._latest = list(accumulate((seq for _, seq in known), max))
        first_sent: dict[tuple[str, str], float] = {}
        for one in told:
            key = (one.operation, one.user)
            first_sent[key] = min(one.sent, first_sent.get(key, one.sent))
        asked = sorted(
            (first_sent.get((_ASKED_BY[row.kind], row.user), 0.0), row.seq)
            for row in history.rows.values()
            if row.kind in _ASKED_BY
        )
        self._sent = [at for at, _ in asked]
        self._earliest = list(accumulate((seq for _, seq in reversed(asked)), min))[::-1]
        self._opened = history.opened

    def of(self, one: Told) -> tuple[int, int]:
        """Return the seqs between which it lies: the last one surely before, the last one maybe."""
        before = bisect_left(self._answered, one.sent) - 1
        behind = bisect_right(self._sent, one.answered)
        first = self._latest[before] if before >= 0 else self._opened
        last = self._earliest[behind] - 1 if behind < len(self._earliest) else _END
        return max(first, self._opened), last


def check_answers(answers: Answers, history: History) -> Iterator[Check]:
    """Yield every check of the answers against the journal of their event."""
    told = answers.told
    moments = Moments(told, history)
    yield _whole(answers)
    yield _held(history)
    yield from _lawful(history)
    yield _bookings(told, history)
    yield _waiters(told, history)
    yield _cancellations(told, history)
    yield _recorded(told, history)
    yield _order(told, moments)
    yield _states(told, history, moments)
    yield _positions(told, history, moments)
    yield _counts(told, history, moments)
    yield _nothing_else(told, history)


def _whole(answers: Answers) -> Check:
    check = Check("the file of answers is whole")
    lines, people = len(answers.told), answers.sale.people
    check.expect(answers.lines is not None, "it has no last line: the run was cut off")
    if answers.lines is not None:
        check.expect(lines == answers.lines, f"it has {lines:,} lines of {answers.lines:,}")
        check.expect(answers.people == people, f"{answers.people:,} of {people:,} people left")
    return check


def _held(history: History) -> Check:
    check = Check("never more sold than there are tickets", len(history.rows))
    check.wrong += history.oversold
    return check


def _lawful(history: History) -> Iterator[Check]:
    yield Check("nobody holds two, every change is lawful", len(history.rows), history.unlawful)
    order = Check("first come, first served", len(history.rows), history.out_of_order)
    yield order


def _bookings(told: Iterable[Told], history: History) -> Check:
    check = Check("every 201 is on record, once")
    seen: set[int | None] = set()
    for one in told:
        if one.operation == "book" and one.status == 201:
            _on_record(check, one, history, "booked")
            check.expect(one.seq not in seen, f"{one.user}: a second 201 with seq {one.seq}")
            seen.add(one.seq)
    return check


def _waiters(told: Iterable[Told], history: History) -> Check:
    """Each 202; and of those about one joining, one says the position that it had then."""
    check = Check("every 202 is on record, with its position")
    said: dict[int, list[int | None]] = defaultdict(list)
    unknown: set[str] = set()
    for one in told:
        if one.operation != "book":
            continue
        if one.status == 202 and one.state != _PENDING:
            if _on_record(check, one, history, "waiting"):
                assert one.seq is not None  # it is on record
                said[one.seq].append(one.position)
        elif one.is_unknown:
            unknown.add(one.user)
    joined = [(seq, history.stays[seq]) for seq in said]
    at = history.positions([(seq, stay.turn) for seq, stay in joined])
    for (seq, stay), position in zip(joined, at, strict=True):
        right = position in said[seq] or stay.user in unknown
        check.expect(right, f"{stay.user}: told {said[seq]}, joined at position {position}")
    return check


def _cancellations(told: Iterable[Told], history: History) -> Check:
    check = Check("every cancellation is on record, once")
    seen: set[int | None] = set()
    for one in told:
        if one.operation == "cancel" and one.status == 200:
            _on_record(check, one, history, _KIND.get(one.state or "", ""))
            check.expect(one.seq not in seen, f"{one.user}: a second 200 with seq {one.seq}")
            seen.add(one.seq)
            reassigned = one.seq in history.reassigned
            check.expect(
                one.reassigned == reassigned,
                f"{one.user}: told reassigned {one.reassigned}, on record {reassigned}",
            )
    return check


def _recorded(told: Iterable[Told], history: History) -> Check:
    """Look for what was answered `recorded`, whatever has happened to Redis since."""
    check = Check("whatever was answered `recorded` is on record")
    for one in told:
        if one.durability == "recorded":
            row = history.rows.get(one.seq or 0)
            right = row is not None and row.user == one.user
            right = right and row is not None and STATUS_AFTER[row.kind] == one.state
            check.expect(right, f"{one.user}: told {one.state} with seq {one.seq}")
    return check


def _on_record(check: Check, one: Told, history: History, kind: str) -> bool:
    row = history.rows.get(one.seq or 0)
    found = f"{row.user} {row.kind}" if row else "nothing"
    holds = row == Row(one.seq or 0, kind, one.user)
    check.expect(holds, f"{one.user}: {one.status} with seq {one.seq}; on record {found}")
    return holds


def _order(told: Iterable[Told], moments: Moments) -> Check:
    """Who was answered before another asked has the smaller seq."""
    check = Check("who was answered first comes first")
    for one in told:
        if one.status == 201 or (one.operation == "cancel" and one.status == 200):
            first, last = moments.of(one)
            between = first < (one.seq or 0) <= last
            check.expect(between, f"{one.user}: seq {one.seq}, not in {first + 1} to {last}")
    return check


def _states(told: Iterable[Told], history: History, moments: Moments) -> Check:
    """Look at what repeats and polls say, and that who cancelled twice had nothing any more."""
    check = Check("repeats and polls tell the truth")
    stays: dict[str, list[Stay]] = defaultdict(list)
    for known in history.stays.values():
        stays[known.user].append(known)
    for one in told:
        first, last = moments.of(one)
        if one.state == _PENDING:
            continue  # nothing was said yet
        if one.status in (200, 202) and one.operation in ("book", "poll"):
            stay = history.stays.get(one.seq or 0)
            right = stay is not None and (stay.user, stay.state) == (one.user, one.state)
            right = right and stay is not None and stay.meets(first, last)
            check.expect(right, f"{one.user}: told {one.state} since seq {one.seq}")
        elif one.operation == "cancel" and one.status == 404:
            ended = (past for past in stays[one.user] if past.state in _KIND)
            right = any(past.meets(first, last) for past in ended)
            check.expect(right, f"{one.user}: told that there was nothing to cancel")
    return check


def _positions(told: Iterable[Told], history: History, moments: Moments) -> Check:
    """Look whether the user had the position at some seq while the request was under way."""
    check = Check("positions are those of the journal")
    said: list[Told] = []
    asked: list[tuple[int, int]] = []
    for one in told:
        stay = history.stays.get(one.seq or 0)
        if one.position is not None and stay is not None and stay.turn:
            first, last = moments.of(one)
            said.append(one)
            asked.append((max(first, stay.since), stay.turn))
            asked.append((min(last, stay.until - 1), stay.turn))
    found = history.positions(asked)
    for one, most, least in zip(said, found[::2], found[1::2], strict=True):
        right = one.position is not None and least <= one.position <= most
        check.expect(right, f"{one.user}: position {one.position}, not in {least} to {most}")
    return check


def _counts(told: Iterable[Told], history: History, moments: Moments) -> Check:
    check = Check("what people saw at /status was so")
    for one in told:
        if one.operation == "look" and one.remaining is not None and one.waiting is not None:
            right = history.had_counts(one.remaining, one.waiting, *moments.of(one))
            check.expect(right, f"{one.user}: {one.remaining} left and {one.waiting} waiting")
    return check


def _nothing_else(told: Iterable[Told], history: History) -> Check:
    """Look for changes that nobody was told of; each lost answer explains one."""
    check = Check("nothing on record that nobody asked for")
    known: set[int] = set()
    lost: Counter[tuple[str, str]] = Counter()
    for one in told:
        if one.seq is not None:
            known.add(one.seq)
        elif one.is_unknown:
            lost[one.operation, one.user] += 1
    for row in history.rows.values():
        if row.kind not in _ASKED_BY:
            continue
        key = (_ASKED_BY[row.kind], row.user)
        explained = row.seq in known or lost[key] > 0
        lost[key] -= row.seq not in known
        check.expect(explained, f"seq {row.seq}: {row.user} {row.kind}, and nobody was told")
    return check
