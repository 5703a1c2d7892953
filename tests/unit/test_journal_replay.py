"""The replay of a partition's journal: what the writer wrote holds, and each forgery is named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.journal_view import BookingRow, EventRow, JournalRow
from service.lineage import Epoch, Lineage, Position
from service.outbox import Change
from service.record import Cursor
from service.replay_result import ReplayResult
from service.violations import Head, Violation, Violations
from tests.journals import FIRST_AT, Sale, cursor_at, hashed, replay, violated

STEPS = st.lists(
    st.one_of(
        st.just(("begin",)),
        st.tuples(st.just("open"), st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.sampled_from(["book", "cancel"]), st.integers(1, 3), st.sampled_from("abcd")),
    ),
    max_size=40,
)


def sale_of(steps: list[Any]) -> Sale:
    """Return a sale at which all this happened."""
    sale = Sale()
    for operation, *arguments in steps:
        getattr(sale, operation)(*arguments)
    return sale


@pytest.fixture
def sale() -> Sale:
    """Two tickets: a and d have them, c waits, b has left; two epochs.

    The rows: 1 epoch_began, 2 opened, 3 booked a, 4 booked b, 5 waiting c, 6 waiting d,
    7 epoch_began, 8 left c, 9 cancelled b, 10 promoted d, 11 waiting c.
    """
    sale = Sale()
    sale.open(1, 2)
    sale.book(1, "a", "b", "c", "d")
    sale.begin(3)
    sale.cancel(1, "c", "b")
    sale.book(1, "c")
    return sale


def named(found: list[Violation]) -> set[tuple[str, int | None, str | None]]:
    """Return rule, seq and user of each."""
    return {(violation.rule, violation.seq, violation.user_id) for violation in found}


@given(STEPS)
def test_whatever_the_model_makes_holds(steps: list[Any]) -> None:
    """Over several events and epochs; states, counters and the head are those of the model."""
    sale = sale_of(steps)
    replayed, violations = replay(sale)
    assert violations.kept == []
    for event_id, event in sale.model.events.items():
        found = replayed.events[event_id]
        assert (found.states, list(found.line)) == (event.states, event.waiting_list)
        assert (found.sold, found.capacity, found.name) == (
            event.sold,
            event.capacity,
            "First night",
        )
    rows = sale.rows()
    last = rows[-1]
    assert replayed.head == Head(0, last.change.epoch, last.change.seq, last.hash)
    assert violated(sale, kept=[Head(0, r.change.epoch, r.change.seq, r.hash) for r in rows]) == []


EDITS = st.fixed_dictionaries(
    {},
    optional={
        "epoch": st.integers(0, 4),
        "at": st.integers(FIRST_AT, FIRST_AT + 9_000),
        "kind": st.sampled_from(["booked", "waiting", "cancelled", "left", "opened", "eaten"]),
        "event_id": st.none() | st.integers(0, 3),
        "user_id": st.none() | st.sampled_from(["a", "b", "-", "", "a b"]),
        "details": st.none() | st.sampled_from(["", "-", "{}"]),
    },
)


@given(STEPS, st.data(), EDITS)
def test_a_row_edited_by_hand_never_holds(
    steps: list[Any], data: st.DataObject, words: dict[str, Any]
) -> None:
    """Whatever is written into whichever row: it has not that hash, or no script could write it."""
    sale = sale_of(steps)
    change = data.draw(st.sampled_from(sale.changes))
    edited = sale.edited(change.seq, **words)
    is_as_it_was = change._replace(**words) == change
    assert (violated(sale, edited) == []) == is_as_it_was


@given(STEPS, st.data())
def test_a_row_removed_or_moved_never_holds(steps: list[Any], data: st.DataObject) -> None:
    """Wherever it stood, the last one included: the cursor knows better."""
    sale = sale_of(steps)
    rows = sale.rows()
    place = data.draw(st.integers(0, len(rows) - 1))
    cursor = cursor_at(rows)
    assert violated(sale, rows[:place] + rows[place + 1 :], cursor=cursor)
    other = data.draw(st.integers(0, len(rows) - 1))
    if rows[place].change.seq != rows[other].change.seq:
        one, two = rows[place].change, rows[other].change
        rows[place] = JournalRow(two._replace(seq=one.seq), rows[place].hash)
        rows[other] = JournalRow(one._replace(seq=two.seq), rows[other].hash)
        assert violated(sale, rows, cursor=cursor)


def test_the_sale_of_these_tests_holds(sale: Sale) -> None:
    """What follows breaks it."""
    assert [change.kind for change in sale.changes][5:] == [
        "waiting", "epoch_began", "left", "cancelled", "promoted", "waiting",
    ]  # fmt: skip
    assert violated(sale) == []


@pytest.mark.parametrize(
    ("seq", "words", "found"),
    [
        (4, {"user_id": "z"}, {("hash", 4, "z"), ("unlawful", 9, "b"), ("oversold", 10, "d")}),
        (4, {"at": 9}, {("hash", 4, "b")}),
        (
            8,
            {"kind": "promoted"},
            {("hash", 8, "c"), ("oversold", 8, "c"), ("oversold", 10, "d"), ("unlawful", 11, "c")},
        ),
        (9, {"epoch": 1}, {("hash", 9, "b"), ("epoch", 9, "b")}),
        (
            3,
            {"event_id": 2},
            {
                ("hash", 3, "a"),
                ("unlawful", 3, "a"),
                ("out_of_order", 5, "c"),
                ("out_of_order", 11, "c"),
            },
        ),
        (
            3,
            {"details": ""},
            {("unreadable", 3, "a"), ("out_of_order", 5, "c"), ("out_of_order", 11, "c")},
        ),
        (
            3,
            {"details": "-"},
            {("unreadable", 3, "a"), ("out_of_order", 5, "c"), ("out_of_order", 11, "c")},
        ),
        (1, {"user_id": "-"}, {("unreadable", 1, "-")}),
        (2, {"user_id": ""}, {("unreadable", 2, ""), ("unlawful", 3, "a")}),
    ],
)
def test_an_edited_row_is_named(
    sale: Sale, seq: int, words: dict[str, Any], found: set[tuple[str, int | None, str | None]]
) -> None:
    """By its own seq, with what follows from it; the hash covers every word.

    The hash says `-` for nothing and for `-`; no script writes a row that could be read both ways.
    """
    assert named(violated(sale, sale.edited(seq, **words))) == found


@pytest.mark.parametrize(
    ("seq", "words", "rule", "says"),
    [
        (3, {"kind": "eaten"}, "unreadable", "'eaten' is no kind of change"),
        (3, {"event_id": None}, "unreadable", "booked is about event None"),
        (3, {"user_id": "a b"}, "unreadable", "booked is about user 'a b'"),
        (3, {"user_id": None}, "unreadable", "booked is about user None"),
        (3, {"details": "{}"}, "unreadable", "booked with details '{}'"),
        (2, {"details": '{"name":"N","totalTickets":"2"}'}, "unreadable", "opened with"),
        (2, {"details": '{"name":"N"}'}, "unreadable", "opened with"),
        (2, {"details": "[]"}, "unreadable", "opened with []"),
        (2, {"details": None}, "unreadable", "opened with None"),
        (7, {"details": None}, "unreadable", "an epoch_began with"),
        (7, {"event_id": 1}, "unreadable", "an epoch_began with"),
        (7, {"details": '{"beginning":5,"predecessor":1}'}, "epoch", "says {"),
        (7, {"kind": "left", "event_id": 1, "user_id": "d"}, "epoch", "epoch 3 begins without"),
        (8, {"kind": "epoch_began"}, "epoch", "an epoch_began inside an epoch"),
        (8, {"epoch": 1}, "epoch", "is of epoch 1; by the table epochs this seq is of 3"),
        (6, {"epoch": 3}, "epoch", "is of epoch 3; by the table epochs this seq is of 1"),
        (6, {"epoch": 2}, "epoch", "is of epoch 2; by the table epochs this seq is of 1"),
        (4, {"user_id": "a"}, "unlawful", "booked, who was booked"),
        (5, {"kind": "booked"}, "oversold", "3 of 2 tickets sold"),
        (10, {"user_id": "c"}, "unlawful", "promoted, who was gone from the waiting list"),
        (3, {"kind": "opened", "user_id": None, "details": '{"name":"N","totalTickets":2}'},
         "unlawful", "opened, which it was before"),
    ],
)  # fmt: skip
def test_each_rule_holds_by_itself(
    sale: Sale, seq: int, words: dict[str, Any], rule: str, says: str
) -> None:
    """Found by what the row says, though every hash and the cursor were made anew."""
    found = violated(sale, sale.forged(seq, **words))
    assert {v.rule for v in found if v.rule in ("hash", "gap", "cursor")} == set()
    assert [v for v in found if (v.seq, v.rule) == (seq, rule) and v.says.startswith(says)]


def test_a_promotion_out_of_order_is_named(sale: Sale) -> None:
    """With its hashes made anew: the rows 8 and 9 gone, c and d wait, and d is promoted first."""
    sale = Sale()
    sale.open(1, 1)
    sale.book(1, "a", "b", "c")
    sale.cancel(1, "a")
    found = violated(sale, sale.forged(7, user_id="c"))
    assert found == [Violation("out_of_order", 0, 7, 1, "c", "promoted before b")]


def test_keys_are_replayed_and_none_may_have_two_effects() -> None:
    """What the model keeps, the replay keeps; the second change under a key is named."""
    digest = "0123456789abcdef"
    sale = Sale()
    sale.open(1, 1)
    sale.book(1, "a", "b", keyed=f"k/{digest}")
    sale.cancel(1, "a", keyed=f"c/{digest}")
    replayed, violations = replay(sale)
    assert violations.number == 0
    assert replayed.events[1].keyed == {u: sale.model.events[1].kept(u) for u in "ab"}
    twice = f'{{"key":"k","digest":"{digest}","reassigned":true}}'
    found = violated(sale, sale.forged(5, details=twice))
    assert found == [Violation("unlawful", 0, 5, 1, "a", "cancelled under the key k, as at seq 3")]
    kept_back = f'{{"key":"c","digest":"{digest}"}}'
    found = violated(sale, sale.forged(5, details=kept_back))
    says = "is kept as cancelled under the key c, and was not"
    assert found == [Violation("unlawful", 0, 5, 1, "a", says)]


def test_a_promotion_that_was_cut_off_is_named() -> None:
    """With the cursor set back to the cancellation: the waiter's ticket is nobody's."""
    sale = Sale()
    sale.open(1, 1)
    sale.book(1, "a", "b")
    sale.cancel(1, "a")
    found = violated(sale, sale.rows()[:-1])
    assert found == [Violation("out_of_order", 0, 5, 1, "b", "waited, and was not promoted")]


def test_a_gap_is_named_by_the_row_behind_it(sale: Sale) -> None:
    """Once; the rows behind it follow from one another."""
    rows = sale.rows()
    found = violated(sale, rows[:4] + rows[5:])
    assert named(found) == {("gap", 6, "d"), ("unlawful", 8, "c")}
    assert found[0].says == "comes after seq 4"


def test_a_row_before_the_first_is_a_gap(sale: Sale) -> None:
    """Seqs begin at 1."""
    first = sale.changes[0]._replace(seq=0)
    assert ("gap", 0, None) in named(violated(sale, sale.rows([first, *sale.changes])))


def test_two_rows_swapped_are_both_named(sale: Sale) -> None:
    """A swap by hand of 5 and 6: the first no longer has its hash, nor the second."""
    rows = sale.rows()
    four, five = rows[4], rows[5]
    rows[4] = JournalRow(five.change._replace(seq=5), five.hash)
    rows[5] = JournalRow(four.change._replace(seq=6), four.hash)
    assert {("hash", 5, "d"), ("hash", 6, "c"), ("hash", 7, None)} <= named(violated(sale, rows))


def test_a_hash_made_anew_for_one_row_breaks_the_next(sale: Sale) -> None:
    """The chain shows it until all of them are."""
    rows = sale.rows()
    rows[3] = sale.forged(4, at=9)[3]
    assert named(violated(sale, rows)) == {("hash", 5, "c")}


def test_a_forged_end_is_found_by_the_cursor(sale: Sale) -> None:
    """It keeps the hash of the last row."""
    forged = sale.forged(11, at=9)
    assert named(violated(sale, forged, cursor=cursor_at(sale.rows()))) == {("cursor", 11, None)}


def test_a_journal_written_anew_is_found_by_a_head_that_was_kept(sale: Sale) -> None:
    """And by nothing else; a head from before the forgery still holds."""
    rows = sale.rows()
    forged = sale.forged(9, at=9)
    heads = [Head(0, row.change.epoch, row.change.seq, row.hash) for row in rows]
    assert violated(sale, forged) == []
    assert violated(sale, forged, kept=heads[:8]) == []
    found = violated(sale, forged, kept=[heads[7], heads[10]])
    assert [(v.rule, v.seq) for v in found] == [("kept_head", 11)]
    assert found[0].says.startswith(f"the kept head is 3-11 and hash {rows[10].hash.hex()[:16]}")


def test_a_head_that_was_kept_knows_its_epoch(sale: Sale) -> None:
    """A seq alone means nothing."""
    head = replay(sale)[0].head
    assert [v.rule for v in violated(sale, kept=[head._replace(epoch=1)])] == ["kept_head"]


def test_a_journal_that_went_back_is_found_by_a_head_that_was_kept(sale: Sale) -> None:
    """The row that it vouches for is not there."""
    head = replay(sale)[0].head
    found = violated(sale, sale.rows()[:8], kept=[head])
    assert named(found) == {("kept_head", 11, None)}
    assert "the journal does not have the row of the kept head 3-11" in found[0].says


@pytest.mark.parametrize(
    ("last", "rows", "found"),
    [
        (Position(3, 12), 11, ("cursor", 11)),
        (Position(2, 11), 11, ("cursor", 11)),
        (Position(3, 9), 11, ("cursor", 10)),
        (Position(3, 9), 0, ("cursor", None)),
    ],
)
def test_a_cursor_elsewhere_is_named(
    sale: Sale, last: Position, rows: int, found: tuple[str, int | None]
) -> None:
    """Whichever of the two goes further, and where it is of another epoch."""
    cursor = Cursor(last, cursor_at(sale.rows()).head)
    assert found in [(v.rule, v.seq) for v in violated(sale, sale.rows()[:rows], cursor=cursor)]


def test_rows_beyond_the_cursor_are_not_replayed(sale: Sale) -> None:
    """The tables stand where the cursor does; the first of these rows is named."""
    rows = sale.rows()
    replayed, violations = replay(sale, rows, cursor=cursor_at(rows[:8]))
    assert [(v.rule, v.seq) for v in violations.kept] == [("cursor", 9)]
    assert replayed.head.seq == 8
    assert replayed.events[1].sold == 2


@pytest.mark.parametrize(
    ("epochs", "seqs"),
    [
        ([Epoch(1, 0, 0, "begin")], {7, 8, 9, 10, 11}),
        ([], set(range(1, 12))),
        ([Epoch(1, 0, 0, "begin"), Epoch(3, 7, 1, "rebuild")], {7, 8}),
        ([Epoch(1, 0, 0, "begin"), Epoch(3, 6, 2, "rebuild")], {None, 7}),
        ([Epoch(1, 0, 0, "continue"), Epoch(3, 6, 1, "rebuild")], {None}),
        ([Epoch(1, 0, 0, "begin"), Epoch(3, 6, 1, "begin")], {None}),
        ([Epoch(1, 0, 0, "begin"), Epoch(2, 4, 1, "rebuild"), Epoch(3, 6, 1, "rebuild")],
         {None, 5, 6}),
        ([Epoch(1, 0, 0, "begin"), Epoch(3, 6, 1, "rebuild"), Epoch(4, 9, 3, "rebuild")], {10, 11}),
    ],
)  # fmt: skip
def test_epochs_that_are_not_the_journals_are_named(
    sale: Sale, epochs: list[Epoch], seqs: set[int | None]
) -> None:
    """One that is missing, begins elsewhere, has another predecessor, or was put in between."""
    found = violated(sale, lineage=Lineage(epochs))
    assert {v.rule for v in found} == {"epoch"}
    assert {v.seq for v in found} == seqs


def test_an_epoch_that_has_no_change_yet_is_lawful(sale: Sale) -> None:
    """Decided, and the writer has not come so far; or the attempt died and another cut it off."""
    epochs = [*sale.epochs, Epoch(4, 15, 3, "continue"), Epoch(5, 15, 3, "continue")]
    assert violated(sale, lineage=Lineage(epochs)) == []
    epochs = [*sale.epochs, Epoch(4, 15, 3, "continue"), Epoch(5, 11, 3, "rebuild")]
    assert violated(sale, lineage=Lineage(epochs)) == []


def test_a_rebuild_may_begin_before_an_epoch_that_came_to_nothing() -> None:
    """Epoch 2 was to continue at 9, the tail was lost, and epoch 3 was rebuilt at 3."""
    sale = Sale()
    sale.open(1, 2)
    sale.book(1, "a")
    sale.epochs.append(Epoch(2, 9, 1, "continue"))
    sale.begin(3)
    sale.epochs[-1] = Epoch(3, 3, 1, "rebuild")
    details = '{"beginning":3,"predecessor":1}'
    assert violated(sale, sale.forged(4, details=details)) == []


def test_an_event_is_of_its_own_partition() -> None:
    """Event 3 of two partitions is of partition 1."""
    sale = Sale(partition=1, partitions=2)
    sale.open(3, 1)
    sale.book(3, "a")
    assert violated(sale) == []
    found = violated(sale, sale.forged(3, event_id=2))
    assert found[0].says == "event 2 is not of this partition"


def test_the_partition_is_part_of_the_hash(sale: Sale) -> None:
    """A journal of one partition is none of another."""
    rows = hashed(1, sale.changes)
    assert {v.rule for v in violated(sale, rows)} == {"hash"}


def test_an_opening_that_is_missing_is_named_once(sale: Sale) -> None:
    """What depends on the capacity is not judged then."""
    rows = sale.rows()
    found = violated(sale, [rows[0], *rows[2:]])
    assert named(found) == {("gap", 3, "a"), ("unlawful", 3, "a")}
    assert found[1].says == "booked before the event was opened"


def test_only_what_is_asked_for_is_replayed_and_the_chain_is_whole() -> None:
    """Seqs, epochs and hashes of all events are looked at all the same."""
    sale = Sale()
    for event_id in (1, 2):
        sale.open(event_id, 1)
        sale.book(event_id, "a")
    assert replay(sale, only=[2])[0].events.keys() == {2}
    unlawful = sale.forged(3, kind="left")
    assert violated(sale, unlawful, only=[2]) == []
    assert named(violated(sale, sale.edited(3, kind="left"), only=[2])) == {("hash", 3, "a")}


def test_violations_without_end_are_counted_and_not_kept(
    sale: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded where a whole journal is wrong."""
    monkeypatch.setattr(Violations, "KEPT_MAX", 3)
    _, found = replay(sale, lineage=Lineage())
    assert (len(found.kept), found.number, found.by_rule["epoch"]) == (3, 11, 11)
    assert found.by_event[1] == 9


class TestResult:
    """The tables against what the journal comes to."""

    BOOKINGS = (
        BookingRow(1, "a", "booked", 1, 3),
        BookingRow(1, "b", "cancelled", 1, 9),
        BookingRow(1, "c", "waiting", 1, 11),
        BookingRow(1, "d", "booked", 1, 10),
    )
    EVENT = EventRow(1, "open", "First night", 2, 2, 1)

    def compared(
        self,
        sale: Sale,
        bookings: tuple[BookingRow, ...] = BOOKINGS,
        events: tuple[EventRow, ...] = (EVENT,),
    ) -> list[Violation]:
        replayed, violations = replay(sale)
        result = ReplayResult(replayed.events, 1, violations)
        result.judge_events(events)
        result.take_bookings(bookings[:2])
        result.take_bookings(bookings[2:])
        result.end_bookings()
        return violations.kept

    def test_tables_that_agree_hold(self, sale: Sale) -> None:
        """An event that was drawn and never opened is no disagreement."""
        assert self.compared(sale) == []
        drawn = EventRow(2, "opening", "Second night", 5, 0, 0)
        assert self.compared(sale, events=(self.EVENT, drawn)) == []

    @pytest.mark.parametrize(
        ("place", "row", "found"),
        [
            (0, None, (3, "a", "bookings has no row; the journal comes to booked at seq 3")),
            (
                1,
                BookingRow(1, "b", "booked", 1, 4),
                (9, "b", "bookings says booked at seq 4; the journal comes to cancelled at seq 9"),
            ),
            (
                2,
                BookingRow(1, "c", "waiting", 1, 5),
                (11, "c", "bookings says waiting at seq 5; the journal comes to waiting at seq 11"),
            ),
            (
                3,
                BookingRow(1, "d", "booked", 2, 10),
                (10, "d", "bookings says booked at seq 10, quantity 2; the journal comes to"),
            ),
        ],
    )
    def test_a_booking_that_differs_is_named(
        self, sale: Sale, place: int, row: BookingRow | None, found: tuple[int, str, str]
    ) -> None:
        """By the seq of the change that should have led to it."""
        rows = list(self.BOOKINGS)
        rows[place : place + 1] = [row] if row else []
        (violation,) = self.compared(sale, tuple(rows))
        assert violation[:5] == ("bookings", 0, found[0], 1, found[1])
        assert violation.says.startswith(found[2])

    @pytest.mark.parametrize("event_id", [1, 2])
    def test_a_booking_that_no_change_explains_is_named(self, sale: Sale, event_id: int) -> None:
        """There is no journal row to name."""
        row = BookingRow(event_id, "thief", "booked", 1, 9)
        says = "bookings says booked at seq 9; no change explains it"
        assert self.compared(sale, (*self.BOOKINGS, row)) == [
            Violation("bookings", 0, None, event_id, "thief", says)
        ]

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ({"sold": 1}, "events says sold 1; the journal comes to 2"),
            ({"waiting": 0}, "events says waiting 0; the journal comes to 1"),
            ({"capacity": 3}, "events says capacity 3; the journal comes to 2"),
            ({"name": "Last"}, "events says name 'Last'; the journal comes to 'First night'"),
            ({"status": "opening"}, "events says status 'opening'; the journal comes to 'open'"),
        ],
    )
    def test_an_event_that_differs_is_named(
        self, sale: Sale, words: dict[str, Any], says: str
    ) -> None:
        """By the seq of its opening."""
        events = (self.EVENT._replace(**words),)
        assert self.compared(sale, events=events) == [Violation("events", 0, 2, 1, None, says)]

    @pytest.mark.parametrize(
        ("event", "says"),
        [
            (None, "events has no such row; the journal has changes"),
            (EventRow(2, "open", "N", 1, 0, 0), "events says status 'open'"),
            (EventRow(2, "opening", "N", 1, 1, 0), "events says sold 1"),
        ],
    )
    def test_events_of_one_side_alone_are_named(
        self, sale: Sale, event: EventRow | None, says: str
    ) -> None:
        """One that the table lacks, one that no change opened, one that sold before."""
        found = self.compared(sale, events=(self.EVENT, event) if event else ())
        assert [v.rule for v in found] == ["events"]
        assert found[0].says.startswith(says)


def test_the_journal_words_are_those_of_the_writer() -> None:
    """The made-up journals of these tests have rows as the codec reads them."""
    sale = Sale()
    sale.open(1, 1)
    sale.book(1, "a")
    assert sale.changes[2] == Change(3, 1, FIRST_AT + 3_000, "booked", 1, "a", None)
