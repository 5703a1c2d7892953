"""What the scripts do for those who wait for the record."""

import pytest

from service.keys import watermark_channel
from service.outbox import AWAITED, FIELDS
from tests.lua.harness import Partition


def fields(partition: Partition) -> list[tuple[str, ...]]:
    """Return the names of each outbox entry's fields."""
    return [tuple(found) for _, found in partition.client.xrange(partition.keys.outbox)]


def test_an_entry_says_whether_somebody_waits_for_it(partition: Partition) -> None:
    """One field more, 1, and only then; the changes are the same."""
    partition.sell(1, capacity=2)
    partition.book((1, "a"), awaited=1)
    partition.book((1, "b"))
    partition.cancel((1, "a"), awaited=1)
    partition.open_events((2, 1, "Name", "{}"), awaited=1)
    awaited = (*FIELDS, AWAITED)
    assert fields(partition) == [FIELDS, FIELDS, awaited, FIELDS, awaited, awaited]
    values = [found.get(AWAITED) for _, found in partition.client.xrange(partition.keys.outbox)]
    assert values == [None, None, "1", None, "1", "1"]
    assert [kind for _, kind, _, _ in partition.changes()] == [
        "epoch_began",
        "opened",
        "booked",
        "booked",
        "cancelled",
        "opened",
    ]


def test_nothing_is_appended_for_a_repeat_that_waits(partition: Partition) -> None:
    """A booking that stands is waited for as it is."""
    partition.sell(1, capacity=2)
    partition.book((1, "a"))
    before = fields(partition)
    partition.book((1, "a"), awaited=1)
    assert fields(partition) == before


def test_a_watermark_that_rises_is_told(partition: Partition) -> None:
    """Epoch and seq, once for each rise, on the partition's own channel."""
    partition.open(7)
    with partition.client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.ssubscribe(watermark_channel(partition.number))
        assert heard.get_message(timeout=1) is None
        for seq in (4, 4, 3, 5):
            partition.raise_watermark(seq)
        told = [message for _ in range(3) if (message := heard.get_message(timeout=0.2))]
    assert [message["data"] for message in told] == ["7 4", "7 5"]


@pytest.mark.parametrize(("watermark", "recorded"), [(2, "0"), (3, "1"), (4, "1")])
def test_a_read_compares_a_state_with_the_watermark(
    partition: Partition, watermark: int, recorded: str
) -> None:
    """At or below it a state is on record; the next epoch inherits the watermark and the answer."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"))
    partition.raise_watermark(watermark)
    assert partition.read((1, "a")).items[0][7:] == ("booked", "3", "0", recorded)
    partition.open(partition.epoch + 1)
    assert partition.read((1, "a")).items[0][7:] == ("booked", "3", "0", recorded)
