"""What was answered before a fault and after it, each held against the changes of its life.

The rules are the audit's (`service/replay.py`, by way of `loadtests`); what is judged here is only
which answer belongs to which history. A life that lost its end has had it: its answers are held
against that end as well, which no record has.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import asyncpg

from loadtests.answers import Answers, Sale, Told
from loadtests.checks import check_answers
from loadtests.replay import History, Row
from service.lineage import Epoch, Lineage
from service.outbox import STATUS_AFTER, Change
from service.record import change_of
from tests.deployment import Fault
from tests.restores.attendance import Attendance, Heard


@dataclass(frozen=True)
class OnRecord:
    """The record at the end: one event's changes, its opening first, and the lineage."""

    changes: list[Change]
    lineage: Lineage


async def read_record(url: str, event_id: int) -> OnRecord:
    """Read what is on record about an event."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT * FROM journal WHERE event_id = $1 ORDER BY seq", event_id
        )
        epochs = await connection.fetch(
            "SELECT epoch, beginning, predecessor, verdict FROM epochs WHERE beginning IS NOT NULL"
        )
    finally:
        await connection.close()
    return OnRecord([change_of(row) for row in rows], Lineage(Epoch(*row) for row in epochs))


@dataclass(frozen=True)
class Lost:
    """The answers that no lineage leads to: of changes after `ends`, promised up to `last`.

    `epoch` is the one that left them out.
    """

    heard: Sequence[Heard] = ()
    ends: int | None = None
    last: int = 0
    epoch: int = 0
    users: frozenset[str] = field(default_factory=frozenset)


def find_lost(heard: Iterable[Heard], lineage: Lineage) -> Lost:
    """Return what was answered and is not on the lineage of the record.

    An answer may tell of a change of an earlier epoch than its own; every later one must have it.
    """
    lost, cut = [], None
    for one in heard:
        ends = lineage.ends(one.at.epoch) if one.at else None
        if one.at and ends is not None and one.at.seq > ends:
            lost.append(one)
            cut = ends if cut is None else min(cut, ends)
    if cut is None:
        return Lost()
    newest = max(one.at.epoch for one in lost if one.at)
    epoch = min(e.epoch for e in lineage.epochs if e.beginning == cut and e.epoch > newest)
    # Who was told that nothing is promised yet has lost nothing.
    last = max((one.at.seq for one in lost if one.at and not one.is_pending), default=0)
    return Lost(lost, cut, last, epoch, frozenset(one.told.user for one in lost))


def missing_though_recorded(heard: Iterable[Heard], record: OnRecord) -> list[Heard]:
    """Return every answer that said `recorded` of what is not on record."""
    users = {change.seq: change.user_id for change in record.changes}
    return [
        one
        for one in heard
        if one.told.durability == "recorded" and users.get(one.told.seq or 0) != one.told.user
    ]


def contradictions(
    attendance: Attendance, tickets: int, fault: Fault, record: OnRecord
) -> list[str]:
    """Return every answer that contradicts the history of its life, each in a sentence."""
    lost = find_lost(attendance.heard, record.lineage)
    said = [one for one in attendance.heard if one.told.status != 503 or one.told.is_unknown]
    if lost.ends is None:
        return _judged("", attendance.event_id, tickets, record.changes, [h.told for h in said])
    unknown = [one.told for one in said if one.told.is_unknown]
    old = [one for one in said if one.at and one.at.epoch < lost.epoch]
    new = [one for one in said if one.at and one.at.epoch >= lost.epoch]
    # What tells of no change is of the life in which it was asked and answered.
    rest = [one for one in said if one.at is None and not one.told.is_unknown]
    then = [one for one in rest if one.told.answered < fault.since]
    since = [one for one in rest if one.told.sent > fault.until and not _says_lost(one, lost)]
    ends = lost.ends
    had = [c for c in fault.had if c.seq > ends and c.event_id == attendance.event_id]
    first_life = [change for change in record.changes if change.seq <= ends] + had
    told = [one.told for one in (*old, *then)] + unknown
    wrong = _judged("before the fault: ", attendance.event_id, tickets, first_life, told)
    told = [*_changed(old, ends, unknown), *(one.told for one in (*new, *since)), *unknown]
    return wrong + _judged("after the fault: ", attendance.event_id, tickets, record.changes, told)


def _changed(old: Iterable[Heard], ends: int, unknown: Iterable[Told]) -> Iterator[Told]:
    """Yield what the old life said first of each change that is on record.

    What it said later of the same change may be true of its lost end alone: a place in the line.
    """
    again = {told.user for told in unknown if told.operation == "book"}
    first = {one.at.seq: one.told for one in reversed([*old]) if one.at and one.at.seq <= ends}
    for told in first.values():
        yield replace(told, position=None) if told.user in again else told


def _says_lost(one: Heard, lost: Lost) -> bool:
    """Whether somebody whose booking is lost was told that there is none, which is true."""
    return one.told.status == 404 and one.told.user in lost.users


def _judged(
    when: str, event_id: int, tickets: int, changes: Sequence[Change], told: Sequence[Told]
) -> list[str]:
    """Hold answers against changes, by every check of the load test."""
    opened, *others = changes
    assert opened.kind == "opened"
    rows = [Row(c.seq, c.kind, c.user_id or "") for c in others if c.kind in STATUS_AFTER]
    history = History(opened.seq, tickets, rows)
    answers = Answers(Sale(event_id, tickets, 0, ""), tuple(told), len(told), 0, 0)
    return [
        f"{when}{check.name}: {wrong}"
        for check in check_answers(answers, history)
        for wrong in check.wrong
    ]
