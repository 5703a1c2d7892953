"""Users and counters compared: what Redis must hold is the record and the changes since."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.comparison import EventComparison, by_user, in_words, state_after
from service.findings import Drift
from service.outbox import STATUS_AFTER, Change
from service.record_view import RecordedEvent

USERS = st.sampled_from("abcdefgh")
STATES = st.builds(
    "{} {} {}".format,
    st.sampled_from(sorted(set(STATUS_AFTER.values()))),
    st.integers(1, 5),
    st.integers(1, 2),
)
SIDE = st.dictionaries(USERS, STATES)


def change(kind: str, user: str, seq: int) -> Change:
    """Return a change of event 7."""
    return Change(seq, 1, 0, kind, 7, user, None)


def comparison(users: Mapping[str, str]) -> EventComparison:
    """Begin with what the record has."""
    return EventComparison(7, RecordedEvent("Event Name", 10, 0, 0, users=dict(users)))


def held(users: Mapping[str, str]) -> dict[str, str]:
    """Return users as Redis holds them: with a turn."""
    return {user: f"{state} 0" for user, state in users.items()}


@given(record=SIDE, redis=SIDE, moved=st.sets(USERS), again=st.booleans())
def test_pages_name_all_who_disagree_and_nobody_else(
    record: dict[str, str], redis: dict[str, str], moved: set[str], again: bool
) -> None:
    """By user and direction; not who changed meanwhile; and a scan may say a user twice."""
    found = comparison(record)
    for user in redis:
        for _ in range(1 + again):
            found.take_page({user: held(redis)[user]})
    found.judge_pages(dict.fromkeys(moved))
    expected = {
        user: "missing_in_redis"
        if user not in redis
        else "missing_on_record"
        if user not in record
        else "differs"
        for user in (record.keys() | redis.keys()) - moved
        if record.get(user) != redis.get(user)
    }
    assert {drift.user_id: drift.kind for drift in found.drifts} == expected
    assert found.named == expected.keys()
    assert found.users == len(record.keys() | redis.keys() | moved)
    for drift in found.drifts:
        user = str(drift.user_id)
        assert drift.redis == (in_words(redis[user]) if user in redis else None)
        assert drift.record == (in_words(record[user]) if user in record else None)


@pytest.mark.parametrize(
    ("in_redis", "kind", "expected"),
    [
        ("booked 9 1 0", "promoted", None),
        ("waiting 9 1 4", "waiting", None),
        ("left_waiting_list 9 1 0", "left", None),
        (None, "booked", Drift(7, "a", "missing_in_redis", None, "booked at seq 9, in flight")),
        (
            "waiting 5 1 4",
            "promoted",
            Drift(7, "a", "differs", "waiting since seq 5", "booked at seq 9, in flight"),
        ),
    ],
)
def test_who_changed_is_compared_with_the_change(
    in_redis: str | None, kind: str, expected: Drift | None
) -> None:
    """The record's row is of before, and says nothing."""
    found = comparison({"a": "waiting 5 1"})
    found.take_page({"a": "waiting 5 1 4"})
    found.judge_one("a", in_redis, [change(kind, "a", 9)])
    assert found.drifts == ([expected] if expected else [])
    assert found.waiting == ({"a": in_redis} if in_redis and "waiting " in in_redis else {})


def test_counters_are_the_records_and_the_changes_since() -> None:
    """Two sold and one waits on record; then one cancels, the waiter is promoted, two join."""
    event = RecordedEvent("Event Name", 2, 2, 1, booked=2, queued=1)
    changes = [change("cancelled", "a", 5), change("promoted", "c", 6)]
    changes += [change("waiting", "d", 7), change("waiting", "e", 8), change("left", "d", 9)]
    found = EventComparison(7, event)
    right = {"name": "Event Name", "capacity": "2", "available": "0", "waiting": "1"}
    found.judge_counters(right, changes)
    assert found.drifts == []
    found.judge_counters({**right, "available": "1", "waiting": ""}, changes)
    assert found.drifts == [
        Drift(7, None, "counter", "available '1'", "0 available (capacity 2, sold 2)"),
        Drift(7, None, "counter", "waiting ''", "1 waiting"),
    ]


def test_a_record_that_does_not_add_up_is_named() -> None:
    """Its counters are compared with its own rows, Redis has no part in it."""
    event = RecordedEvent("Event Name", 5, 2, 1, booked=3, queued=0)
    found = EventComparison(7, event)
    held = {"name": "Event Name", "capacity": "5", "available": "3", "waiting": "1"}
    found.judge_counters(held, [])
    assert [(drift.kind, drift.redis, drift.record) for drift in found.drifts] == [
        ("record_counter", None, "events.sold is 2, the bookings say 3"),
        ("record_counter", None, "events.waiting is 1, the bookings say 0"),
    ]


@pytest.mark.parametrize("kind", sorted(STATUS_AFTER))
def test_the_state_after_a_change_reads_as_words(kind: str) -> None:
    """Every kind of change leads to a state that has words."""
    assert "seq 12" in in_words(state_after([change(kind, "a", 12)], ""))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("booked 5 1", "booked at seq 5"),
        ("booked 5 1 0", "booked at seq 5"),
        ("waiting 5 2 8", "waiting since seq 5, quantity 2"),
        ("?", "unreadable: '?'"),
        ("booked five 1", "unreadable: 'booked five 1'"),
    ],
)
def test_states_in_words(state: str, words: str) -> None:
    """Of either store; what no script has written is shown as it is."""
    assert in_words(state) == words


def test_changes_are_sorted_by_user() -> None:
    """In order, and without those that are about no user."""
    opened = Change(1, 1, 0, "opened", 7, None, "{}")
    first, second = change("booked", "a", 2), change("cancelled", "a", 4)
    other = change("booked", "b", 3)
    assert by_user([opened, first, other, second]) == {"a": [first, second], "b": [other]}
