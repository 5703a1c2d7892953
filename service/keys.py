"""The only speller of Redis keys.

All keys of a partition carry its hash tag, so that they live in one cluster slot and one script
may touch all of them. Nothing else in the package builds or parses a key.
"""

from typing import NamedTuple


class EventKeys(NamedTuple):
    """The four keys of one event, in the order in which every script takes them."""

    event: str
    users: str
    waiting_list: str
    gaps: str


class PartitionKeys(NamedTuple):
    """The keys that a partition has once, whatever its number of events."""

    meta: str
    calls: str
    outbox: str


def partition_of(event_id: int, partitions: int) -> int:
    """Return the partition (0-based) that owns an event."""
    return event_id % partitions


def tag(partition: int) -> str:
    """Return the hash tag of a partition, braces included: `{p00}`."""
    return f"{{p{partition:02d}}}"


def partition_keys(partition: int) -> PartitionKeys:
    """Return the keys of a partition that do not belong to one event."""
    prefix = tag(partition)
    return PartitionKeys(f"{prefix}:meta", f"{prefix}:calls", f"{prefix}:outbox")


def watermark_channel(partition: int) -> str:
    """Return the channel on which a partition's watermark is told when it rises."""
    return f"{tag(partition)}:recorded"


def event_keys(partition: int, event_id: int) -> EventKeys:
    """Return the keys of one event."""
    prefix = tag(partition)
    return EventKeys(
        f"{prefix}:event:{event_id}",
        f"{prefix}:users:{event_id}",
        f"{prefix}:waiting_list:{event_id}",
        f"{prefix}:gaps:{event_id}",
    )


def events_key(partition: int) -> str:
    """Return the key of the index: the events that Redis may hold keys of."""
    return f"{tag(partition)}:events"


def scratch_key(partition: int) -> str:
    """Return a key that holds nothing: what may be done with keys is tried on it."""
    return f"{tag(partition)}:rights"


def one_of_each(partition: int) -> tuple[str, ...]:
    """Return a key of each kind; those of an event are of one that never is."""
    return (*partition_keys(partition), events_key(partition), *event_keys(partition, 0))


def partition_pattern(partition: int) -> str:
    """Return the SCAN pattern that finds every key of a partition."""
    return f"{tag(partition)}:*"


def event_pattern(partition: int) -> str:
    """Return the SCAN pattern that finds the first key of every event of a partition."""
    return f"{tag(partition)}:event:*"


def event_id_of(event_key: str) -> int | None:
    """Return the event whose first key this is, None for a key that no script could have made."""
    event_id = event_key.rpartition(":")[2]
    return int(event_id) if event_id.isdecimal() else None
