"""The replay of a journal is the reference model, whatever happens at a sale."""

from hypothesis import given
from hypothesis import strategies as st

from loadtests.replay import History, Row
from tests.loadtests.sale import EVENT, FIRST_SEQ
from tests.model import PartitionModel

STEPS = st.lists(st.tuples(st.sampled_from(["book", "cancel"]), st.sampled_from("abcdef")))


@given(capacity=st.integers(1, 3), steps=STEPS)
def test_a_replay_is_the_model(capacity: int, steps: list[tuple[str, str]]) -> None:
    """States, counts and every position at every seq are the model's, and nothing is unlawful."""
    model = PartitionModel(FIRST_SEQ - 1)
    model.open(EVENT, capacity)
    event = model.events[EVENT]
    seen: list[tuple[int, int, int, dict[str, int]]] = []
    for operation, user in steps:
        getattr(model, operation)(EVENT, user)
        places = {user: place for place, user in enumerate(event.waiting_list, 1)}
        seen.append((model.seq, event.available, len(event.waiting_list), places))
    rows = [Row(c.seq, c.kind, c.user) for c in model.changes if c.user is not None]
    history = History(FIRST_SEQ, capacity, rows)
    assert not [*history.oversold, *history.unlawful, *history.out_of_order]
    assert {user: (stay.state, stay.since) for user, stay in history.states.items()} == event.states
    assert (history.sold, history.waiting) == (event.sold, len(event.waiting_list))
    for seq, available, waiting, places in seen:
        assert history.had_counts(available, waiting, seq, seq)
        assert not history.had_counts(available + 1, waiting, seq, seq)
        joined = {
            stay.user: stay.turn
            for stay in history.stays.values()
            if stay.state == "waiting" and stay.meets(seq, seq)
        }
        assert joined.keys() == places.keys()
        asked = [(seq, joined[user]) for user in places]
        assert history.positions(asked) == list(places.values())


def test_between_a_cancellation_and_its_promotion_nobody_can_look() -> None:
    """The ticket that is free for no time was never to be seen at /status."""
    rows = [Row(12, "booked", "a"), Row(13, "waiting", "b")]
    rows += [Row(14, "cancelled", "a"), Row(15, "promoted", "b")]
    history = History(FIRST_SEQ, 1, rows)
    assert history.reassigned == {14}
    assert not history.had_counts(1, 1, 12, 15)
    assert history.had_counts(0, 1, 13, 14)
    assert history.had_counts(0, 0, 15, 99)
    assert not history.had_counts(0, 1, 15, 99)
