"""How a sale has to stand once a store was put back and it sells again."""

import asyncio

from tests.deployment import Deployment, Fault
from tests.restores.attendance import Attendance
from tests.restores.lives import (
    Lost,
    OnRecord,
    contradictions,
    find_lost,
    missing_though_recorded,
    read_record,
)
from tests.restores.settling import Confirmed

TICKETS = 25


async def ends_well(
    deployment: Deployment, people: Attendance, fault: Fault, *, kept: bool = True
) -> tuple[OnRecord, Lost]:
    """Hold both stores to the operator's commands, and every answer to the history of its life.

    `kept`: what was recorded is still there, or an operator has said that it need not be.
    """
    await deployment.is_recorded()
    for command in ("reconcile", "audit"):
        ended = await asyncio.to_thread(deployment.onsale, command)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    record = await read_record(deployment.servers.postgresql_url, people.event_id)
    assert not kept or missing_though_recorded(people.heard, record) == []
    assert contradictions(people, TICKETS, fault, record) == []
    return record, find_lost(people.heard, record.lineage)


def lost_what_was_not_recorded(
    fault: Fault, record: OnRecord, lost: Lost, confirmed: Confirmed | None
) -> None:
    """What was answered and is lost had not reached the record, and the report says which it is."""
    if lost.ends is None:
        assert confirmed is None
        return
    had = {change.seq: change for change in fault.had}
    for one in lost.heard:
        assert one.at is not None
        assert had[one.at.seq].user_id == one.told.user
    kept = {(change.epoch, change.seq) for change in fault.had if change.event_id}
    on_record = {(change.epoch, change.seq) for change in record.changes}
    assert {at for at in kept if at[1] <= lost.ends} <= on_record
    assert not {at for at in kept if at[1] > lost.ends} & on_record
    if confirmed is None:
        assert lost.last == 0
        return
    # A writer that was frozen had read what it put on record after the report.
    first = range(confirmed.first, lost.ends + 1)
    assert {change.seq for change in fault.had if change.seq in first} == {*first}
    assert not first or fault.writer_was_frozen
    assert lost.last <= confirmed.last <= max(had)
