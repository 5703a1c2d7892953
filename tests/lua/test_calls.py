"""What all scripts have in common: the fence before everything, and numbered calls."""

from collections.abc import Callable

import pytest
from redis.exceptions import ResponseError

from service.keys import event_keys
from tests.lua.harness import Backend, Partition, Reply, outcomes

CALLS: dict[str, Callable[[Partition], Reply | str]] = {
    "book": lambda p: p.book((1, "x")),
    "cancel": lambda p: p.cancel((1, "a")),
    "read": lambda p: p.read((1, "a")),
    "open_event": lambda p: p.open_events((5, 1, "Name", "{}")),
    "load_event begin": lambda p: p.load("begin", 6, "token", 0),
    "load_event chunk": lambda p: p.load("chunk", 6, "token", "a", "booked 1 1 0", ""),
    "load_event finish": lambda p: p.load("finish", 6, "token", 1, 1, 0, 1, "Name", 1, 1),
    "raise_watermark": lambda p: p.raise_watermark(2),
    "forget_callers": lambda p: p.forget_callers(),
}
every_script = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def word(reply: Reply | str) -> str:
    """Return a reply's first word."""
    return reply if isinstance(reply, str) else reply.word


@pytest.fixture
def sold(partition: Partition) -> Partition:
    """A partition with event 1: a booked, b and c waiting; event 6 is being loaded."""
    partition.sell(1, capacity=1)
    partition.book((1, "a"), (1, "b"), (1, "c"))
    assert partition.load("begin", 6, "token", 0) == "BEGUN"
    return partition


@every_script
def test_without_meta_nothing_runs(
    sold: Partition, call: Callable[[Partition], Reply | str]
) -> None:
    """A missing meta is never a new one: UNINIT, and nothing is written, meta least of all."""
    sold.client.delete(sold.keys.meta)
    before = sold.stored()
    assert word(call(sold)) == "UNINIT"
    assert sold.stored() == before


@every_script
def test_a_closed_partition_refuses(
    sold: Partition, call: Callable[[Partition], Reply | str]
) -> None:
    """open=0 is FENCED, and nothing is written."""
    sold.client.hset(sold.keys.meta, "open", "0")
    before = sold.stored()
    assert word(call(sold)) == "FENCED"
    assert sold.stored() == before


@every_script
@pytest.mark.parametrize("epoch", ["2", "0", "", "11", "01"])
def test_another_epoch_refuses(
    sold: Partition, call: Callable[[Partition], Reply | str], epoch: str
) -> None:
    """A script of epoch 1 does nothing in any other, newer or older."""
    sold.client.hset(sold.keys.meta, "epoch", epoch)
    before = sold.stored()
    assert word(call(sold)) == "FENCED"
    assert sold.stored() == before


@every_script
def test_a_partition_that_only_was_closed_refuses(
    backend: Backend, call: Callable[[Partition], Reply | str]
) -> None:
    """An attempt that closed an empty Redis and died leaves a fence, not a partition."""
    partition = Partition(backend)
    partition.shas = backend.load(1)
    assert partition.close("1 token")[0] == "CLOSED"
    before = partition.stored()
    assert word(call(partition)) == "FENCED"
    assert partition.stored() == before


def test_a_refusal_says_why_and_where(sold: Partition) -> None:
    """FENCED comes with meta's epoch, seq and reason, and Redis's clock."""
    sold.client.hset(sold.keys.meta, mapping={"open": "0", "reason": "PostgreSQL went back"})
    reply = sold.book((1, "x"))
    assert (reply.epoch, reply.seq, reply.reason) == ("1", "5", "PostgreSQL went back")
    seconds, microseconds = sold.client.time()
    assert 0 <= seconds * 1_000_000 + microseconds - int(reply.clock) < 60_000_000
    assert reply.items == []


def test_the_fence_comes_before_remembered_replies(sold: Partition) -> None:
    """A repeated call across an epoch is refused, not answered from the past."""
    sold.client.hset(sold.keys.meta, "epoch", "2")
    assert sold.book((1, "a"), number=1).word == "FENCED"


def test_every_epoch_has_scripts_of_its_own(backend: Backend) -> None:
    """No digest is shared between epochs, so that no cached script serves another."""
    first, second = backend.load(1), backend.load(2)
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())


def test_a_script_that_is_not_loaded_is_missing(partition: Partition) -> None:
    """After SCRIPT FLUSH (a restart) nothing loads it again by itself."""
    partition.client.script_flush()
    with pytest.raises(ResponseError, match="No matching script"):
        partition.book((1, "a"))


# Numbered calls.


def test_the_same_number_has_one_effect_and_one_reply(sold: Partition) -> None:
    """Sent again, a cancellation that promoted says the same and promotes nobody else."""
    first = sold.cancel((1, "a"), number=7)
    before = sold.stored()
    again = sold.cancel((1, "a"), number=7)
    assert (again.items, again.seq) == (first.items, first.seq)
    assert sold.stored() == before
    assert sold.waiters(1) == ["c"]


def test_the_same_number_opens_one_event(partition: Partition) -> None:
    """An opening sent again says OPENED with its seq and time, not EXISTS."""
    first = partition.open_events((1, 5, "Name", "{}"), (2, 5, "Name", "{}"), number=1)
    before = partition.stored()
    again = partition.open_events((1, 5, "Name", "{}"), (2, 5, "Name", "{}"), number=1)
    assert again.items == first.items
    assert outcomes(again) == ["OPENED", "OPENED"]
    assert partition.stored() == before


def test_a_repeat_gives_the_reply_of_then_and_the_seq_of_now(sold: Partition) -> None:
    """Items are remembered; R and the clock of the header are those of the moment."""
    first = sold.book((1, "d"), worker="w1", number=9)
    sold.cancel((1, "b"), worker="w2")
    again = sold.book((1, "d"), worker="w1", number=9)
    assert again.items == first.items == [("WAITING", "6", "3")]
    assert (first.seq, again.seq) == ("6", "7")
    assert int(again.clock) >= int(first.clock)
    assert (again.epoch, again.reason) == (first.epoch, first.reason)


def test_a_call_that_changed_nothing_is_remembered(sold: Partition) -> None:
    """Its repeat gives the old answer although a new call would do something by now."""
    first = sold.cancel((1, "x"), worker="w1", number=3)
    sold.book((1, "x"), worker="w2")
    assert outcomes(sold.cancel((1, "x"), worker="w1", number=3)) == outcomes(first)
    assert sold.states(1)["x"][0] == "waiting"


def test_a_booking_that_changed_nothing_is_remembered(sold: Partition) -> None:
    """Sent again after somebody cancelled for this user, it books nobody."""
    first = sold.book((1, "a"), worker="w1", number=3)
    assert outcomes(first) == ["ALREADY_BOOKED"]
    sold.cancel((1, "a"), worker="w2")
    assert sold.book((1, "a"), worker="w1", number=3).items == first.items
    assert sold.states(1)["a"][0] == "cancelled"


def test_a_repeat_is_answered_past_its_time(sold: Partition) -> None:
    """What has run is told also when it would be too late to run."""
    first = sold.cancel((1, "a"), number=7)
    assert sold.cancel((1, "a"), number=7, latest=1).items == first.items


@pytest.mark.parametrize(("last", "number"), [(2, 1), (10, 9), (2**53 - 1, 2**53 - 2)])
def test_a_smaller_number_is_refused(sold: Partition, last: int, number: int) -> None:
    """A call from the past has no effect, however the digits compare as text."""
    sold.cancel((1, "x"), number=last)
    before = sold.stored()
    reply = sold.cancel((1, "a"), number=number)
    assert (reply.word, reply.seq, reply.items) == ("STALE_CALL", "5", [])
    assert sold.stored() == before


def test_callers_and_scripts_are_numbered_apart(sold: Partition) -> None:
    """Number 1 of another worker, or of another script, is another call."""
    sold.book((1, "d"), worker="w1", number=5)
    assert outcomes(sold.book((1, "e"), worker="w2", number=1)) == ["WAITING"]
    assert outcomes(sold.cancel((1, "e"), worker="w1", number=1)) == ["LEFT"]
    assert set(sold.calls()) >= {"w1:book", "w2:book", "w1:cancel"}


def test_a_late_call_is_refused(sold: Partition) -> None:
    """Past its latest time a call has no effect, is not remembered, and may be sent again."""
    now = int(sold.read((1, "a")).clock)
    before = sold.stored()
    reply = sold.cancel((1, "a"), number=7, latest=now - 1)
    assert (reply.word, reply.seq, reply.items) == ("LATE", "5", [])
    assert sold.stored() == before
    assert outcomes(sold.cancel((1, "a"), number=7, latest=now + 60_000_000)) == ["CANCELLED"]


def test_an_outbox_that_is_ahead_refuses_before_anything_is_written(sold: Partition) -> None:
    """The entry is the first write: where its id is refused nothing has changed."""
    sold.client.xadd(sold.keys.outbox, {"v": "1"}, id="1-1000")
    before = sold.stored()
    for call in (sold.book, sold.cancel):
        with pytest.raises(ResponseError, match="equal or smaller"):
            call((1, "a"), (1, "new"), (1, "b"))
    with pytest.raises(ResponseError, match="equal or smaller"):
        sold.open_events((5, 1, "Name", "{}"))
    assert sold.stored() == before


def test_entry_ids_are_epoch_and_seq(sold: Partition) -> None:
    """No clock in an id; entries follow each other without a gap."""
    sold.cancel((1, "a"), (1, "c"))
    sold.book((1, "d"))
    ids = [name for name, _ in sold.client.xrange(sold.keys.outbox)]
    assert ids == ["1-1", "1-2", "1-5", "1-8", "1-9"]
    entries = sold.entries()
    assert [e.first for e in entries[1:]] == [e.last.seq + 1 for e in entries[:-1]]


def test_callers_idle_for_an_hour_are_forgotten(sold: Partition) -> None:
    """One that called within the hour stays, also among many."""
    now = int(sold.book((1, "x"), worker="busy").clock)
    hour = 3600 * 1_000_000
    sold.client.hset(sold.keys.calls, "gone:book", f"4 {now - hour - 1} OK 1 5 {now} -")
    sold.client.hset(sold.keys.calls, "idle:book", f"4 {now - hour + 60_000_000} OK 1 5 {now} -")
    before = sold.stored_but_calls()
    assert outcomes(sold.forget_callers()) == ["FORGOTTEN"]
    assert set(sold.calls()) == {"busy:book", "idle:book", "w1:book", "w1:open_event"}
    assert sold.stored_but_calls() == before


# The watermark.


def test_the_watermark_only_rises(sold: Partition) -> None:
    """A smaller or equal one is refused, and digits are compared as numbers."""
    assert [outcomes(sold.raise_watermark(n))[0] for n in (9, 10, 10, 9, 2**53 - 1, 2**53 - 2)] == [
        "RAISED",
        "RAISED",
        "UNCHANGED",
        "UNCHANGED",
        "RAISED",
        "UNCHANGED",
    ]
    meta = sold.meta()
    assert (meta["recorded_epoch"], meta["recorded"]) == ("1", str(2**53 - 1))


def test_a_new_epochs_watermark_may_be_lower(sold: Partition) -> None:
    """Seq means something only with its epoch: 3 of epoch 2 is above 5 of epoch 1."""
    sold.raise_watermark(5)
    sold.open(2)
    assert (sold.meta()["recorded_epoch"], sold.meta()["recorded"]) == ("1", "5")
    assert outcomes(sold.raise_watermark(3)) == ["RAISED"]
    assert (sold.meta()["recorded_epoch"], sold.meta()["recorded"]) == ("2", "3")


def test_the_watermark_touches_nothing_else(sold: Partition) -> None:
    """No change, no entry, no other key."""
    before = sold.stored()
    sold.raise_watermark(4)
    after = sold.stored()
    for name in ("recorded", "recorded_epoch"):
        before[sold.keys.meta].pop(name)
        after[sold.keys.meta].pop(name)
    assert after == before


def test_a_read_writes_nothing(sold: Partition) -> None:
    """Not even the call is remembered."""
    before = sold.stored()
    sold.read((1, "a"), (9, "b"), (1, ""))
    assert sold.stored() == before
    assert event_keys(sold.number, 9).event not in before
