"""What a process counts, and how all processes of one host are counted together.

Every process writes its numbers into files of a shared directory (prometheus-client's multiprocess
mode), under a slot of its own that a later process takes over, so that a counter goes on where a
killed one left it. Knows nothing of tickets: whoever counts brings the words.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MultiProcessValue

from service.slots import lock_slot, take_slot
from service.tallies import Count, Tally

log = structlog.stdlib.get_logger("onsale.metrics")

REQUEST_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
_CALL_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 4.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_CHANGES = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384)
_FILES = ("counter", "histogram", "gauge_sum", "gauge_mostrecent")
_FILE_BYTES = 256 << 10


class Metrics:
    """All families that a process may count in. Durations are seconds."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory` is where other processes count; None where this one counts alone."""
        self._directory = directory
        self._registry = CollectorRegistry()
        self.requests = Histogram(
            "onsale_request_duration_seconds",
            "From the request's head to the answer's last byte.",
            ["route", "status"],
            buckets=REQUEST_S,
            registry=self._registry,
        )
        self.problems = self._counter("onsale_problems", "Refusals, by code.", "code")
        self.outcomes = self._counter(
            "onsale_outcomes",
            "What the scripts decided, an item each; a repeat that changed nothing says so.",
            "operation",
            "outcome",
        )
        self.promotions = self._counter(
            "onsale_promotions", "Waiters who got a ticket in the step of a cancellation."
        )
        self.batch_items = Histogram(
            "onsale_batch_items",
            "Requests that shared one script call.",
            ["script"],
            buckets=_ITEMS,
            registry=self._registry,
        )
        self.calls = Histogram(
            "onsale_call_duration_seconds",
            "One script call with all its repeats, handshakes in between included.",
            ["script"],
            buckets=_CALL_S,
            registry=self._registry,
        )
        self.waiting_room = Gauge(
            "onsale_waiting_room_requests",
            "Requests that waited for the next script call when the last one left.",
            ["script"],
            multiprocess_mode="sum",
            registry=self._registry,
        )
        self.unrecorded_max = Gauge(
            "onsale_unrecorded_changes_max",
            "Unrecorded changes of a partition at which the operation is refused.",
            ["operation"],
            multiprocess_mode="mostrecent",
            registry=self._registry,
        )
        self.recorded_waiters = Gauge(
            "onsale_recorded_waiters",
            "Requests that wait until their change is on record.",
            multiprocess_mode="sum",
            registry=self._registry,
        )
        self.recorded_waits = Histogram(
            "onsale_recorded_wait_seconds",
            "From a change to its being on record, or to the answer `pending`.",
            ["outcome"],
            buckets=REQUEST_S,
            registry=self._registry,
        )
        self.unverified_answers = self._counter(
            "onsale_unverified_answers",
            "Answers between the last good look at a store's settings and one that found it unfit.",
            "store",
        )
        self.failed_steps = self._counter(
            "onsale_failed_steps", "Failures of steps that cost no answer at once.", "step"
        )
        self.handshakes = self._counter(
            "onsale_handshakes", "Handshakes, by what they came to.", "partition", "result"
        )
        self.recorded = self._counter(
            "onsale_recorded_changes", "Changes that the writer has put on record.", "kind"
        )
        self.commits = Histogram(
            "onsale_commit_duration_seconds",
            "One transaction of the writer.",
            buckets=_CALL_S,
            registry=self._registry,
        )
        self.commit_changes = Histogram(
            "onsale_commit_changes",
            "Changes in one transaction of the writer.",
            buckets=_CHANGES,
            registry=self._registry,
        )
        self.writer_stopped = Gauge(
            "onsale_writer_stopped",
            "1 where the writer has stopped and an operator must look.",
            ["partition"],
            multiprocess_mode="mostrecent",
            registry=self._registry,
        )

        self.request_durations = Tally(self.requests, REQUEST_S)
        self.call_durations = Tally(self.calls, _CALL_S)
        self.batch_sizes = Tally(self.batch_items, _ITEMS)
        self.recorded_wait_durations = Tally(self.recorded_waits, REQUEST_S)
        self.problem_counts = Count(self.problems)

    def flush(self) -> None:
        """Hand on what is counted aside, for whoever looks now."""
        for tally in (
            self.request_durations,
            self.call_durations,
            self.batch_sizes,
            self.recorded_wait_durations,
            self.problem_counts,
        ):
            tally.flush()

    def registry(self) -> Collector:
        """Return what is to be shown: this process's numbers, or those of all together."""
        return self._registry if self._directory is None else _Together(self._directory)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self._registry)


class _Together(Collector):
    """What all files of a directory add up to; one that cannot be read costs its own numbers."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """Yield every family once."""
        files = [path for path in _files(self._directory) if self._counts(path)]
        merged: Iterable[Metric] = MultiProcessCollector.merge(  # type: ignore[no-untyped-call]
            [str(path) for path in files if not _flaw(path)]
        )
        return merged

    def _counts(self, path: Path) -> bool:
        """Whether a file's numbers still stand: what waited in a process that is gone does not."""
        if not path.name.startswith("gauge_sum_"):
            return True
        descriptor = lock_slot(self._directory, _slot_of(path))
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None


def shared(directory: Path, role: str) -> Metrics:
    """Return the metrics of a process that counts together with others.

    To be called once, at a process's start. A directory that cannot be used costs the others'
    numbers, never the start.
    """
    return Metrics(_join(directory, role))


def note_reconcile(directory: Path, *, exit_code: int, drifts: int) -> None:
    """Let the service show what `onsale reconcile` came to, where both share a directory."""
    if _join(directory, "reconcile") is None:
        return
    registry = CollectorRegistry()
    for name, what, value in (
        ("timestamp_seconds", "When `onsale reconcile` last ended, unix time.", time.time()),
        (
            "exit_code",
            "Of the last one: 0 clean, 1 drift or frozen, 2 cannot tell.",
            exit_code,
        ),
        ("drifts", "Drifts that the last one found.", drifts),
    ):
        gauge = Gauge(
            f"onsale_reconcile_{name}", what, multiprocess_mode="mostrecent", registry=registry
        )
        gauge.set(value)


def clear(directory: Path) -> None:
    """Remove what nobody counts in any more; a process that lives and counts there goes on.

    Nothing else in the directory is touched, nor is a file of somebody else's.
    """
    directory = directory.expanduser()
    for slot in {_slot_of(path) for path in _files(directory)}:
        try:
            descriptor = lock_slot(directory, slot)
            if descriptor is None:
                continue
            for path in (
                *(directory / f"{kind}_{slot}.db" for kind in _FILES),
                directory / f"{slot}.lock",
            ):
                path.unlink(missing_ok=True)
            os.close(descriptor)
        except OSError as error:
            log.warning("metrics not cleared", slot=slot, why=error.strerror or str(error))
    with contextlib.suppress(OSError):  # somebody counts there still, or never did
        directory.rmdir()


def _files(directory: Path) -> list[Path]:
    return [path for kind in _FILES for path in directory.glob(f"{kind}_*.db")]


def _slot_of(path: Path) -> str:
    return path.stem.rpartition("_")[2]


def _flaw(path: Path) -> str:
    """Return what keeps a file from being read, empty when nothing does."""
    try:
        with path.open("rb") as file:
            used = int.from_bytes(file.read(4), sys.byteorder, signed=True)
        if not 0 <= used <= path.stat().st_size:
            return "its first word is not its length"
        for key, *_ in MmapedDict.read_all_values_from_file(str(path)):  # type: ignore[no-untyped-call]
            json.loads(key)
    except Exception as error:  # whatever a power cut has left in there
        return str(error) or type(error).__name__
    return ""


def _join(directory: Path, role: str) -> Path | None:
    """Have what is counted from here on written to the directory; None where it cannot be."""
    try:
        directory = directory.expanduser().resolve()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        slot, _ = take_slot(directory, role)  # held until the process ends
        for kind in _FILES:
            _prepare(directory / f"{kind}_{slot}.db")
    except OSError as error:
        why = error.strerror or str(error)
        log.warning("metrics of this process alone", directory=str(directory), why=why)
        return None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    values.ValueClass = MultiProcessValue(process_identifier=lambda: slot)  # type: ignore[no-untyped-call]
    return directory


def _prepare(path: Path) -> None:
    """Make a file that can be counted in.

    Its room on disk is taken now: on a full disk, a first write to a page of a mapped file that
    has none kills the process. What a power cut has garbled is not worth a start that fails.
    """
    if path.exists() and (why := _flaw(path)):
        log.warning("metrics file dropped", file=str(path), why=why)
        path.unlink()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _FILE_BYTES)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)
