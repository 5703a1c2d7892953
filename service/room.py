"""How much of Redis's memory may hold what is not on record yet: bytes turned into changes.

Pure arithmetic. Invariant: as many changes as the bound says, of whatever kind about users, take
less memory than the bytes that it was made from.
"""

from dataclasses import dataclass

from service.settings import Settings

CHANGE_BYTES = 1_024
"""What one change that is not on record is counted as.

Measured on Valkey 9.1 (`docs/runbook.md` has the numbers): 353 bytes at most for an entry of one
change, the user's state and a place in the waiting list with ids of 64 characters, 600 with a key.
The rest is margin: for events with one user each (890), for other allocators, for a long name.
"""


@dataclass(frozen=True, slots=True)
class UnrecordedBounds:
    """How many changes of one partition may be off the record.

    At `changes_max` bookings and openings are refused, at `cancel_changes_max` cancellations too.
    """

    changes_max: int
    cancel_changes_max: int


def unrecorded_bounds(settings: Settings) -> UnrecordedBounds:
    """Return the bounds of each partition: the bytes are for all partitions together."""
    return UnrecordedBounds(
        settings.unrecorded_bytes_max // CHANGE_BYTES // settings.partitions,
        _cancel_bytes_max(settings) // CHANGE_BYTES // settings.partitions,
    )


def room_bytes(settings: Settings) -> int:
    """Return what Redis has to have room for beside the events: what is not on record, the tail."""
    return settings.retained_bytes + _cancel_bytes_max(settings)


def in_words(settings: Settings) -> str:
    """Return both bounds for a person, in bytes and changes."""
    bounds = unrecorded_bounds(settings)
    each = " in each partition" if settings.partitions > 1 else ""
    return (
        f"bookings stop at {_mebibytes(settings.unrecorded_bytes_max)} not on record"
        f" ({bounds.changes_max} changes{each}),"
        f" cancellations at {_mebibytes(_cancel_bytes_max(settings))}"
        f" ({bounds.cancel_changes_max})"
    )


def _cancel_bytes_max(settings: Settings) -> int:
    return settings.unrecorded_bytes_max + settings.cancel_reserve_bytes


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.10g} MiB"
