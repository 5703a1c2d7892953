"""book.lua: tickets in order of asking, then the waiting list."""

import pytest

from service import outbox
from service.keys import event_keys
from tests.lua.harness import Partition, outcomes

USER_IDS = (
    "0",
    "1",
    "01",
    str(2**53 - 1),
    "-",
    "--",
    "a" * 64,
    "A.b_c~d@e:f+g|h=i-j",
    "1e400",
    "nan",
    "nil",
    "__index",
    "%d+",
)


def test_bookings_end_at_capacity(partition: Partition) -> None:
    """Of five who ask for two tickets two are booked, however the calls are cut."""
    partition.sell(1, capacity=2)
    assert outcomes(partition.book((1, "a"))) == ["BOOKED"]
    reply = partition.book(*((1, user) for user in "bcde"))
    assert outcomes(reply) == ["BOOKED", "WAITING", "WAITING", "WAITING"]
    states = [state for state, _ in partition.states(1).values()]
    assert (states.count("booked"), states.count("waiting")) == (2, 3)
    assert partition.counters(1) == (0, 3)


def test_the_last_ticket_goes_to_one_of_a_batch(partition: Partition) -> None:
    """256 who ask in one call for one ticket: the first has it, the others wait in their order."""
    partition.sell(1, capacity=1)
    users = [f"u{i}" for i in range(256)]
    reply = partition.book(*((1, user) for user in users))
    assert outcomes(reply) == ["BOOKED"] + ["WAITING"] * 255
    assert [int(position) for _, _, position in reply.items] == list(range(256))
    assert partition.waiters(1) == users[1:]
    assert partition.elements(1) == [f"{turn} u{turn}" for turn in range(1, 256)]


def test_a_booking_says_its_seq(partition: Partition) -> None:
    """Each change's seq is in the reply, in the user's state and in the outbox, and is the same."""
    partition.sell(1, capacity=1)
    reply = partition.book((1, "a"), (1, "b"))
    assert reply.items == [("BOOKED", "3", "0"), ("WAITING", "4", "1")]
    assert partition.users(1) == {"a": "booked 3 1 0", "b": "waiting 4 1 1"}
    assert partition.changes()[2:] == [(3, "booked", 1, "a"), (4, "waiting", 1, "b")]
    assert partition.meta()["seq"] == reply.seq == "4"


def test_a_call_writes_one_entry(partition: Partition) -> None:
    """Changes of one call, also of several events, share an entry; its id is epoch and last seq."""
    partition.sell(1, capacity=1)
    partition.sell(2, capacity=1)
    reply = partition.book((1, "a"), (2, "b"), (1, "b"))
    entry = partition.entries()[-1]
    assert entry.last == (1, 6)
    assert entry.first == 4
    assert [(c.kind, c.event_id, c.user_id) for c in entry.changes] == [
        ("booked", 1, "a"),
        ("booked", 2, "b"),
        ("waiting", 1, "b"),
    ]
    assert {str(change.at) for change in entry.changes} == {reply.clock}
    assert partition.event(1)["updated_at"] == partition.event(2)["updated_at"] == reply.clock


def test_a_repeat_is_the_same_booking(partition: Partition) -> None:
    """Asking again says the seq of the first time, and changes nothing but the remembered call."""
    partition.sell(1, capacity=1)
    first = partition.book((1, "a"), (1, "b"), (1, "c"))
    before = partition.stored_but_calls()
    again = partition.book((1, "a"), (1, "b"), (1, "c"))
    assert outcomes(again) == ["ALREADY_BOOKED", "ALREADY_WAITING", "ALREADY_WAITING"]
    assert [item[1:] for item in again.items] == [item[1:] for item in first.items]
    assert partition.stored_but_calls() == before


@pytest.mark.parametrize("capacity", [1, 2])
def test_one_user_twice_in_a_batch_has_one_booking(partition: Partition, capacity: int) -> None:
    """The second item of one call sees the first, booked or waiting."""
    partition.sell(1, capacity)
    partition.book((1, "first"))
    reply = partition.book((1, "a"), (1, "a"), (1, "b"))
    new = {1: "WAITING", 2: "BOOKED"}[capacity]
    assert outcomes(reply)[:2] == [new, f"ALREADY_{new}"]
    assert reply.items[0][1:] == reply.items[1][1:]
    assert len(partition.states(1)) == 3
    assert partition.meta()["seq"] == "5"


def test_a_waiter_who_repeats_behind_a_joiner_keeps_the_place(partition: Partition) -> None:
    """In one call: a newcomer joins, and one who waits already hears the old position."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"), (1, "b"), (1, "c"))
    reply = partition.book((1, "d"), (1, "c"), (1, "d"), (1, "b"))
    assert [(outcome, position) for outcome, _, position in reply.items] == [
        ("WAITING", "3"),
        ("ALREADY_WAITING", "2"),
        ("ALREADY_WAITING", "3"),
        ("ALREADY_WAITING", "1"),
    ]


def test_several_events_of_a_batch_keep_apart(partition: Partition) -> None:
    """Tickets, users and lists of one event are not those of another in the same call."""
    partition.sell(1, capacity=1)
    partition.sell(2, capacity=2)
    reply = partition.book((1, "a"), (2, "a"), (1, "b"), (2, "b"), (2, "c"))
    assert outcomes(reply) == ["BOOKED", "BOOKED", "WAITING", "BOOKED", "WAITING"]
    assert (partition.waiters(1), partition.waiters(2)) == (["b"], ["c"])
    assert (partition.counters(1), partition.counters(2)) == ((0, 1), (0, 1))


def test_an_unknown_event_is_no_event(partition: Partition) -> None:
    """It gets no key, and its neighbours in the call are served."""
    partition.sell(1, capacity=1)
    reply = partition.book((9, "a"), (1, "a"), (9, "a"))
    assert reply.items == [("NO_EVENT", "0", "0"), ("BOOKED", "3", "0"), ("NO_EVENT", "0", "0")]
    assert not partition.client.exists(*event_keys(partition.number, 9))


def test_nobody_overtakes_the_waiting_list(partition: Partition) -> None:
    """With a ticket free and somebody waiting (a capacity that grew), a newcomer waits behind."""
    partition.load_whole(1, 3, 1, [("a", "booked"), ("b", "booked"), ("c", "waiting")])
    assert partition.book((1, "d")).items == [("WAITING", "2", "2")]
    assert partition.waiters(1) == ["c", "d"]
    assert partition.counters(1) == (1, 2)


def test_who_cancelled_or_left_may_ask_again(partition: Partition) -> None:
    """A former state is no obstacle: a new booking with a new seq."""
    partition.load_whole(1, 3, 3, [("a", "cancelled"), ("b", "left_waiting_list")])
    assert partition.book((1, "a"), (1, "b")).items == [("BOOKED", "2", "0"), ("BOOKED", "3", "0")]


def test_a_call_that_changes_nothing_writes_no_entry(partition: Partition) -> None:
    """Its reply is remembered all the same."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"))
    before = partition.stored_but_calls()
    reply = partition.book((1, "a"), (9, "b"))
    assert reply.seq == "3"
    assert partition.stored_but_calls() == before
    assert partition.calls()["w1:book"].split(" ")[0] == "2"
    assert partition.calls()["w1:book"].endswith("ALREADY_BOOKED 3 0 NO_EVENT 0 0")


@pytest.mark.parametrize("user", USER_IDS)
def test_user_ids_are_kept_as_they_are(partition: Partition, user: str) -> None:
    """Any allowed id is stored, put in the list, promoted and sent to the record unchanged."""
    partition.sell(1, capacity=1)
    partition.book((1, "holder"), (1, user))
    assert partition.elements(1) == [f"1 {user}"]
    partition.cancel((1, "holder"))
    assert partition.users(1)[user] == "booked 6 1 0"
    fields = partition.client.xrange(partition.keys.outbox)[-1][1]
    assert fields["changes"] == f"cancelled 1 holder\npromoted 1 {user}"


@pytest.mark.parametrize("user", [u for u in USER_IDS if "%" not in u])
def test_the_record_can_read_every_user_id(partition: Partition, user: str) -> None:
    """What the scripts write of any allowed user the codec reads back: nobody stops the writer."""
    partition.sell(1, capacity=1)
    partition.book((1, user))
    assert partition.changes()[-1] == (3, "booked", 1, user)


@pytest.mark.parametrize("event_id", [2**31, 2**53 - 2, 2**53 - 1])
def test_large_event_ids_keep_all_digits(partition: Partition, event_id: int) -> None:
    """An id near 2^53 is no neighbour of the next one."""
    partition.sell(event_id, capacity=1)
    partition.book((event_id, "a"))
    assert partition.changes()[-1] == (3, "booked", event_id, "a")
    assert partition.users(event_id) == {"a": "booked 3 1 0"}


@pytest.mark.parametrize("seq", [2**31 - 2, 10**15 - 2, 2**53 - 6])
def test_large_seqs_keep_all_digits(partition: Partition, seq: int) -> None:
    """Seq counts on by one beyond 2^31, 1e15 and up to 2^53, in every place where it is kept."""
    partition.set_seq(seq)
    partition.sell(1, capacity=1)
    booked = partition.book((1, "a"), (1, "b"))
    cancelled = partition.cancel((1, "a"))
    assert [item[1] for item in booked.items] == [str(seq + 2), str(seq + 3)]
    assert cancelled.items == [("CANCELLED", str(seq + 4), "1")]
    assert partition.meta()["seq"] == cancelled.seq == str(seq + 5)
    assert partition.states(1) == {"a": ("cancelled", seq + 4), "b": ("booked", seq + 5)}
    assert [change[0] for change in partition.changes()[1:]] == list(range(seq + 1, seq + 6))
    assert partition.read((1, "b")).items[0][8] == str(seq + 5)
    assert partition.entries()[-1].last == (1, seq + 5)


def test_large_turns_keep_all_digits(partition: Partition) -> None:
    """A waiting list that has seen 1e15 people still tells places apart."""
    turn = 10**15
    partition.sell(1, capacity=1)
    partition.client.hset(event_keys(partition.number, 1).event, "next_turn", str(turn))
    partition.book(*((1, user) for user in "abcd"))
    assert partition.elements(1) == [f"{turn} b", f"{turn + 1} c", f"{turn + 2} d"]
    partition.cancel((1, "c"))
    assert partition.gaps(1) == [turn + 1]
    assert partition.book((1, "d")).items[0][2] == "2"
    partition.cancel((1, "a"), (1, "b"))
    assert partition.states(1)["d"][0] == "booked"


def test_fields_of_an_entry_are_the_codecs(partition: Partition) -> None:
    """The scripts write the codec's fields in its order, and its version."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"))
    for _, fields in partition.client.xrange(partition.keys.outbox):
        assert tuple(fields) == outbox.FIELDS
        assert fields["v"] == outbox.VERSION
