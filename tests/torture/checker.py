"""A history held against the journal: each answer has to be the reference model's.

The journal is replayed in the order of seq through `tests/model.py`: each change must be one that
the model makes when it is asked for it then, and each answer what the model answered at its seq.
An operation that had ended before another began has the smaller seq, and what changes nothing saw
no less than what had ended before it. With the order known, that is linearizability: nothing has to
be searched. What changed nothing is not remembered under its key (PROTOCOL, rule 24), so that a
sending of it that was given up, and comes a few seconds after the answer, may change something.
What a change may not do in any order is judged by the list that `onsale audit` has
(`service/replay.py`). Pure; each fault is a sentence.
"""

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

from loadtests.replay import History, Stay
from loadtests.replay import Row as Change
from service.outbox import STATUS_AFTER
from tests.model import Answer, PartitionModel
from tests.torture.history import Operation, Row

ASKED_BY = {"booked": "book", "waiting": "book", "cancelled": "cancel", "left": "cancel"}
_NOBODY = {"cancelled", "left_waiting_list"}
_STATUS = {"booked": (200, 201), "waiting": (202,), "cancelled": (200,), "left": (200,)}
_END = 1 << 62

LATE_S = 15.0
"""How long after the answer a sending that was given up may be carried out: held on its way, or
unread in a frozen process, and from then on for the request's deadline."""


@dataclass(repr=False)
class Replay:
    """The journal, as the model went through it.

    `answers` holds what the model answered, by partition and seq; `by_key` the changes that each
    key asked for.
    """

    rows: Sequence[Row]
    answers: dict[tuple[int, int], Answer] = field(default_factory=dict)
    by_key: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    histories: dict[int, History] = field(default_factory=dict)
    partition_of: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def replayed(rows: Sequence[Row]) -> Replay:
    """Have the model do what is on record, in its order."""
    replay = Replay(rows)
    by_partition: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_partition[row.partition].append(row)
        if row.key:
            replay.by_key[row.key].append(row)
    for partition, of_partition in by_partition.items():
        _replay_partition(replay, partition, of_partition)
    replay.wrong += [
        f"{key} has {len(found)} changes: seqs {[row.change.seq for row in found]}"
        for key, found in replay.by_key.items()
        if len(found) > 1
    ]
    _judge_events(replay)
    return replay


def _replay_partition(replay: Replay, partition: int, rows: Sequence[Row]) -> None:
    model = PartitionModel()
    for row in rows:
        change = row.change
        if change.seq <= model.seq:
            # The model has made it together with the change before: a promotion.
            _same(replay, model, row)
            continue
        if change.seq != model.seq + 1:
            replay.wrong.append(f"partition {partition}: {change.seq} follows {model.seq}")
            model.seq = change.seq - 1
        if change.kind == "epoch_began":
            model.seq += 1
            continue
        replay.answers[partition, change.seq] = done(model, row)
        if model.seq < change.seq:
            answer = replay.answers[partition, change.seq]
            replay.wrong.append(f"{_named(row)}: the model says {answer.outcome}, and does nothing")
            model.seq = change.seq
            continue
        _same(replay, model, row)


def done(model: PartitionModel, row: Row) -> Answer:
    """Ask the model for what this change was asked for."""
    change = row.change
    event_id = change.event_id or 0
    if change.kind == "opened":
        return model.open(event_id, int(json.loads(change.details or "{}")["totalTickets"]))
    details = json.loads(change.details) if change.details else {}
    keyed = f"{details['key']}/{details['digest']}" if "key" in details else ""
    ask = model.book if ASKED_BY.get(change.kind) == "book" else model.cancel
    return ask(event_id, change.user_id or "", keyed)


def _same(replay: Replay, model: PartitionModel, row: Row) -> None:
    """Compare a change on record with what the model made under the same seq."""
    change = row.change
    made = next((one for one in reversed(model.changes) if one.seq == change.seq), None)
    found = (change.kind, change.event_id, change.user_id)
    if made is None or found != (made.kind, made.event, made.user):
        replay.wrong.append(f"{_named(row)}: the model makes {made}")
    elif change.kind in ASKED_BY and (change.details or None) != made.details:
        replay.wrong.append(f"{_named(row)}: details {change.details}, the model's {made.details}")


def _named(row: Row) -> str:
    change = row.change
    return f"{row.partition}/{change.seq} {change.kind} {change.event_id} {change.user_id}"


def _judge_events(replay: Replay) -> None:
    """Apply the audit's rules to each event."""
    changes: dict[int, list[Change]] = defaultdict(list)
    opened: dict[int, tuple[int, int]] = {}
    for row in replay.rows:
        change = row.change
        if change.kind == "opened" and change.event_id is not None:
            capacity = int(json.loads(change.details or "{}")["totalTickets"])
            opened[change.event_id] = change.seq, capacity
            replay.partition_of[change.event_id] = row.partition
        elif change.kind in STATUS_AFTER and change.event_id is not None:
            found = Change(change.seq, change.kind, change.user_id or "")
            changes[change.event_id].append(found)
    for event_id, (seq, capacity) in opened.items():
        history = replay.histories[event_id] = History(seq, capacity, changes[event_id])
        replay.wrong += [
            f"event {event_id}: {says}"
            for says in (*history.oversold, *history.unlawful, *history.out_of_order)
        ]


class Windows:
    """Between which seqs an operation may have been carried out, as far as its times tell."""

    def __init__(self, done: Iterable[tuple[Operation, int, int]]) -> None:
        """Take operations of one partition: each was at or before a seq, and at or behind another.

        Those that have a change, with its first and last; and those that saw one (`_seen`).
        """
        known = [
            (inf if one.completed is None else one.completed, one.invoked, first, last)
            for one, first, last in done
        ]
        ended = sorted((completed, last) for completed, _, _, last in known)
        self._ended = [at for at, _ in ended]
        self._latest = list(accumulate((seq for _, seq in ended), max))
        begun = sorted((invoked, first) for _, invoked, first, _ in known)
        self._begun = [at for at, _ in begun]
        self._earliest = list(accumulate((seq for _, seq in reversed(begun)), min))[::-1]

    def of(self, one: Operation) -> tuple[int, int]:
        """Return the last seq that was surely before it, and the last one that may be."""
        assert one.completed is not None
        before = bisect_left(self._ended, one.invoked) - 1
        first = self._latest[before] if before >= 0 else 0
        return first, self.until(one.completed)

    def until(self, at: float) -> int:
        """Return the last seq that may be before whatever begins later than a time."""
        behind = bisect_right(self._begun, at)
        return self._earliest[behind] - 1 if behind < len(self._earliest) else _END


def check(operations: Sequence[Operation], rows: Sequence[Row]) -> list[str]:
    """Return everything that is wrong, each in a sentence; nothing, for a history that is right."""
    replay = replayed(rows)
    wrong = [*replay.wrong, *_strangers(operations, replay)]
    unknown = {one.event_id for one in operations} - replay.partition_of.keys()
    wrong += [f"event {event_id} is not on record" for event_id in sorted(unknown)]
    operations = [one for one in operations if one.event_id not in unknown]
    stays = {event_id: _stays(history) for event_id, history in replay.histories.items()}
    of_partition, late = _changing(operations, replay, stays)
    windows = {partition: Windows(done) for partition, done in of_partition.items()}
    for one in operations:
        if one.completed is None or (replay.by_key.get(one.key) and one.key not in late):
            continue
        partition = replay.partition_of[one.event_id]
        window = windows[partition].of(one) if partition in windows else (0, _END)
        if seen := _seen(one, replay, window, stays[one.event_id]):
            of_partition[partition].append((one, *seen))
    windows = {partition: Windows(done) for partition, done in of_partition.items()}
    places: list[Place] = []
    for one in operations:
        if one.completed is None:
            wrong.append(f"{one}: it has no end")
            continue
        if one.event_id not in replay.partition_of:
            wrong.append(f"{one}: its event is not on record")
            continue
        partition = replay.partition_of[one.event_id]
        window = windows[partition].of(one) if partition in windows else (0, _END)
        judge = _Judge(one, replay, window, stays[one.event_id], places, is_late=one.key in late)
        wrong += [f"{one} {one.body}: {says}" for says in judge.judge()]
    return [*wrong, *_misplaced(places, replay)]


def _changing(
    operations: Sequence[Operation], replay: Replay, stays: Mapping[int, dict[str, list[Stay]]]
) -> tuple[dict[int, list[tuple[Operation, int, int]]], set[str]]:
    """Return by partition the operations that have a change, with its first and last seq.

    And the keys of those that do not count: told that they had changed nothing, which was so before
    their change, and carried out by a sending that was given up.
    """
    found: dict[int, list[tuple[Operation, int, int]]] = defaultdict(list)
    doubtful: dict[int, list[tuple[Operation, int, int]]] = defaultdict(list)
    late: set[str] = set()
    for one in operations:
        history = replay.histories.get(one.event_id)
        rows = replay.by_key.get(one.key, []) if history else []
        for row in rows[:1]:
            seq = row.change.seq
            is_told = one.completed is None or one.sends == 1 or one.seq == seq
            of_partition = (found if is_told else doubtful)[row.partition]
            of_partition.append(
                (one, seq, seq + (history is not None and seq in history.reassigned))
            )
    for partition, of_partition in doubtful.items():
        windows = Windows(found[partition])
        for one, first, last in of_partition:
            assert one.completed is not None
            since, until = windows.of(one)
            window = since, min(until, first - 1)
            judge = _Judge(one, replay, window, stays[one.event_id], [], is_late=True)
            if first <= windows.until(one.completed + LATE_S) and not any(judge.judge()):
                late.add(one.key)
            else:
                found[partition].append((one, first, last))
    return found, late


def _seen(
    one: Operation, replay: Replay, window: tuple[int, int], stays: dict[str, list[Stay]]
) -> tuple[int, int] | None:
    """Return before which seq something was looked at, and behind which, as what was seen tells.

    So who looks later does not see less. Whether it was so at all is judged elsewhere.
    """
    history = replay.histories[one.event_id]
    if one.kind == "look":
        counts = one.body.get("remainingTickets", -1), one.body.get("waitingListCount", -1)
        found = history.when_counts(*counts, *window)
        return found and (found[1], found[0])
    stay = history.stays.get(one.seq or 0)
    if stay is not None and (stay.user, stay.state) == (one.user, one.state):
        return stay.until, stay.since
    if one.kind == "poll" and one.status == 404 and one.user in stays:
        return stays[one.user][0].since, 0
    return None


@dataclass(frozen=True, slots=True)
class Place:
    """A position that was told, of a turn in the line, at some seq from `first` to `last`."""

    one: Operation
    position: int
    turn: int
    first: int
    last: int


def _misplaced(places: Iterable[Place], replay: Replay) -> Iterator[str]:
    """Compare all positions of an event at once: one pass over its history."""
    of_event: dict[int, list[Place]] = defaultdict(list)
    for place in places:
        of_event[place.one.event_id].append(place)
    for event_id, told in of_event.items():
        asked = [(seq, place.turn) for place in told for seq in (place.first, place.last)]
        found = replay.histories[event_id].positions(asked)
        for place, most, least in zip(told, found[::2], found[1::2], strict=True):
            if not least <= place.position <= most:
                yield f"{place.one}: position {place.position} is not in {least} to {most}"


def _strangers(operations: Sequence[Operation], replay: Replay) -> Iterator[str]:
    """Find changes that nobody of this history asked for."""
    keys = {one.key for one in operations}
    for row in replay.rows:
        if row.change.kind in ASKED_BY and row.key not in keys:
            yield f"{_named(row)}: nobody asked for it"


def _stays(history: History) -> dict[str, list[Stay]]:
    """Return the states of each user of an event, in their order."""
    found: dict[str, list[Stay]] = defaultdict(list)
    for stay in history.stays.values():
        found[stay.user].append(stay)
    return found


@dataclass(repr=False)
class _Judge:
    """One operation that has ended, and everything that is known of its event."""

    one: Operation
    replay: Replay
    window: tuple[int, int]
    stays: dict[str, list[Stay]]
    places: list[Place]
    is_late: bool

    def judge(self) -> Iterator[str]:
        rows = self.replay.by_key.get(self.one.key, []) if self.one.key else []
        yield from self._is_about_it()
        if self.is_late:
            yield from self._was_asked_for(rows[0])
            rows = []
        if self.one.kind == "look":
            yield from self._look()
        elif rows:
            yield from self._changed(rows[0])
        elif self.one.kind in ("poll", "book"):
            yield from self._stood()
        else:
            yield from self._nothing_to_cancel()
        yield from self._recorded()

    def _is_about_it(self) -> Iterator[str]:
        """It is no answer to somebody else's request."""
        asked = {"eventId": self.one.event_id, "userId": self.one.user}
        told = {name: self.one.body[name] for name in asked if name in self.one.body}
        if not told.items() <= asked.items():
            yield f"the answer is about {told}"

    def _was_asked_for(self, row: Row) -> Iterator[str]:
        change = row.change
        if (change.event_id, change.user_id) != (self.one.event_id, self.one.user):
            yield f"its change is about {change.event_id} {change.user_id}"
        if ASKED_BY[change.kind] != self.one.kind:
            yield f"its change is {change.kind}"

    def _changed(self, row: Row) -> Iterator[str]:
        """It made a change: the answer is what the model said, and its seq lies in its time."""
        one, change = self.one, row.change
        first, last = self.window
        yield from self._was_asked_for(row)
        if not first < change.seq <= last:
            yield f"seq {change.seq} is not in {first + 1} to {last}"
        current = one.body.get("current")
        if current is not None and one.sends == 1:
            yield "it was sent once, and is answered as a repeat"
        # A replay says in which epoch it was told; the change may be of an earlier one.
        epoch = change.epoch if current is None else max(change.epoch, one.body["epoch"])
        if (one.body.get("epoch"), one.seq) != (epoch, change.seq):
            yield f"its change is {change.epoch}-{change.seq}"
        if one.status not in _STATUS[change.kind] or one.state != STATUS_AFTER[change.kind]:
            yield f"its change is {change.kind}"
        answer = self.replay.answers[row.partition, change.seq]
        if (
            current is None
            and change.kind == "waiting"
            and one.body.get("position") != answer.extra
        ):
            yield f"the model says position {answer.extra}"
        if change.kind == "cancelled" and one.body.get("reassigned") != bool(answer.extra):
            yield f"the model says reassigned {bool(answer.extra)}"
        if current is not None:
            yield from self._was(current["status"], current["seq"], current.get("position"))

    def _stood(self) -> Iterator[str]:
        """It changed nothing: what it says of the user was so at some seq of its time."""
        one = self.one
        if one.status in (200, 202) and one.state and one.seq:
            yield from self._was(one.state, one.seq, one.body.get("position"))
            if one.kind == "book" and one.state not in ("booked", "waiting"):
                yield "who holds nothing could have booked"
        elif one.kind == "poll" and one.status == 404:
            since = min((stay.since for stay in self.stays.get(one.user, [])), default=_END)
            if since <= self.window[0]:
                yield f"the user was known since seq {since}"
        else:
            yield "no such answer is known"

    def _nothing_to_cancel(self) -> Iterator[str]:
        one = self.one
        if one.status != 404 or one.body.get("code") != "not_booked":
            yield "nothing on record says so"
            return
        stays = self.stays.get(one.user, [])
        begins = stays[0].since if stays else _END
        had = (stay for stay in stays if stay.state in _NOBODY)
        if begins <= self.window[0] and not any(stay.meets(*self.window) for stay in had):
            yield "there was something to cancel all the time"

    def _was(self, state: str, seq: int, position: int | None) -> Iterator[str]:
        """Hold that a user's state, since a seq, was so at some moment of the operation."""
        history = self.replay.histories[self.one.event_id]
        stay = history.stays.get(seq)
        first, last = self.window
        if stay is None or (stay.user, stay.state) != (self.one.user, state):
            yield f"the user was not {state} since seq {seq}"
        elif not stay.meets(first, last):
            yield f"{state} from {stay.since} to {stay.until}, not within {first} to {last}"
        elif (position is not None) != (state == "waiting"):
            yield f"position {position} of who is {state}"
        elif position is not None:
            since, until = max(first, stay.since), min(last, stay.until - 1)
            self.places.append(Place(self.one, position, stay.turn, since, until))

    def _look(self) -> Iterator[str]:
        one = self.one
        history = self.replay.histories[one.event_id]
        remaining, waiting = one.body.get("remainingTickets"), one.body.get("waitingListCount")
        if one.status != 200 or remaining is None or waiting is None:
            yield "no such answer is known"
        elif not history.had_counts(remaining, waiting, *self.window):
            yield f"it was never so between seqs {self.window}"

    def _recorded(self) -> Iterator[str]:
        """Whatever was answered `recorded` is on record; and nothing says that it is not kept."""
        one = self.one
        if one.seq is not None and one.seq not in self.replay.histories[one.event_id].rows:
            yield f"seq {one.seq} is not on record ({one.body.get('durability')})"
