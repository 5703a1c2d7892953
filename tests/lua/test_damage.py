"""A script that fails after its entry: the partition is closed in the same step, R stands still."""

from collections.abc import Callable

import pytest
from redis.exceptions import ResponseError

from service.keys import event_keys
from tests.lua.harness import Partition, outcomes

Break = Callable[[Partition], None]


def _wrong_type(key: str) -> Break:
    def meddle(partition: Partition) -> None:
        name = getattr(event_keys(partition.number, 1), key)
        partition.client.delete(name)
        partition.client.set(name, "meddled")

    return meddle


CALLS: dict[str, tuple[Break, Callable[[Partition], object]]] = {
    "join": (_wrong_type("waiting_list"), lambda p: p.book((1, "c"))),
    "leave": (_wrong_type("gaps"), lambda p: p.cancel((1, "b"))),
}


@pytest.fixture
def sold_out(partition: Partition) -> Partition:
    """A partition whose event 1 is sold out to a; b and d wait."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"), (1, "b"), (1, "d"))
    return partition


@pytest.mark.parametrize("name", ["join", "leave"])
def test_a_write_that_fails_after_the_entry_closes_the_partition(
    sold_out: Partition, name: str
) -> None:
    """The reply says so, meta says why, and the entry stands alone above seq."""
    meddle, call = CALLS[name]
    before = sold_out.meta()
    meddle(sold_out)
    with pytest.raises(ResponseError, match=r"^DAMAGED WRONGTYPE"):
        call(sold_out)
    meta = sold_out.meta()
    assert meta.pop("damaged").startswith("WRONGTYPE")
    assert meta == {**before, "open": "0"}
    assert sold_out.entries()[-1].first == int(before["seq"]) + 1
    assert sold_out.read((1, "b")).word == "FENCED"


def test_an_entry_that_is_refused_changes_nothing(sold_out: Partition) -> None:
    """An id that lies below another in the outbox: the error comes before the first write."""
    sold_out.client.xadd(sold_out.keys.outbox, {"a": "b"}, id="9-9")
    before = sold_out.stored()
    with pytest.raises(ResponseError, match="equal or smaller"):
        sold_out.book((1, "c"))
    assert sold_out.stored() == before


def test_close_tells_the_damage_and_an_epoch_ends_it(sold_out: Partition) -> None:
    """What a script left stands until the next epoch begins."""
    _wrong_type("waiting_list")(sold_out)
    with pytest.raises(ResponseError):
        sold_out.book((1, "c"))
    closed = sold_out.close("2 mine", "1")
    assert closed[0] == "CLOSED"
    assert closed[6].startswith("WRONGTYPE")
    sold_out.client.delete(sold_out.keys.outbox)
    assert sold_out.begin_epoch("2 mine", 2, 9, 1, (1, 9)) == ["BEGUN"]
    assert "damaged" not in sold_out.meta()


def test_an_epoch_that_was_begun_halfway_is_begun(partition: Partition) -> None:
    """An attempt that failed behind its entry is carried on: the entry is there once."""
    partition.sell(1, capacity=1)
    assert partition.close("2 mine", "1")[0] == "CLOSED"
    partition.client.xadd(
        partition.keys.outbox,
        {"v": "2", "at": "1", "first": "3", "changes": 'epoch_began - - {"beginning":2}'},
        id="2-3",
    )
    assert partition.begin_epoch("2 mine", 2, 2, 1, (1, 2)) == ["BEGUN"]
    assert [entry.last.entry_id for entry in partition.entries()] == ["1-1", "1-2", "2-3"]
    partition.shas, partition.epoch = partition.backend.load(2), 2
    assert outcomes(partition.book((1, "a"))) == ["BOOKED"]
