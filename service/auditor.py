"""Replays the record's whole journal, in one snapshot, and compares the tables with it.

Reads PostgreSQL alone and writes nothing; the sale may be open. Memory is that of the states of all
users that are replayed, whatever the number of changes.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from service.journal_replay import AuditedReplay, JournalReplay
from service.journal_view import JournalView
from service.replay_result import ReplayResult
from service.violations import (
    AuditedEvent,
    AuditedPartition,
    AuditReport,
    Head,
    Violation,
    Violations,
)

OnProgress = Callable[[int, int], None]
"""Told how many rows are done, and how many there are."""


class UnknownEventError(Exception):
    """An event that is neither in the journal nor in the tables."""


async def audit(
    postgresql_url: str,
    *,
    event_ids: Collection[int] | None = None,
    kept: Sequence[Head] = (),
    on_progress: OnProgress | None = None,
) -> AuditReport:
    """Audit all events, or the whole journal and these events.

    `kept` heads must still be in the chain. Raises UnknownEventError, and what `UNAVAILABLE` lists.
    """
    started = time.monotonic()
    async with await JournalView.open(postgresql_url, purpose="audit") as record, record.snapshot():
        report = await Auditor(record, event_ids, kept, on_progress).run()
    return AuditReport(
        report.partitions,
        report.events,
        report.violations,
        len(kept),
        time.monotonic() - started,
    )


class Auditor:
    """One audit, inside a snapshot."""

    def __init__(
        self,
        record: JournalView,
        event_ids: Collection[int] | None,
        kept: Iterable[Head],
        on_progress: OnProgress | None,
    ) -> None:
        """Take what it works with."""
        self._record = record
        self._only = None if event_ids is None else frozenset(event_ids)
        self._kept = list(kept)
        self._on_progress = on_progress
        self._rows = 1
        self._rows_done = 0
        self._violations = Violations()

    async def run(self) -> AuditReport:
        """Replay every partition, then compare the tables."""
        held = await self._record.partitions() or 0
        numbers = {*range(held), *await self._record.partitions_found()}
        for partition in sorted(numbers - {*range(held)}):
            says = f"the table deployment says {held} partitions"
            self._violations.add(Violation("unreadable", partition, None, None, None, says))
        replays = await self._replayed(sorted(numbers), held or 1)
        events = {id_: event for replay in replays for id_, event in replay.events.items()}
        report = AuditReport(
            partitions=await self._audited(replays),
            # Now: the comparison takes the states over.
            events=[_audited(events[event_id]) for event_id in sorted(events)],
            violations=self._violations,
        )
        await self._compare(events, held or 1)
        return report

    async def _replayed(self, numbers: Sequence[int], partitions: int) -> list[JournalReplay]:
        cursors = await self._record.cursors(numbers)
        lineages = await self._record.lineages(numbers)
        self._rows = sum(cursor.last.seq for cursor in cursors.values())
        if self._only is None:
            self._rows += await self._record.bookings_count()
        for head in self._kept:
            if head.partition not in numbers:
                says = "the record does not have this partition; a head of it was kept"
                violation = Violation("kept_head", head.partition, head.seq, None, None, says)
                self._violations.add(violation)
        replays = []
        for partition in numbers:
            replay = JournalReplay(
                partition,
                partitions,
                cursors.get(partition),
                lineages[partition],
                self._violations,
                kept=[head for head in self._kept if head.partition == partition],
                only=self._only,
            )
            async for page in self._record.journal_pages(partition):
                for change, hash_, reason in page:
                    replay.take(change, hash_, reason)
                self._progress(len(page))
            replay.end()
            replays.append(replay)
        return replays

    async def _audited(self, replays: Iterable[JournalReplay]) -> list[AuditedPartition]:
        orphans = await self._record.orphans()
        return [
            AuditedPartition(
                replay.head, replay.epochs, orphans.get(replay.partition, 0), replay.letters
            )
            for replay in replays
        ]

    async def _compare(self, events: dict[int, AuditedReplay], partitions: int) -> None:
        rows = await self._record.event_rows(self._only)
        if self._only is not None:
            unknown = self._only - events.keys() - {row.event_id for row in rows}
            if unknown:
                msg = f"the record has no event {', '.join(map(str, sorted(unknown)))}"
                raise UnknownEventError(msg)
        result = ReplayResult(events, partitions, self._violations)
        result.judge_events(rows)
        async for page in self._record.booking_pages(self._only):
            result.take_bookings(page)
            self._progress(len(page))
        result.end_bookings()

    def _progress(self, rows: int) -> None:
        self._rows_done = min(self._rows, self._rows_done + rows)
        if self._on_progress is not None:
            self._on_progress(self._rows_done, max(1, self._rows))


def _audited(event: AuditedReplay) -> AuditedEvent:
    return AuditedEvent(
        event.event_id,
        event.partition,
        event.capacity or 0,
        event.changes,
        len(event.states),
        event.sold,
        event.most_sold,
        len(event.line),
    )
