"""The probe: refused exactly when a booking is, and what it says of the outbox and the bound."""

import pytest
import redis

from service import scripts
from tests.lua.harness import UNBOUNDED, Backend, Partition


def probed(partition: Partition, unrecorded_max: int = UNBOUNDED) -> list[str]:
    """Run probe.lua; return the words behind the header, or the refusal's word."""
    reply = partition.call("probe", [partition.keys.meta, partition.keys.outbox], [unrecorded_max])
    return reply[5:] if reply[0] == "OK" else reply[:1]


def test_a_partition_that_takes_bookings(partition: Partition) -> None:
    """It says so, with the watermark's seq, and writes nothing."""
    partition.sell(1, capacity=2)
    before = partition.client.hgetall(partition.keys.meta)
    assert probed(partition) == ["TAKES", "0"]
    assert partition.client.hgetall(partition.keys.meta) == before
    partition.client.hset(partition.keys.meta, "recorded", "2")
    assert probed(partition) == ["TAKES", "2"]


def test_the_bound_is_the_one_of_a_booking(partition: Partition) -> None:
    """At it a booking is refused, and the probe says so; below it neither."""
    partition.sell(1, capacity=2)  # two changes: the epoch, and the opening
    assert probed(partition, 2) == ["RECORD_BEHIND", "0"]
    assert partition.book((1, "a"), unrecorded_max=2).items[0][0] == "RECORD_BEHIND"
    assert probed(partition, 3) == ["TAKES", "0"]
    assert partition.book((1, "a"), unrecorded_max=3).items[0][0] == "BOOKED"


@pytest.mark.parametrize("entry_id", ["1-3", "1-1000", "2-0", "1795340000000-0"])
@pytest.mark.parametrize("is_gone", [False, True])
def test_an_outbox_that_refuses_the_next_entry(
    partition: Partition, entry_id: str, is_gone: bool
) -> None:
    """Also where the stray entry was removed: Redis remembers its id."""
    partition.sell(1, capacity=2)
    partition.client.xadd(partition.keys.outbox, {"a": "b"}, entry_id)
    if is_gone:
        partition.client.xdel(partition.keys.outbox, entry_id)
    assert probed(partition) == ["OUTBOX_AHEAD", "0"]
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        partition.book((1, "a"))


def test_an_outbox_that_is_gone_refuses_nothing(partition: Partition) -> None:
    """Its hole is the writer's to find."""
    partition.client.delete(partition.keys.outbox)
    assert probed(partition) == ["TAKES", "0"]


def test_a_partition_that_is_closed(partition: Partition) -> None:
    """The fence refuses it like any other call."""
    partition.close("2 token", "1")
    assert probed(partition) == ["FENCED"]
    partition.client.delete(partition.keys.meta)
    assert probed(partition) == ["UNINIT"]


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [("maxmemory", "1mb", "OOM"), ("min-replicas-to-write", "1", "NOREPLICAS")],
)
def test_what_redis_refuses_of_a_booking(
    empty_valkey: str, setting: str, value: str, word: str
) -> None:
    """The probe is refused in the same words, though it writes nothing; a read is not."""
    partition = Partition(Backend.valkey(empty_valkey)).open()
    partition.sell(1, capacity=2)
    usual = partition.client.config_get(setting)[setting]
    partition.client.config_set(setting, value)
    try:
        for call in (lambda: probed(partition), lambda: partition.book((1, "a"))):
            with pytest.raises(redis.RedisError) as caught:
                call()
            assert word in f"{type(caught.value).__name__} {caught.value}".upper().replace(
                "NOT ENOUGH GOOD", "NOREPLICAS"
            ).replace("OUTOFMEMORY", "OOM")
        assert partition.read((1, "a")).word == "OK"
    finally:
        partition.client.config_set(setting, usual)


def test_the_probe_may_write() -> None:
    """Declared as one that writes nothing, it would run where Redis refuses bookings."""
    assert scripts.source("probe").splitlines()[0] == "#!lua"
