"""Readiness: whether this worker's partitions take bookings, as they were last asked.

Each partition is asked every 0.75 s by a script that Redis refuses exactly when it refuses a
booking, on the connection and under the fence that bookings have, unless one has just been taken;
so a refusal of any kind shows within 1.5 s, and its end as soon. `/readyz` and `onsale_open` tell
what was found, and ask no store. Invariant: a partition counts as ready only after an answer, never
before the first.
"""

import asyncio
from collections.abc import Sequence

import structlog

from service.errors import Problem
from service.partition import Partition
from service.suspension import Suspension

log = structlog.stdlib.get_logger("onsale.readiness")

_EVERY_S = 0.75
_WITHIN_S = 0.75
_AGAIN_S = 0.2
"""While a partition is not ready; per partition 10 ms where there are more than twenty."""


class Readiness:
    """The state of each partition of one worker, as last probed."""

    def __init__(
        self,
        partitions: Sequence[Partition],
        suspension: Suspension,
        *,
        unrecorded_max: int,
        needs_record: bool,
    ) -> None:
        """Ask nothing before `start`.

        `unrecorded_max`: changes off the record at which a booking is refused. `needs_record`:
        every answer waits for the record, so that a record that stands still is not ready either.
        """
        self._partitions = partitions
        self._suspension = suspension
        self._unrecorded_max = unrecorded_max
        self._needs_record = needs_record
        self._problems: dict[int, Problem] = {
            partition.number: Problem("unavailable") for partition in partitions
        }
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to ask."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._ask_on(each)) for each in self._partitions]

    async def stop(self) -> None:
        """End what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def problems(self) -> dict[int, Problem]:
        """Return why each partition that is not ready takes no bookings."""
        if why := self._suspension.why or self._suspension.away:
            return {each.number: Problem("unavailable", why) for each in self._partitions}
        return dict(self._problems)

    def check(self) -> None:
        """Raise Problem where a partition takes no bookings."""
        for problem in self.problems().values():
            raise Problem(problem.code, problem.detail)

    async def _ask_on(self, partition: Partition) -> None:
        """Ask for ever; what has changed is logged."""
        again_s = max(_AGAIN_S, 0.01 * len(self._partitions))
        # Many partitions are not asked in the same moment.
        await asyncio.sleep(_EVERY_S * partition.number / len(self._partitions))
        before: tuple[int, int] | None = None
        while True:
            began = asyncio.get_running_loop().time()
            if self._is_known(partition, began):
                await asyncio.sleep(partition.booked_at + _EVERY_S - began)
                continue
            try:
                last, recorded = await partition.probe(self._unrecorded_max, began + _WITHIN_S)
                self._settle(partition.number, self._standing(before, recorded))
                before = (last.seq, recorded)
            except Problem as problem:
                self._settle(partition.number, problem)
                before = None
            except Exception:  # a failure of ours must not be taken for readiness
                log.exception("the probe failed", partition=partition.number)
                self._settle(partition.number, Problem("unavailable"))
            is_ready = partition.number not in self._problems
            pause = _EVERY_S if is_ready else again_s
            await asyncio.sleep(max(0.0, began + pause - asyncio.get_running_loop().time()))

    def _is_known(self, partition: Partition, now: float) -> bool:
        """Return whether a booking that was just taken answers the question: no cost under load.

        It says nothing of the record, where that has to move as well.
        """
        return (
            partition.number not in self._problems
            and not self._needs_record
            and now - partition.booked_at < _EVERY_S
        )

    def _standing(self, before: tuple[int, int] | None, recorded: int) -> Problem | None:
        """Judge a watermark that has not moved since the last question, below what R was then."""
        if not self._needs_record or before is None:
            return None
        last, recorded_before = before
        if recorded < last and recorded == recorded_before:
            return Problem("record_behind", "Nothing has gone on record for a while.")
        return None

    def _settle(self, number: int, problem: Problem | None) -> None:
        """Keep what was found."""
        before = self._problems.get(number)
        if problem is None:
            self._problems.pop(number, None)
            if before is not None:
                log.info("ready", partition=number)
            return
        if before is None:
            log.warning("not ready", partition=number, code=problem.code, why=problem.detail)
        self._problems[number] = problem
