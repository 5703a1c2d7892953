"""Idempotency-Key in the scripts: what a key did is told again, and not done again."""

import json

import pytest

from tests.lua.harness import Item, Partition, outcomes

D = "0123456789abcdef"
OTHER = "fedcba9876543210"


def with_key(user: str, key: str, digest: str = D) -> Item:
    """Ask about event 1 under a key."""
    return 1, user, f"{key}/{digest}"


@pytest.fixture
def sold(partition: Partition) -> Partition:
    """Event 1 with one ticket, which `holder` booked under the key `h` at seq 3."""
    partition.sell(1, capacity=1)
    partition.book(with_key("holder", "h"))
    return partition


def details(partition: Partition) -> list[object]:
    """Return the details of all changes about users."""
    changes = [change for entry in partition.entries() for change in entry.changes]
    return [json.loads(c.details) if c.details else None for c in changes if c.user_id]


def test_a_key_is_kept_behind_the_state_and_in_the_change(sold: Partition) -> None:
    """With the digest, what it came to, and its seq."""
    sold.book(with_key("w", "k"))
    assert sold.users(1) == {
        "holder": f"booked 3 1 0 h/{D}/booked/3",
        "w": f"waiting 4 1 1 k/{D}/waiting/4",
    }
    assert details(sold) == [{"key": "h", "digest": D}, {"key": "k", "digest": D}]


def test_the_same_key_has_no_further_effect(sold: Partition) -> None:
    """The first outcome and seq, and the state now; also at the bound of what is not on record."""
    before = sold.stored_but_calls()
    again = sold.book(with_key("holder", "h"), unrecorded_max=0)
    assert again.items == [("REPLAYED", "3", "booked/booked/3/0")]
    assert sold.stored_but_calls() == before


def test_a_replay_tells_what_has_become_of_the_user(sold: Partition) -> None:
    """Booked then; promoted, cancelled or waiting now."""
    sold.book(with_key("w", "k"))
    assert sold.cancel(with_key("holder", "c")).items == [("CANCELLED", "5", "1")]
    assert sold.book(with_key("w", "k")).items == [("REPLAYED", "4", "waiting/booked/6/0")]
    sold.book((1, "holder"))
    assert sold.book(with_key("holder", "h")).items == [("REPLAYED", "3", "booked/waiting/7/1")]
    assert sold.cancel(with_key("holder", "c")).items == [
        ("REPLAYED", "5", "reassigned/waiting/7/1")
    ]
    assert details(sold)[2:4] == [{"key": "c", "digest": D, "reassigned": True}, None]


@pytest.mark.parametrize("script", ["book", "cancel"])
def test_a_key_of_another_request_is_refused(sold: Partition, script: str) -> None:
    """Whatever the operation: the digest tells, and nothing is done."""
    before = sold.stored_but_calls()
    reply = getattr(sold, script)(with_key("holder", "h", OTHER))
    assert reply.items == [("KEY_REUSED", "0", "0")]
    assert sold.stored_but_calls() == before


def test_a_key_belongs_to_event_and_user(sold: Partition) -> None:
    """Another user may use the same; a key that another's ends with is another key."""
    assert outcomes(sold.book(with_key("w", "h"))) == ["WAITING"]
    assert outcomes(sold.cancel(with_key("holder", "hh"))) == ["CANCELLED"]
    assert outcomes(sold.book(with_key("holder", "hhh"))) == ["WAITING"]


def test_what_changed_nothing_is_not_remembered(sold: Partition) -> None:
    """Already booked, not booked, refused: the key is free."""
    assert outcomes(sold.book(with_key("holder", "n"))) == ["ALREADY_BOOKED"]
    assert outcomes(sold.cancel(with_key("nobody", "n"))) == ["NOT_BOOKED"]
    assert outcomes(sold.book(with_key("late", "n"), unrecorded_max=0)) == ["RECORD_BEHIND"]
    assert sold.users(1) == {"holder": f"booked 3 1 0 h/{D}/booked/3"}
    assert outcomes(sold.cancel(with_key("holder", "n"))) == ["CANCELLED"]


def test_in_one_call_the_second_is_a_replay(sold: Partition) -> None:
    """Decided in order, on what the call itself has done."""
    reply = sold.book(with_key("w", "k"), with_key("w", "k"), with_key("w", "k", OTHER))
    assert reply.items == [
        ("WAITING", "4", "1"),
        ("REPLAYED", "4", "waiting/waiting/4/1"),
        ("KEY_REUSED", "0", "0"),
    ]
    reply = sold.cancel(with_key("w", "c"), with_key("w", "c"))
    assert reply.items[1] == ("REPLAYED", "5", "left/left_waiting_list/5/0")


def test_a_replay_in_a_cancelling_call_counts_who_has_gone(sold: Partition) -> None:
    """Its position is of after the promotion and the departure decided before it."""
    sold.cancel(with_key("holder", "c"))
    sold.book((1, "a"), (1, "b"), (1, "x"), (1, "holder"), (1, "last"))
    reply = sold.cancel((1, "a"), (1, "x"), (1, "last"), with_key("holder", "c"))
    assert reply.items[3] == ("REPLAYED", "4", "cancelled/waiting/8/1")
    assert sold.read((1, "holder")).items[0][7:10] == ("waiting", "8", "1")


def test_eight_are_kept(sold: Partition) -> None:
    """The ninth drops the oldest, whose key is free again."""
    for number in range(8):
        script = sold.book if number % 2 else sold.cancel
        script(with_key("holder", f"k{number}"))
    kept = sold.users(1)["holder"].split(" ")[4:]
    assert [entry.split("/")[0] for entry in kept] == [f"k{number}" for number in range(8)]
    assert outcomes(sold.book(with_key("holder", "k1"))) == ["REPLAYED"]
    assert outcomes(sold.cancel(with_key("holder", "h"))) == ["CANCELLED"]


def test_changes_without_a_key_and_promotions_keep_the_list(sold: Partition) -> None:
    """Whatever happens to the user, what the keys did stays known."""
    sold.book(with_key("w", "k"))
    sold.cancel((1, "holder"))
    assert sold.users(1)["w"] == f"booked 6 1 0 k/{D}/waiting/4"
    sold.cancel((1, "w"))
    assert sold.users(1)["w"] == f"cancelled 7 1 0 k/{D}/waiting/4"


def test_the_longest_keys_fit(sold: Partition) -> None:
    """Eight of 64 characters, in a call of 256 users with one each."""
    keys = [f"{number:_<64}" for number in range(9)]
    for number, key in enumerate(keys):
        (sold.book if number % 2 else sold.cancel)(with_key("holder", key))
    assert len(sold.users(1)["holder"].split(" ")[4:]) == 8
    reply = sold.book(*(with_key(f"{number:064d}", keys[0]) for number in range(256)))
    assert outcomes(reply)[-1] == "WAITING"
    assert len(sold.entries()[-1].changes) == 256
