"""Key names: stored data depends on them, so that a change here is a change of data."""

import pytest

from service import keys


def test_names_are_these() -> None:
    """As DESIGN section 3 spells them."""
    assert keys.partition_keys(0) == ("{p00}:meta", "{p00}:calls", "{p00}:outbox")
    assert keys.event_keys(7, 9007199254740991) == (
        "{p07}:event:9007199254740991",
        "{p07}:users:9007199254740991",
        "{p07}:waiting_list:9007199254740991",
        "{p07}:gaps:9007199254740991",
    )


@pytest.mark.parametrize("partition", [0, 1, 9, 10, 63, 99, 100, 1023])
def test_all_keys_of_a_partition_share_its_tag(partition: int) -> None:
    """One hash tag, so one cluster slot; no other partition has it."""
    tag = keys.tag(partition)
    names = [*keys.partition_keys(partition), *keys.event_keys(partition, 5)]
    assert {name[: name.index("}") + 1] for name in names} == {tag}
    assert len({keys.tag(n) for n in range(1024)}) == 1024
    assert keys.partition_pattern(partition) == f"{tag}:*"


def test_no_two_keys_are_the_same() -> None:
    """Of partitions, events and kinds of key."""
    names = [name for p in (0, 1, 11) for name in keys.partition_keys(p)]
    names += [name for p in (0, 1, 11) for e in (1, 11, 111) for name in keys.event_keys(p, e)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("event_id", "partitions", "partition"),
    [(1, 1, 0), (2**53 - 1, 1, 0), (17, 16, 1), (16, 16, 0), (2**53 - 1, 16, 15)],
)
def test_an_event_belongs_to_one_partition(event_id: int, partitions: int, partition: int) -> None:
    """event_id % partitions, exact for large ids."""
    assert keys.partition_of(event_id, partitions) == partition
