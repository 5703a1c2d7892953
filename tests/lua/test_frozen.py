"""Frozen events: nobody books or cancels, everybody may look; an epoch says which they are."""

from service.keys import event_keys
from tests.lua.harness import Partition, outcomes


def test_nobody_books_or_cancels_at_a_frozen_event(partition: Partition) -> None:
    """FROZEN for strangers, holders and waiters alike; nothing is written but the call."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"), (1, "b"))
    partition.open(2, frozen=[1])
    before = partition.stored_but_calls()
    reply = partition.book((1, "a"), (1, "b"), (1, "c"))
    assert reply.items == [("FROZEN", "0", "0")] * 3
    assert outcomes(partition.cancel((1, "a"), (1, "b"), (1, "c"))) == ["FROZEN"] * 3
    assert partition.stored_but_calls() == before


def test_others_go_on_in_the_same_call(partition: Partition) -> None:
    """Also an event whose id begins or ends like the frozen one's."""
    for event_id in (1, 2, 12, 121):
        partition.sell(event_id, capacity=1)
    partition.open(2, frozen=[12, 999])
    reply = partition.book((1, "a"), (12, "a"), (2, "a"), (121, "a"), (5, "a"))
    assert outcomes(reply) == ["BOOKED", "FROZEN", "BOOKED", "BOOKED", "NO_EVENT"]
    assert partition.meta()["frozen"] == "12 999"


def test_a_frozen_event_is_read_and_loaded(partition: Partition) -> None:
    """What it has sold stays to be seen; one that comes from the record is frozen at once."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"))
    partition.open(2, frozen=[1, 2])
    assert partition.read((1, "a")).items[0][0] == "FOUND"
    partition.load_whole(2, capacity=2, available=1, users=[("x", "booked")])
    assert outcomes(partition.book((2, "y"))) == ["FROZEN"]


def test_nothing_of_a_frozen_event_is_told_as_recorded(partition: Partition) -> None:
    """What lies below the watermark may be a dead letter (PROTOCOL, rule 21)."""
    partition.sell(1, capacity=1)
    partition.sell(2, capacity=1)
    partition.book((1, "a"), (2, "a"))
    partition.raise_watermark(5)
    assert [words[10] for words in partition.read((1, "a"), (2, "a")).items] == ["1", "1"]
    partition.open(2, frozen=[1])
    assert [words[10] for words in partition.read((1, "a"), (2, "a")).items] == ["0", "1"]


def test_the_next_epoch_says_anew_who_is_frozen(partition: Partition) -> None:
    """One that is frozen no more is gone from Redis, whole: it comes back from the record."""
    partition.sell(1, capacity=1)
    partition.sell(2, capacity=1)
    partition.book((1, "a"), (1, "b"), (1, "c"))
    partition.cancel((1, "b"))
    partition.open(2, frozen=[1])
    partition.open(3, frozen=[2], thawed=[1])
    keys = event_keys(partition.number, 1)
    assert partition.client.exists(*keys) == 0
    assert outcomes(partition.book((1, "a"), (2, "a"))) == ["NO_EVENT", "FROZEN"]
    partition.open(4, thawed=[2])
    assert "frozen" not in partition.meta()
