"""The handshake's scripts: each does its step, or nothing when the attempt is not its own."""

from collections.abc import Callable

import pytest
from redis.exceptions import ResponseError

from service.keys import event_keys, events_key
from tests.lua.harness import Backend, Partition, outcomes

MINE = "2 mine"

STEPS: dict[str, Callable[[Partition], list[str]]] = {
    "resume": lambda p: p.backend.eval("resume", [p.keys.meta], MINE, "2 mine-too"),
    "empty": lambda p: p.backend.eval(
        "empty", [p.keys.meta, p.keys.calls, p.keys.outbox], MINE, 1, 0
    ),
    "begin_epoch": lambda p: p.begin_epoch(MINE, 2, 4, 1, (1, 4)),
    "stay_closed": lambda p: p.backend.eval("stay_closed", [p.keys.meta], MINE, "why"),
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())


@pytest.fixture
def closed(partition: Partition) -> Partition:
    """A partition with event 1, booked by a, with b waiting, that MINE has closed."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"), (1, "b"))
    assert partition.close(MINE, "1")[0] == "CLOSED"
    return partition


def test_close_says_what_it_found(partition: Partition) -> None:
    """Epoch, R, W, a rebuild that had begun, damage; the rest of meta stays."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"), (1, "b"))
    partition.raise_watermark(3)
    before = partition.meta()
    reply = partition.close(MINE, "1")
    assert reply == ["CLOSED", "1", "4", "1", "3", "", ""]
    assert partition.meta() == {**before, "open": "0", "next": MINE}


def test_close_of_an_empty_redis(backend: Backend) -> None:
    """It closes what is not there, so that nobody opens it meanwhile."""
    partition = Partition(backend)
    assert partition.close("1 mine") == ["CLOSED", "", "", "", "", "", ""]
    assert partition.stored() == {partition.keys.meta: {"open": "0", "next": "1 mine"}}


@pytest.mark.parametrize(
    ("epoch", "next_"),
    [("", ""), ("2", ""), ("1", "2 other"), ("", "2 other"), ("11", "")],
)
def test_close_does_nothing_when_somebody_has_moved(
    partition: Partition, epoch: str, next_: str
) -> None:
    """Another epoch or another `next` than was seen: CHANGED, and the sale goes on."""
    before = partition.stored()
    assert partition.close(MINE, epoch, next_)[0] == "CHANGED"
    assert partition.stored() == before
    assert partition.read().word == "OK"


def test_close_takes_over_from_the_attempt_that_was_seen(closed: Partition) -> None:
    """The other attempt's further steps then do nothing."""
    assert closed.close("2 theirs", "1", MINE)[0] == "CLOSED"
    before = closed.stored()
    assert [step(closed) for step in STEPS.values()] == [["CHANGED"]] * 4
    assert closed.stored() == before


def test_close_tells_a_rebuild_that_died(closed: Partition) -> None:
    """The mark `loading` survives until an epoch begins."""
    closed.backend.eval("empty", [closed.keys.meta], MINE, 1, 0)
    assert closed.close("3 next", "1", MINE)[5] == "1"


@every_step
@pytest.mark.parametrize("next_", ["", "2 theirs", "2", "3 mine", "2 mine "])
def test_a_step_of_somebody_elses_attempt_does_nothing(
    closed: Partition, step: Callable[[Partition], list[str]], next_: str
) -> None:
    """`next` must be exactly this attempt's."""
    if next_:
        closed.client.hset(closed.keys.meta, "next", next_)
    else:
        closed.client.hdel(closed.keys.meta, "next")
    before = closed.stored()
    assert step(closed) == ["CHANGED"]
    assert closed.stored() == before


@every_step
def test_a_step_does_nothing_on_an_open_partition(
    partition: Partition, step: Callable[[Partition], list[str]]
) -> None:
    """Not even where `next` is this attempt's."""
    partition.client.hset(partition.keys.meta, "next", MINE)
    before = partition.stored()
    assert step(partition) == ["CHANGED"]
    assert partition.stored() == before


@every_step
def test_a_step_does_nothing_without_meta(
    backend: Backend, step: Callable[[Partition], list[str]]
) -> None:
    """A Redis that was emptied in the middle of a handshake is not opened by it."""
    partition = Partition(backend)
    assert step(partition) == ["CHANGED"]
    assert partition.stored() == {}


def test_resume_puts_its_own_token(closed: Partition) -> None:
    """The attempt that died, should it wake, finds CHANGED; the new one goes on."""
    before = closed.meta()
    assert STEPS["resume"](closed) == ["RESUMED"]
    assert closed.meta() == {**before, "next": "2 mine-too"}
    assert STEPS["begin_epoch"](closed) == ["CHANGED"]
    assert closed.begin_epoch("2 mine-too", 2, 4, 1, (1, 4)) == ["BEGUN"]


def test_empty_removes_the_keys_it_is_given(closed: Partition) -> None:
    """And marks meta before, so that a death in the middle is rebuilt."""
    index = events_key(closed.number)
    keys = [*closed.keys, *event_keys(closed.number, 1), index]
    before = closed.meta()
    assert closed.backend.eval("empty", keys, MINE, 1, 1) == ["EMPTIED"]
    assert closed.stored() == {closed.keys.meta: {**before, "loading": "1"}, index: ["complete"]}


def test_a_beginning_is_no_rebuild(closed: Partition) -> None:
    """What is emptied before the first epoch need not be emptied again."""
    before = closed.meta()
    assert closed.backend.eval("empty", [closed.keys.meta], MINE, 0, 0) == ["EMPTIED"]
    assert closed.meta() == before


def test_events_are_in_the_index_before_they_have_keys(closed: Partition) -> None:
    """Those that were opened, and one whose load has only begun."""
    closed.client.delete(*closed.keys)
    partition = Partition(closed.backend).open()
    partition.sell(1, capacity=1)
    assert partition.load("begin", 2, "loader", 0) == "BEGUN"
    assert set(partition.client.smembers(events_key(partition.number))) == {"1", "2"}


def test_empty_takes_a_thousand_keys(closed: Partition) -> None:
    """Its bound; the keys of others stay."""
    names = [event_keys(closed.number, i).event for i in range(10, 1_010)]
    for name in names:
        closed.client.hset(name, "capacity", "1")
    assert closed.backend.eval("empty", [closed.keys.meta, *names], MINE, 1, 0) == ["EMPTIED"]
    assert not closed.client.exists(*names)
    assert closed.event(1)["capacity"] == "1"


def test_begin_epoch_opens(closed: Partition) -> None:
    """epoch_began is the epoch's first change; calls are forgotten; W is the record's cursor."""
    assert closed.begin_epoch(MINE, 2, 4, 1, (1, 3)) == ["BEGUN"]
    assert closed.meta() == {
        "epoch": "2",
        "seq": "5",
        "recorded_epoch": "1",
        "recorded": "3",
        "open": "1",
        "newest_event": "1",
        "used_events": "1",
    }
    assert closed.calls() == {}
    change = closed.entries()[-1].changes[0]
    assert (change.seq, change.epoch, change.kind) == (5, 2, "epoch_began")
    assert change.details == '{"beginning":4,"predecessor":1}'
    assert closed.client.xrevrange(closed.keys.outbox, count=1)[0][0] == "2-5"
    assert closed.users(1) == {"a": "booked 3 1 0", "b": "waiting 4 1 1"}


def test_begin_epoch_clears_what_a_rebuild_and_a_closing_left(closed: Partition) -> None:
    """`loading`, `reason` and `next` are gone; `archived` and the ids' bounds stay."""
    closed.client.hset(closed.keys.meta, mapping={"loading": "1", "reason": "why", "archived": "3"})
    closed.begin_epoch(MINE, 2, 4, 1, (1, 4))
    left = {"epoch", "seq", "recorded_epoch", "recorded", "open", "archived"}
    assert closed.meta().keys() == left | {"newest_event", "used_events"}


def test_a_new_epoch_goes_on_where_the_old_one_ended(closed: Partition) -> None:
    """Numbers of calls begin anew, seqs go on, old scripts are fenced."""
    old = closed.shas
    closed.open(2)
    assert closed.cancel((1, "a"), number=1).items == [("CANCELLED", "6", "1")]
    assert [change[:2] for change in closed.changes()[-3:]] == [
        (5, "epoch_began"),
        (6, "cancelled"),
        (7, "promoted"),
    ]
    closed.shas = old
    assert closed.book((1, "c")).word == "FENCED"


def test_an_epoch_may_begin_far_behind_and_far_ahead(backend: Backend) -> None:
    """A rebuild's epoch begins at what is on record; digits are kept up to 2^53."""
    partition = Partition(backend)
    partition.close("9 mine")
    assert partition.begin_epoch("9 mine", 9, 2**53 - 3, 8, (8, 2**53 - 3)) == ["BEGUN"]
    assert partition.meta()["seq"] == str(2**53 - 2)
    assert partition.entries()[0].last == (9, 2**53 - 2)
    assert partition.entries()[0].changes[0].details == (
        f'{{"beginning":{2**53 - 3},"predecessor":8}}'
    )
    partition.close("10 mine", "9")
    assert partition.begin_epoch("10 mine", 10, 5, 8, (8, 5)) == ["BEGUN"]
    assert [entry.last for entry in partition.entries()] == [(9, 2**53 - 2), (10, 6)]


def test_an_outbox_ahead_of_the_epoch_refuses_it(closed: Partition) -> None:
    """begin_epoch's first write is its entry: nothing has changed when that is refused."""
    closed.client.xadd(closed.keys.outbox, {"v": "1"}, id="3-1")
    before = closed.stored()
    with pytest.raises(ResponseError, match="equal or smaller"):
        STEPS["begin_epoch"](closed)
    assert closed.stored() == before


def test_stay_closed_says_why(closed: Partition) -> None:
    """Callers are told the reason; the attempt is over."""
    before = closed.meta()
    assert STEPS["stay_closed"](closed) == ["STAYS_CLOSED"]
    assert closed.meta() == {k: v for k, v in before.items() if k != "next"} | {"reason": "why"}
    reply = closed.book((1, "c"))
    assert (reply.word, reply.reason) == ("FENCED", "why")
    assert STEPS["begin_epoch"](closed) == ["CHANGED"]


def test_a_partition_that_stays_closed_can_be_opened_later(closed: Partition) -> None:
    """A later start compares anew; the reason is gone with the next epoch."""
    STEPS["stay_closed"](closed)
    closed.open(2)
    assert "reason" not in closed.meta()
    assert outcomes(closed.book((1, "c"))) == ["WAITING"]
