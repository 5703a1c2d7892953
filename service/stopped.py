"""The partitions whose writer stands before an entry that cannot go on record (PROTOCOL, rule 25).

Nothing is skipped by itself: what ends a stop is the record going on beyond it, because the cause
is gone or an operator has set the change aside. So the writer looks again every few seconds, and
says a stop once, however often it meets it. Decides nothing about what is refused.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge

from service.lineage import Position

log = structlog.stdlib.get_logger("onsale.writer")

_LOOK_AGAIN_S = 3.0


@dataclass(slots=True)
class _Stop:
    """`at` is the cursor behind which it goes no further; `look_at` when it is tried again."""

    why: str
    at: Position
    look_at: float


class StoppedPartitions:
    """Those that stand. Invariant: the gauge is 1 for these and 0 for all others."""

    def __init__(self, partitions: Iterable[int], gauge: Gauge, clock: Callable[[], float]) -> None:
        """None stands. `gauge` has the label partition; `clock` is the writer's, in seconds."""
        self._gauge = gauge
        self._clock = clock
        self._stops: dict[int, _Stop] = {}
        for partition in partitions:
            gauge.labels(str(partition)).set(0)

    def __bool__(self) -> bool:
        """Whether any stands."""
        return bool(self._stops)

    def stop(self, partition: int, at: Position, why: str) -> None:
        """Note that nothing after `at` can go on record; say it loudly unless it is known."""
        known = self._stops.get(partition)
        self._stops[partition] = _Stop(why, at, self._clock() + _LOOK_AGAIN_S)
        self._gauge.labels(str(partition)).set(1)
        if known is None or known.why != why:
            log.critical(
                "THE WRITER HAS STOPPED, nothing is recorded any more", partition=partition, why=why
            )

    def rests(self, partition: int) -> bool:
        """Whether a partition stands, and is not to be tried again yet."""
        stop = self._stops.get(partition)
        return stop is not None and self._clock() < stop.look_at

    def recorded(self, partition: int, at: Position) -> None:
        """Hear how far a partition is on record; one that is beyond its stop goes on."""
        stop = self._stops.get(partition)
        if stop is not None and at > stop.at:
            del self._stops[partition]
            self._gauge.labels(str(partition)).set(0)
            log.warning("the writer goes on", partition=partition, after=at.entry_id)
