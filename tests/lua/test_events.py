"""open_event.lua, load_event.lua and read.lua: events that come, and how they look."""

import pytest

from service.keys import event_keys
from tests.lua.harness import Partition, outcomes

TWO_SECONDS = 2_000_000


def test_an_opened_event_can_be_booked(partition: Partition) -> None:
    """It has all its tickets, nobody waits, and both its times are the opening's."""
    reply = partition.open_events((1, 5, "A name with spaces, ü and %s", '{"name":"x"}'))
    assert reply.items == [("OPENED", "2", reply.clock)]
    assert partition.event(1) == {
        "capacity": "5",
        "available": "5",
        "waiting": "0",
        "next_turn": "1",
        "name": "A name with spaces, ü and %s",
        "created_at": reply.clock,
        "updated_at": reply.clock,
    }
    assert outcomes(partition.book((1, "a"))) == ["BOOKED"]


def test_an_opening_carries_its_details(partition: Partition) -> None:
    """Spaces in the JSON come through to the codec, times too."""
    details = '{"name": "A  name - with | all", "totalTickets": 5}'
    reply = partition.open_events((2**53 - 1, 5, "n", details))
    change = partition.entries()[-1].changes[0]
    assert (change.kind, change.event_id, change.user_id) == ("opened", 2**53 - 1, None)
    assert (change.details, change.seq, str(change.at)) == (details, 2, reply.clock)


def test_an_id_that_is_known_is_refused(partition: Partition) -> None:
    """Opening it again leaves it as it is, whatever else the call opens."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"))
    before = partition.event(1), partition.users(1)
    reply = partition.open_events((1, 9, "Other", "{}"), (2, 9, "Other", "{}"))
    assert [item[:2] for item in reply.items] == [("EXISTS", "1"), ("OPENED", "4")]
    assert (partition.event(1), partition.users(1)) == before


def test_one_id_twice_in_a_call_is_opened_once(partition: Partition) -> None:
    """The first has it; its capacity and name count."""
    reply = partition.open_events((1, 3, "First", "{}"), (1, 9, "Second", "{}"))
    assert outcomes(reply) == ["OPENED", "EXISTS"]
    assert (partition.event(1)["capacity"], partition.event(1)["name"]) == ("3", "First")
    assert partition.meta()["seq"] == "2"


def test_an_id_of_before_a_rebuild_is_refused(partition: Partition) -> None:
    """A record that was put back draws it again, when Redis does not know the event any more."""
    partition.open_events((3, 9, "Name", "{}"), (7, 9, "Name", "{}"))
    for event_id in (3, 7):
        partition.client.unlink(*event_keys(partition.number, event_id))
    partition.open(2)
    reply = partition.open_events((7, 9, "Other", "{}"), (5, 9, "Other", "{}"), (8, 9, "New", "{}"))
    assert outcomes(reply) == ["EXISTS", "EXISTS", "OPENED"]
    assert [item[1] for item in reply.items[:2]] == ["7", "7"]
    assert (partition.event(7), partition.event(5)) == ({}, {})


def test_ids_need_not_be_opened_in_order_within_an_epoch(partition: Partition) -> None:
    """Two workers draw one after the other, and open the other way round."""
    assert outcomes(partition.open_events((8, 9, "Later", "{}"))) == ["OPENED"]
    assert outcomes(partition.open_events((7, 9, "Earlier", "{}"))) == ["OPENED"]
    partition.open(2)
    assert outcomes(partition.open_events((9, 9, "New", "{}"), (8, 9, "Old", "{}"))) == [
        "OPENED",
        "EXISTS",
    ]


def test_openings_that_are_refused_write_no_entry(partition: Partition) -> None:
    """But the call is remembered."""
    partition.sell(1, capacity=1)
    before = partition.stored_but_calls()
    assert outcomes(partition.open_events((1, 9, "Other", "{}"))) == ["EXISTS"]
    assert partition.stored_but_calls() == before
    assert partition.calls()["w1:open_event"].startswith("2 ")


# Loading.


def test_an_event_from_the_record_goes_on_as_it_stood(partition: Partition) -> None:
    """Counters, users and the order of those who wait; a load is no change and writes no entry."""
    meta, entries = partition.meta(), partition.entries()
    users = [("a", "booked"), ("b", "waiting"), ("c", "cancelled"), ("d", "waiting")]
    partition.load_whole(1, 1, 0, [*users, ("e", "left_waiting_list")])
    assert (partition.meta(), partition.entries()) == (meta, entries)
    assert partition.event(1) == {
        "capacity": "1",
        "available": "0",
        "waiting": "2",
        "next_turn": "3",
        "name": "Name",
        "created_at": "1",
        "updated_at": "2",
    }
    assert partition.elements(1) == ["1 b", "2 d"]
    assert partition.users(1)["d"] == "waiting 4 1 2"
    assert partition.cancel((1, "a")).items == [("CANCELLED", "2", "1")]
    assert partition.book((1, "c")).items == [("WAITING", "4", "2")]
    assert partition.waiters(1) == ["d", "c"]


def test_several_chunks_keep_the_order(partition: Partition) -> None:
    """2,500 waiters come in three chunks of at most 1,000; turns run through."""
    partition.load_whole(1, 1, 1, [(f"u{i}", "waiting") for i in range(2_500)])
    assert partition.elements(1) == [f"{i + 1} u{i}" for i in range(2_500)]
    assert partition.read((1, "u2499")).items[0][9] == "2500"


def test_a_chunk_may_hold_nobody_who_waits(partition: Partition) -> None:
    """And an event may have no users at all."""
    partition.load_whole(1, 2, 1, [("a", "booked")])
    partition.load_whole(2, 2, 2, [])
    assert partition.elements(1) == partition.elements(2) == []
    assert outcomes(partition.book((1, "b"), (2, "b"))) == ["BOOKED", "BOOKED"]


def test_an_event_being_loaded_is_absent(partition: Partition) -> None:
    """Between begin and finish nobody books, cancels or reads it, and its id is taken."""
    assert partition.load("begin", 1, "token", 0) == "BEGUN"
    assert partition.load("chunk", 1, "token", "a", "booked 1 1 0", "") == "ADDED"
    before = partition.stored_but_calls()
    assert outcomes(partition.book((1, "x"))) == ["NO_EVENT"]
    assert outcomes(partition.cancel((1, "a"))) == ["NO_EVENT"]
    assert partition.read((1, "a")).items == [("NO_EVENT", *[""] * 10)]
    assert outcomes(partition.open_events((1, 5, "Name", "{}"))) == ["EXISTS"]
    assert partition.stored_but_calls() == before
    assert partition.load("finish", 1, "token", 2, 1, 0, 1, "Name", 1, 1) == "LOADED"
    assert outcomes(partition.cancel((1, "a"))) == ["CANCELLED"]
    assert not partition.event(1).keys() & {"loader", "loading_at"}


def test_an_event_that_is_there_is_not_loaded(partition: Partition) -> None:
    """Neither begin nor a late chunk or finish touches it."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"))
    before = partition.stored()
    assert partition.load("begin", 1, "token", 99) == "PRESENT"
    assert partition.load("chunk", 1, "token", "b", "booked 1 1 0", "") == "TAKEN"
    assert partition.load("finish", 1, "token", 9, 9, 0, 1, "Name", 1, 1) == "TAKEN"
    assert partition.stored() == before


def test_a_finished_loader_cannot_go_on(partition: Partition) -> None:
    """A chunk that arrives after its own finish is refused."""
    partition.load_whole(1, 1, 1, [])
    before = partition.stored()
    assert partition.load("chunk", 1, "loader", "b", "booked 1 1 0", "") == "TAKEN"
    assert partition.load("finish", 1, "loader", 9, 9, 0, 1, "Name", 1, 1) == "TAKEN"
    assert partition.stored() == before


def test_one_loader_at_a_time(partition: Partition) -> None:
    """While one is at work another is told BUSY, and its steps do nothing."""
    assert partition.load("begin", 1, "first", 0) == "BEGUN"
    before = partition.stored()
    assert partition.load("begin", 1, "second", 0) == "BUSY"
    assert partition.load("chunk", 1, "second", "b", "booked 1 1 0", "") == "TAKEN"
    assert partition.load("finish", 1, "second", 9, 9, 0, 1, "Name", 1, 1) == "TAKEN"
    assert partition.stored() == before


def test_a_loader_may_begin_again(partition: Partition) -> None:
    """From empty keys: nothing of its first attempt stays."""
    partition.load("begin", 1, "first", 0)
    partition.load("chunk", 1, "first", "a", "waiting 1 1 1", 1)
    assert partition.load("begin", 1, "first", 0) == "BEGUN"
    assert partition.users(1) == {}
    assert partition.elements(1) == []


def test_an_abandoned_load_is_started_over(partition: Partition) -> None:
    """Ten seconds after its last step another loader takes it, from empty keys."""
    event_key = event_keys(partition.number, 1).event
    partition.load("begin", 1, "first", 0)
    partition.load("chunk", 1, "first", "a", "waiting 1 1 1", 1)
    silent_since = int(partition.read().clock) - TWO_SECONDS
    partition.client.hset(event_key, "loading_at", str(silent_since + 1_900_000))
    assert partition.load("begin", 1, "second", 0) == "BUSY"
    partition.client.hset(event_key, "loading_at", str(silent_since))
    assert partition.load("begin", 1, "second", 0) == "BEGUN"
    assert partition.users(1) == {}
    assert partition.elements(1) == []
    assert partition.load("chunk", 1, "first", "a", "waiting 1 1 1", 1) == "TAKEN"
    assert partition.users(1) == {}


def test_a_load_from_the_future_was_abandoned(partition: Partition) -> None:
    """A clock that is set back by a day keeps nobody from loading an event for that day."""
    event_key = event_keys(partition.number, 1).event
    partition.load("begin", 1, "first", 0)
    tomorrow = int(partition.read().clock) + 86_400_000_000
    partition.client.hset(event_key, "loading_at", str(tomorrow))
    assert partition.load("begin", 1, "second", 0) == "BEGUN"
    assert partition.load("finish", 1, "first", 9, 9, 0, 1, "Name", 1, 1) == "TAKEN"


def test_a_chunk_shows_that_the_loader_lives(partition: Partition) -> None:
    """Its time starts anew with every step."""
    event_key = event_keys(partition.number, 1).event
    partition.load("begin", 1, "first", 0)
    partition.client.hset(event_key, "loading_at", "1")
    partition.load("chunk", 1, "first", "a", "booked 1 1 0", "")
    assert partition.load("begin", 1, "second", 0) == "BUSY"
    partition.client.hset(event_key, "loading_at", "1")
    assert partition.load("chunk", 1, "first") == "ADDED"  # of nobody
    assert partition.load("begin", 1, "second", 0) == "BUSY"


@pytest.mark.parametrize(
    ("archived", "recorded", "outcome"),
    [("10", 9, "STALE"), ("10", 10, "BEGUN"), ("9", 10, "BEGUN"), ("100", 20, "STALE")],
)
def test_a_record_older_than_the_latest_archiving_is_stale(
    partition: Partition, archived: str, recorded: int, outcome: str
) -> None:
    """What was read before an event left Redis must not bring it back as it was."""
    partition.client.hset(partition.keys.meta, "archived", archived)
    assert partition.load("begin", 1, "token", recorded) == outcome
    assert bool(partition.event(1)) == (outcome == "BEGUN")


def test_a_load_does_not_reach_into_the_next_epoch(partition: Partition) -> None:
    """Steps of an older epoch are FENCED; the new epoch's loader waits its two seconds."""
    partition.load("begin", 1, "first", 0)
    old = partition.shas
    partition.open(2)
    new, partition.shas = partition.shas, old
    assert partition.load("finish", 1, "first", 9, 9, 0, 1, "Name", 1, 1) == "FENCED"
    partition.shas = new
    assert outcomes(partition.book((1, "a"))) == ["NO_EVENT"]
    assert partition.load("begin", 1, "second", 0) == "BUSY"


# Reading.


def test_a_read_tells_event_and_user(partition: Partition) -> None:
    """Every state, with its seq and whether it is on record; a position for waiters alone."""
    partition.sell(1, capacity=2)
    partition.book(*((1, user) for user in "abcdef"))
    last = partition.cancel((1, "a"), (1, "d"))
    partition.raise_watermark(9)
    event = partition.event(1)
    shown = ("FOUND", "2", "0", "2", event["created_at"], last.clock, "Name")
    everybody = ["a", "b", "c", "d", "e", "f", "x", ""]
    assert partition.read(*((1, user) for user in everybody)).items == [
        (*shown, "cancelled", "9", "0", "1"),
        (*shown, "booked", "4", "0", "1"),
        (*shown, "booked", "10", "0", "0"),
        (*shown, "left_waiting_list", "11", "0", "0"),
        (*shown, "waiting", "7", "1", "1"),
        (*shown, "waiting", "8", "2", "1"),
        (*shown, "", "", "0", "0"),
        (*shown, "", "", "0", "0"),
    ]


def test_a_read_of_nothing_asks_whether_the_partition_serves(partition: Partition) -> None:
    """Its header says epoch, seq and clock."""
    reply = partition.read()
    assert (reply.word, reply.epoch, reply.seq, reply.items) == ("OK", "1", "1", [])


def test_positions_are_exact_with_gaps_before_and_behind(partition: Partition) -> None:
    """Whoever left before somebody moves them up; whoever left behind does not."""
    users = [f"u{i}" for i in range(1, 31)]
    partition.sell(1, capacity=1)
    partition.book((1, "holder"), *((1, user) for user in users))
    gone = {"u1", "u2", "u7", "u15", "u16", "u30"}
    partition.cancel(*((1, user) for user in sorted(gone)))
    left = [user for user in users if user not in gone]
    found = partition.read(*((1, user) for user in left)).items
    assert [int(item[9]) for item in found] == list(range(1, len(left) + 1))
    repeated = partition.book(*((1, user) for user in left)).items
    assert [int(item[2]) for item in repeated] == list(range(1, len(left) + 1))
    assert partition.book((1, "new")).items[0][2] == str(len(left) + 1)
