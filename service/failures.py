"""Failures of steps that are at best effort: none of them is silent.

Such a step costs no answer when it fails: it only saves time, or is made good later. One that
fails for ever is a fault all the same. Each failure is counted; the first is logged, and the first
success after it.
"""

import structlog
from prometheus_client import Counter

log = structlog.stdlib.get_logger("onsale.failures")

STEPS = ("watermark", "trim", "wakeup", "look")


class Failures:
    """Steps that fail at the moment, by step and partition."""

    def __init__(self, counter: Counter) -> None:
        """Nothing fails. `counter` has the label step."""
        self._counter = counter
        self._failing: set[tuple[str, int]] = set()
        for step in STEPS:
            counter.labels(step)

    def failed(self, step: str, partition: int, why: object) -> None:
        """Count a failure, and log it unless the step was failing before."""
        self._counter.labels(step).inc()
        if (step, partition) not in self._failing:
            self._failing.add((step, partition))
            log.warning("step fails", step=step, partition=partition, why=str(why))

    def succeeded(self, step: str, partition: int) -> None:
        """Note that a step works; log it where it was failing."""
        if (step, partition) in self._failing:
            self._failing.discard((step, partition))
            log.warning("step works again", step=step, partition=partition)
