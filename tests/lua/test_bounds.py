"""The largest calls, and a memory that is full."""

from collections.abc import Iterator

import pytest
from redis.exceptions import OutOfMemoryError

from tests.lua.harness import Backend, Partition, outcomes

MOST = 256


def test_a_call_takes_256_items_of_256_events(partition: Partition) -> None:
    """Open, book, cancel and read: each in one call, one entry each."""
    events = [2**53 - 1 - i for i in range(MOST)]
    opened = partition.open_events(*((event_id, 1, "Name", "{}") for event_id in events))
    booked = partition.book(*((event_id, f"u{event_id}") for event_id in events))
    found = partition.read(*((event_id, f"u{event_id}") for event_id in events))
    cancelled = partition.cancel(*((event_id, f"u{event_id}") for event_id in events))
    assert outcomes(opened) == ["OPENED"] * MOST
    assert outcomes(booked) == ["BOOKED"] * MOST
    assert [item[2] for item in found.items] == ["0"] * MOST
    assert outcomes(cancelled) == ["CANCELLED"] * MOST
    assert [len(entry.changes) for entry in partition.entries()] == [1, MOST, MOST, MOST]
    assert partition.meta()["seq"] == str(1 + 3 * MOST)


def test_a_call_may_promote_256(partition: Partition) -> None:
    """256 tickets go on to 256 waiters in one entry of 512 changes, users of 64 characters."""
    users = [f"{i:064d}" for i in range(2 * MOST)]
    partition.sell(1, capacity=MOST)
    for at in (0, MOST):
        partition.book(*((1, user) for user in users[at : at + MOST]))
    reply = partition.cancel(*((1, user) for user in users[:MOST]))
    assert [item[2] for item in reply.items] == ["1"] * MOST
    assert len(partition.entries()[-1].changes) == 2 * MOST
    states = partition.states(1)
    assert [states[user][0] for user in users] == ["cancelled"] * MOST + ["booked"] * MOST
    assert partition.elements(1) == []


def test_a_call_may_empty_a_waiting_list_from_behind(partition: Partition) -> None:
    """256 leave in one call, last first."""
    users = [f"u{i}" for i in range(MOST)]
    partition.sell(1, capacity=1)
    partition.book((1, "holder"))
    partition.book(*((1, user) for user in users))
    reply = partition.cancel(*((1, user) for user in reversed(users)))
    assert outcomes(reply) == ["LEFT"] * MOST
    assert partition.elements(1) == []
    assert partition.gaps(1) == []
    assert partition.counters(1) == (0, 0)


@pytest.fixture
def full(empty_valkey: str) -> Iterator[Partition]:
    """A partition with event 1, sold out, on a Valkey whose memory is full."""
    partition = Partition(Backend.valkey(empty_valkey)).open()
    partition.sell(1, capacity=1)
    partition.book((1, "a"), (1, "b"))
    held = partition.client.config_get("maxmemory")["maxmemory"]
    partition.client.config_set("maxmemory", "1")
    try:
        yield partition
    finally:
        partition.client.config_set("maxmemory", held)


def test_a_full_memory_refuses_before_anything_is_written(full: Partition) -> None:
    """Changing scripts do not begin, so that none ends in the middle."""
    before = full.stored()
    for call in (
        lambda: full.book((1, "c")),
        lambda: full.cancel((1, "a")),
        lambda: full.open_events((2, 1, "Name", "{}")),
        lambda: full.load("begin", 2, "token", 0),
        full.forget_callers,
    ):
        with pytest.raises(OutOfMemoryError):
            call()
    assert full.stored() == before


def test_a_full_memory_still_takes_the_watermark(full: Partition) -> None:
    """Without it nothing could be trimmed, and the memory would stay full."""
    assert outcomes(full.raise_watermark(4)) == ["RAISED"]
    assert full.meta()["recorded"] == "4"


def test_a_full_memory_still_reads(full: Partition) -> None:
    """Status goes on being served."""
    assert full.read((1, "b")).items[0][7:10] == ("waiting", "4", "1")


def test_a_full_memory_does_not_stop_a_handshake(full: Partition) -> None:
    """Otherwise a restart with a full memory would keep the sale closed."""
    full.open(2)
    assert full.meta()["open"] == "1"
    assert full.read((1, "a")).epoch == "2"
