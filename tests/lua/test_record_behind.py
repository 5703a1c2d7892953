"""The bound of what is not on record: who is refused at it, who is not, and what it costs."""

from collections.abc import Sequence

import pytest

from service.room import CHANGE_BYTES
from tests.lua.harness import Backend, Mutation, Partition, outcomes

MOST = 10
LONG = "u{:063d}"


@pytest.fixture
def behind(partition: Partition) -> Partition:
    """Ten changes that are not on record: 1 epoch_began, 2 opened with 2 tickets, 8 users.

    u0 and u1 are booked, u2 to u7 wait.
    """
    partition.sell(1, capacity=2)
    partition.book(*((1, f"u{i}") for i in range(8)))
    assert partition.meta()["seq"] == str(MOST)
    return partition


def test_at_the_bound_bookings_are_refused(behind: Partition) -> None:
    """Nothing is written but the reply that is remembered, and below the bound all is as ever."""
    before = behind.stored_but_calls()
    refused = behind.book((1, "new"), (1, "other"), unrecorded_max=MOST)
    assert refused.items == [("RECORD_BEHIND", "0", "0")] * 2
    assert behind.stored_but_calls() == before
    assert outcomes(behind.book((1, "new"), unrecorded_max=MOST + 1)) == ["WAITING"]


def test_the_bound_is_met_within_a_call(behind: Partition) -> None:
    """The first three find room; whoever comes behind them in the same call does not."""
    users = [(1, f"n{i}") for i in range(5)]
    reply = behind.book(*users, unrecorded_max=MOST + 3)
    assert outcomes(reply) == ["WAITING"] * 3 + ["RECORD_BEHIND"] * 2
    assert behind.meta()["seq"] == str(MOST + 3)


def test_at_the_bound_what_changes_nothing_is_answered(behind: Partition) -> None:
    """Repeats, reads, cancellations of nothing, unknown events and ids that are taken."""
    before = behind.stored_but_calls()
    repeated = behind.book((1, "u0"), (1, "u3"), (9, "u0"), unrecorded_max=0)
    assert outcomes(repeated) == ["ALREADY_BOOKED", "ALREADY_WAITING", "NO_EVENT"]
    assert outcomes(behind.cancel((1, "x"), (9, "x"), unrecorded_max=0)) == [
        "NOT_BOOKED",
        "NO_EVENT",
    ]
    assert behind.read((1, "u3")).items[0][7:10] == ("waiting", "6", "2")
    opened = behind.open_events((1, 5, "Name", "{}"), (2, 5, "Name", "{}"), unrecorded_max=MOST)
    assert outcomes(opened) == ["EXISTS", "RECORD_BEHIND"]
    assert behind.stored_but_calls() == before


def test_a_cancellation_that_is_let_through_promotes(behind: Partition) -> None:
    """One change below the bound it takes two; the next is refused, whether it holds or waits."""
    reply = behind.cancel((1, "u0"), (1, "u1"), (1, "u5"), unrecorded_max=MOST + 1)
    assert [item[0::2] for item in reply.items] == [
        ("CANCELLED", "1"),
        ("RECORD_BEHIND", "0"),
        ("RECORD_BEHIND", "0"),
    ]
    assert behind.states(1)["u2"] == ("booked", MOST + 2)
    assert behind.counters(1) == (0, 5)


def test_what_is_on_record_does_not_count(behind: Partition) -> None:
    """The watermark opens the way again, change by change; in a later epoch as well."""
    behind.raise_watermark(MOST - 1)
    reply = behind.book((1, "a"), (1, "b"), (1, "c"), unrecorded_max=3)
    assert outcomes(reply) == ["WAITING", "WAITING", "RECORD_BEHIND"]
    behind.open(2)  # its epoch_began is a change as well
    assert outcomes(behind.book((1, "c"), unrecorded_max=4)) == ["RECORD_BEHIND"]
    behind.raise_watermark(MOST + 1)
    assert outcomes(behind.book((1, "c"), unrecorded_max=4)) == ["WAITING"]


def test_a_refusal_is_remembered_like_every_reply(behind: Partition) -> None:
    """The same number gets the same answer, though there is room by now."""
    first = behind.book((1, "new"), number=100, unrecorded_max=MOST)
    again = behind.book((1, "new"), number=100)
    assert outcomes(first) == outcomes(again) == ["RECORD_BEHIND"]


def crowd(partition: Partition, unrecorded_max: int, calls: int) -> Sequence[str]:
    """Book with ids of 64 characters, one per call, for one ticket; return the last outcomes."""
    partition.sell(1, capacity=1)
    for number in range(calls):
        last = partition.book((1, LONG.format(number)), unrecorded_max=unrecorded_max)
    return outcomes(last)


def grown(url: str, unrecorded_max: int, mutation: Mutation | None = None) -> int:
    """Return how many bytes Valkey has grown by, and could not go on growing, under a crowd."""
    partition = Partition(Backend.valkey(url), mutation).open()
    partition.client.ping()
    before = partition.client.info("memory")["used_memory"]
    ended = crowd(partition, unrecorded_max, calls=3 * unrecorded_max)
    assert mutation or ended == ["RECORD_BEHIND"]
    return int(partition.client.info("memory")["used_memory"] - before)


CHANGES = 2_000


def test_the_memory_stays_within_the_prediction(empty_valkey: str) -> None:
    """One change per entry, the longest ids, everybody waits: what it takes is below the bytes."""
    assert grown(empty_valkey, CHANGES) < CHANGES * CHANGE_BYTES


def test_without_the_check_the_memory_grows_on(empty_valkey: str) -> None:
    """Negative control: three times the changes take more than the bytes of one."""
    broken = Mutation("book", "seq - recorded >= unrecorded_max", "false")
    held = grown(empty_valkey, CHANGES)
    assert grown(empty_valkey, CHANGES, broken) > 2 * held
