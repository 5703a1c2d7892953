"""cancel.lua: tickets given back and on, and the waiting list with those who left it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.keys import event_keys
from tests.examples import examples
from tests.lua.harness import Backend, Item, Partition, outcomes

BATCH = 256


def queue(partition: Partition, users: str, *, capacity: int = 1) -> None:
    """Open event 1 and let these users ask in this order."""
    partition.sell(1, capacity)
    partition.book(*((1, user) for user in users))


def positions(partition: Partition, users: str) -> list[int]:
    """Return these users' positions as a read tells them."""
    return [int(item[9]) for item in partition.read(*((1, user) for user in users)).items]


def test_a_ticket_given_back_can_be_booked_again(partition: Partition) -> None:
    """Without a waiting list a cancellation frees one ticket."""
    queue(partition, "a")
    assert partition.cancel((1, "a")).items == [("CANCELLED", "4", "0")]
    assert partition.counters(1) == (1, 0)
    assert partition.users(1) == {"a": "cancelled 4 1 0"}
    assert outcomes(partition.book((1, "b"))) == ["BOOKED"]


def test_a_cancellation_promotes_the_first_in_the_same_entry(partition: Partition) -> None:
    """The ticket never is free in between: cancelled and promoted share call, entry and time."""
    queue(partition, "abc")
    assert partition.cancel((1, "a")).items == [("CANCELLED", "6", "1")]
    entry = partition.entries()[-1]
    assert [(c.seq, c.kind, c.user_id) for c in entry.changes] == [
        (6, "cancelled", "a"),
        (7, "promoted", "b"),
    ]
    assert partition.states(1) == {
        "a": ("cancelled", 6),
        "b": ("booked", 7),
        "c": ("waiting", 5),
    }
    assert partition.counters(1) == (0, 1)
    assert partition.elements(1) == ["2 c"]


def test_a_waiter_leaves(partition: Partition) -> None:
    """No ticket moves; those behind move up by one, those before stay."""
    queue(partition, "abcde")
    assert partition.cancel((1, "c")).items == [("LEFT", "8", "0")]
    assert partition.users(1)["c"] == "left_waiting_list 8 1 0"
    assert partition.changes()[-1] == (8, "left", 1, "c")
    assert partition.counters(1) == (0, 3)
    assert partition.gaps(1) == [2]
    assert positions(partition, "bcde") == [1, 0, 2, 3]


def test_who_leaves_and_joins_again_stands_at_the_end(partition: Partition) -> None:
    """The old element in the list is dead: neither position nor promotion goes by it."""
    queue(partition, "abcd")
    partition.cancel((1, "b"))
    assert partition.book((1, "b")).items == [("WAITING", "8", "3")]
    assert partition.waiters(1) == ["c", "d", "b"]
    for holder, promoted in (("a", "c"), ("c", "d"), ("d", "b")):
        partition.cancel((1, holder))
        assert partition.states(1)[promoted][0] == "booked"


def test_promotion_skips_those_who_left(partition: Partition) -> None:
    """Gaps at the head, in the middle and side by side: the order of the others stays."""
    queue(partition, "abcdefgh")
    partition.cancel((1, "b"))
    partition.cancel((1, "e"), (1, "d"))
    partition.cancel((1, "h"))
    order = []
    for holder in "acfg":
        partition.cancel((1, holder))
        order.append(partition.changes()[-1][1:])
    assert order == [
        ("promoted", 1, "c"),
        ("promoted", 1, "f"),
        ("promoted", 1, "g"),
        ("cancelled", 1, "g"),
    ]
    assert partition.counters(1) == (1, 0)


def test_nobody_waiting_leaves_no_list_and_no_gaps(partition: Partition) -> None:
    """By promotion, by leaving or by both: list and gaps are gone with the last waiter."""
    _, _, waiting_list, gaps = event_keys(partition.number, 1)
    queue(partition, "abc")
    partition.cancel((1, "b"))
    partition.cancel((1, "a"))
    assert not partition.client.exists(waiting_list, gaps)
    partition.book((1, "d"), (1, "e"))
    partition.cancel((1, "e"), (1, "d"))
    assert not partition.client.exists(waiting_list, gaps)
    assert partition.book((1, "f")).items[0][2] == "1"


def test_a_batch_may_cancel_whom_it_promoted(partition: Partition) -> None:
    """In one call: a gives back, b is promoted, b gives back, c is promoted."""
    queue(partition, "abcd")
    reply = partition.cancel((1, "a"), (1, "b"))
    assert reply.items == [("CANCELLED", "7", "1"), ("CANCELLED", "9", "1")]
    assert [change[1:] for change in partition.changes()[-4:]] == [
        ("cancelled", 1, "a"),
        ("promoted", 1, "b"),
        ("cancelled", 1, "b"),
        ("promoted", 1, "c"),
    ]
    assert partition.states(1)["b"] == ("cancelled", 9)
    assert partition.counters(1) == (0, 1)
    assert partition.waiters(1) == ["d"]


def test_a_batch_may_promote_past_one_who_left_in_it(partition: Partition) -> None:
    """In one call: the head leaves, a gives back, the next one is promoted."""
    queue(partition, "abcd")
    reply = partition.cancel((1, "b"), (1, "a"))
    assert reply.items == [("LEFT", "7", "0"), ("CANCELLED", "8", "1")]
    assert partition.states(1)["c"] == ("booked", 9)
    assert partition.waiters(1) == ["d"]
    assert positions(partition, "d") == [1]


def test_one_user_twice_in_a_batch_cancels_once(partition: Partition) -> None:
    """The second item finds nothing; one ticket comes back."""
    queue(partition, "ab", capacity=2)
    assert outcomes(partition.cancel((1, "a"), (1, "a"))) == ["CANCELLED", "NOT_BOOKED"]
    assert partition.counters(1) == (1, 0)


def test_a_cancellation_that_finds_nothing_changes_nothing(partition: Partition) -> None:
    """Strangers, those who cancelled or left, unknown events: no entry, no key."""
    queue(partition, "abc")
    partition.cancel((1, "c"), (1, "a"), (1, "b"))
    before = partition.stored_but_calls()
    reply = partition.cancel((1, "a"), (1, "c"), (1, "x"), (9, "a"))
    assert reply.items == [("NOT_BOOKED", "0", "0")] * 3 + [("NO_EVENT", "0", "0")]
    assert partition.stored_but_calls() == before


def test_one_cancellation_promotes_one(partition: Partition) -> None:
    """Also where more tickets are free than that (a capacity that grew)."""
    users = [("a", "booked"), ("b", "booked"), ("c", "waiting"), ("d", "waiting")]
    partition.load_whole(1, 5, 3, users)
    partition.cancel((1, "a"))
    assert partition.waiters(1) == ["d"]
    assert partition.counters(1) == (3, 1)


def test_promotions_of_several_events_keep_apart(partition: Partition) -> None:
    """One call cancels in two events; each promotes its own head."""
    for event_id in (1, 2):
        partition.sell(event_id, capacity=1)
    partition.book((1, "a"), (2, "x"), (1, "b"), (2, "y"))
    assert [item[2] for item in partition.cancel((2, "x"), (1, "a")).items] == ["1", "1"]
    assert partition.states(1)["b"][0] == partition.states(2)["y"][0] == "booked"
    assert [c.kind for c in partition.entries()[-1].changes] == ["cancelled", "promoted"] * 2


def test_gaps_behind_the_head_are_forgotten_a_few_per_call(partition: Partition) -> None:
    """Twenty gaps that a promotion passed are gone after two promotions; those ahead stay."""
    users = [f"u{i}" for i in range(40)]
    partition.sell(1, capacity=1)
    partition.book(*((1, user) for user in users))
    partition.cancel(*((1, user) for user in users[1:21]))
    partition.cancel((1, "u30"))
    partition.cancel((1, "u0"))
    assert len(partition.gaps(1)) == 20 - 16 + 1
    partition.cancel((1, "u21"))
    assert partition.gaps(1) == [30]
    assert [int(i[9]) for i in partition.read((1, "u23"), (1, "u31")).items] == [1, 8]


def departures(partition: Partition, gone: int) -> None:
    """One holds the ticket, `gone` have left behind, then two wait."""
    users = [("holder", "booked"), *((f"g{i}", "waiting") for i in range(gone))]
    users += [("next", "waiting"), ("last", "waiting")]
    partition.load_whole(1, 1, 0, users)
    for at in range(0, gone, BATCH):
        partition.cancel(*((1, f"g{i}") for i in range(at, min(at + BATCH, gone))))


@pytest.mark.parametrize("gone", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 1000])
def test_a_run_of_departures_ends_at_the_next_waiter(partition: Partition, gone: int) -> None:
    """The run's length is found exactly, around the powers of two too."""
    departures(partition, gone)
    assert partition.cancel((1, "holder")).items[0][2] == "1"
    assert partition.states(1)["next"][0] == "booked"
    assert partition.elements(1) == [f"{gone + 2} last"]
    assert partition.read((1, "last")).items[0][9] == "1"


def test_a_long_run_of_departures_is_cut_with_one_trim(empty_valkey: str) -> None:
    """Promotion past 50,000 departures is under 100 commands, one LTRIM, and few milliseconds."""
    partition = Partition(Backend.valkey(empty_valkey)).open()
    departures(partition, 50_000)
    partition.client.config_resetstat()
    partition.cancel((1, "holder"))
    stats = partition.client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): held["calls"] for name, held in stats.items()}
    assert calls["ltrim"] == 1
    assert calls["zcount"] <= 40
    assert sum(calls.values()) < 100
    assert partition.elements(1) == ["50002 last"]
    assert stats["cmdstat_evalsha"]["usec"] < 50_000


def test_a_position_takes_no_walk_through_the_list(empty_valkey: str) -> None:
    """Positions of 254 waiters of 20,000 are at most one ZCOUNT each and no LPOS or LRANGE."""
    partition = Partition(Backend.valkey(empty_valkey)).open()
    waiting = [(f"w{i}", "waiting") for i in range(20_000)]
    partition.load_whole(1, 1, 0, [("holder", "booked"), *waiting])
    asked = range(0, 20_000, 79)
    for gone, zcounts in ((0, 0), (1, len(asked))):
        if gone:
            partition.cancel((1, "w1"))
        partition.client.config_resetstat()
        reply = partition.read(*((1, f"w{i}") for i in asked))
        calls = {k: v["calls"] for k, v in partition.client.info("commandstats").items()}
        assert [int(item[9]) for item in reply.items] == [i + 1 - (i and gone) for i in asked]
        assert calls.get("cmdstat_zcount", 0) == zcounts
        assert calls["cmdstat_lindex"] == calls["cmdstat_zcard"] == 1
        assert not calls.keys() & {"cmdstat_lrange", "cmdstat_lpos", "cmdstat_lrem"}


scripts = st.sampled_from(("book", "cancel"))
users_of_all = st.sampled_from("abcdefgh")


@settings(
    max_examples=examples(100),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    before=st.lists(st.tuples(scripts, st.sampled_from((1, 1, 2)), users_of_all), max_size=25),
    script=scripts,
    batch=st.lists(st.tuples(st.sampled_from((1, 1, 2, 3)), users_of_all), max_size=12),
)
def test_a_batch_equals_its_items_one_by_one(
    backend: Backend, before: list[tuple[str, int, str]], script: str, batch: list[Item]
) -> None:
    """Same answers, same changes, same state, same positions, in one call or in many."""
    together, single = Partition(backend).open(), Partition(backend).open()
    for partition in (together, single):
        partition.sell(1, capacity=2)
        partition.sell(2, capacity=1)
        for name, event_id, user in before:
            getattr(partition, name)((event_id, user))
    items = getattr(together, script)(*batch).items
    assert items == [getattr(single, script)(item).items[0] for item in batch]
    assert together.changes() == single.changes()
    assert together.meta() == single.meta()
    for event_id in (1, 2):
        assert together.users(event_id) == single.users(event_id)
        assert together.counters(event_id) == single.counters(event_id)
        assert together.waiters(event_id) == single.waiters(event_id)
    everybody = [(event_id, user) for event_id in (1, 2) for user in "abcdefgh"]
    assert [i[6:] for i in together.read(*everybody).items] == [
        i[6:] for i in single.read(*everybody).items
    ]
