"""Bytes of Redis, turned into changes that may be off the record."""

from typing import Any

from service.room import CHANGE_BYTES, UnrecordedBounds, in_words, room_bytes, unrecorded_bounds
from service.settings import Settings


def made(**values: Any) -> Settings:
    """Return settings with 512 MiB for what is not on record and 128 MiB for cancellations."""
    return Settings.model_construct(**values)


def test_the_bytes_are_for_all_partitions_together() -> None:
    """A quarter each, rounded down, cancellations beyond bookings."""
    assert unrecorded_bounds(made()) == UnrecordedBounds(524_288, 655_360)
    assert unrecorded_bounds(made(partitions=4)) == UnrecordedBounds(131_072, 163_840)
    odd = made(partitions=3, unrecorded_bytes_max=10 * CHANGE_BYTES, cancel_reserve_bytes=0)
    assert unrecorded_bounds(odd) == UnrecordedBounds(3, 3)


def test_room_is_needed_for_the_tail_too() -> None:
    """256 MiB of recorded changes come on top."""
    assert room_bytes(made()) == (256 + 512 + 128) << 20


def test_the_bounds_in_words() -> None:
    """Bytes as they were set, changes as they are counted."""
    assert in_words(made()) == (
        "bookings stop at 512 MiB not on record (524288 changes), cancellations at 640 MiB (655360)"
    )
    assert "(131072 changes in each partition)" in in_words(made(partitions=4))
