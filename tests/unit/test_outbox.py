"""The outbox codec: what the scripts write comes back whole; anything else is named and refused."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import outbox
from service.errors import CorruptEntryError
from service.lineage import Position
from service.outbox import Change

KEYED = '{"key":"k","digest":"0123456789abcdef"}'
GOOD = {"v": "2", "at": "1795344632653574", "first": "3", "changes": "booked 5 a"}

user_ids = st.from_regex(r"[A-Za-z0-9._~@:+|=-]{1,64}", fullmatch=True)
event_ids = st.integers(1, 2**53 - 1)
lines = st.one_of(
    st.tuples(st.sampled_from(sorted(outbox.STATUS_AFTER)), event_ids, user_ids),
    st.tuples(st.just("opened"), event_ids, st.just("-"), st.just('{"name":"a  b"}')),
    st.tuples(st.just("epoch_began"), st.just("-"), st.just("-"), st.just('{"beginning":0}')),
)


@given(
    changes=st.lists(lines, min_size=1, max_size=20),
    first=st.integers(1, 2**53),
    epoch=st.integers(1, 2**53),
    at=st.integers(1, 2**53),
)
def test_an_entry_comes_back_whole(
    changes: list[tuple[object, ...]], first: int, epoch: int, at: int
) -> None:
    """Every kind, event and user that can be written is read as it was written, with dense seqs."""
    last = Position(epoch, first + len(changes) - 1)
    text = "\n".join(" ".join(map(str, change)) for change in changes)
    fields = {"v": "1", "at": str(at), "first": str(first), "changes": text}
    entry = outbox.decode(last.entry_id, fields)
    assert (entry.last, entry.first) == (last, first)
    assert list(entry.changes) == [
        Change(
            seq=first + place,
            epoch=epoch,
            at=at,
            kind=str(kind),
            event_id=event if isinstance(event, int) else None,
            user_id=str(user) if kind in outbox.STATUS_AFTER else None,
            details=str(details[0]) if details else None,
        )
        for place, (kind, event, user, *details) in enumerate(changes)
    ]


@pytest.mark.parametrize("user", ["-", "--", "0", "a" * 64])
def test_every_allowed_user_is_a_user(user: str) -> None:
    """Also the one whose id is the sign for none: the edge lets `-` in, so the record must too."""
    change = outbox.decode("1-3", {**GOOD, "changes": f"booked 5 {user}"}).changes[0]
    assert change.user_id == user


@pytest.mark.parametrize("kind", ["opened 5 -", "epoch_began - -"])
def test_details_are_the_rest_of_the_line(kind: str) -> None:
    """Spaces in the JSON belong to it."""
    change = outbox.decode("1-3", {**GOOD, "changes": kind + ' {"name": "a  b - c"}'}).changes[0]
    assert change.details == '{"name": "a  b - c"}'
    assert change.user_id is None


def test_fields_of_a_later_hand_are_no_obstacle() -> None:
    """An additional field is not read."""
    assert outbox.decode("1-3", {**GOOD, "trace": "x"}) == outbox.decode("1-3", GOOD)


BAD_FIELDS = {
    "a version of tomorrow": {"v": "3"},
    "no version at all": {"v": ""},
    "a time that is no number": {"at": "now"},
    "a time of zero": {"at": "0"},
    "a negative first": {"first": "-3"},
    "a first with a plus": {"first": "+3"},
    "a first with a blank": {"first": " 3"},
    "a first in other digits": {"first": "٣"},
    "a first as a float": {"first": "3.0"},
    "a first in hex": {"first": "0x3"},
    "a first with a line end": {"first": "3\n"},
    "a first too early": {"first": "2"},
    "a first too late": {"first": "4"},
    "no change": {"changes": ""},
    "a line too many": {"changes": "booked 5 a\nbooked 5 b"},
    "an empty line": {"first": "2", "changes": "booked 5 a\n"},
    "an unknown kind": {"changes": "sold 5 a"},
    "a kind in capitals": {"changes": "BOOKED 5 a"},
    "a kind alone": {"changes": "booked"},
    "a kind and an event": {"changes": "booked 5"},
    "no user": {"changes": "booked 5 "},
    "a user with a blank": {"changes": "booked 5 a b"},
    "a user of 65 characters": {"changes": "booked 5 " + "a" * 65},
    "a user with another character": {"changes": "booked 5 a/b"},
    "a user with an umlaut": {"changes": "booked 5 ü"},
    "a user with NUL": {"changes": "booked 5 a\x00"},
    "a booking without an event": {"changes": "booked - a"},
    "a booking of no number": {"changes": "booked five a"},
    "a booking of event 0": {"changes": "booked 0 a"},
    "a booking of event 05": {"changes": "booked 05 a"},
    "a booking of a negative event": {"changes": "booked -5 a"},
    "a booking of twenty digits": {"changes": "booked 10000000000000000000 a"},
    "a booking with details of no key": {"changes": "booked 5 a {}"},
    "a promotion with a key": {"changes": "promoted 5 a " + KEYED},
    "a key in the version before": {"v": "1", "changes": "booked 5 a " + KEYED},
    "an opening with a user": {"changes": "opened 5 a {}"},
    "an opening of nothing": {"changes": "opened - - {}"},
    "an epoch with an event": {"changes": "epoch_began 5 - {}"},
    "an epoch with a user": {"changes": "epoch_began - a {}"},
    "two blanks": {"changes": "booked  5 a"},
    "a blank before": {"changes": " booked 5 a"},
    "a carriage return": {"changes": "booked 5 a\r"},
}


@pytest.mark.parametrize("version", outbox.READABLE)
def test_this_version_and_the_one_before_are_read(version: str) -> None:
    """An upgrade meets entries that the older release wrote."""
    entry = outbox.decode("1-3", {**GOOD, "v": version, "changes": "booked 5 a"})
    assert entry.changes[0].details is None


def test_a_key_is_in_the_details() -> None:
    """As the journal keeps it."""
    entry = outbox.decode("1-3", {**GOOD, "v": "2", "changes": "booked 5 a " + KEYED})
    assert entry.changes[0].details == KEYED


@pytest.mark.parametrize("bad", BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_corrupt_entry_is_named(bad: dict[str, str]) -> None:
    """It is refused as a whole, and the message says which entry it is."""
    with pytest.raises(CorruptEntryError, match=r"^outbox entry 1-3: .+"):
        outbox.decode("1-3", {**GOOD, **bad})


@pytest.mark.parametrize("field", outbox.FIELDS)
def test_a_missing_field_is_named(field: str) -> None:
    """Both the entry and the field are in the message."""
    with pytest.raises(CorruptEntryError, match=rf"^outbox entry 1-3: .*{field}.* is missing$"):
        outbox.decode("1-3", {name: held for name, held in GOOD.items() if name != field})


@pytest.mark.parametrize(
    "entry_id",
    ["", "1", "1-", "-3", "0-3", "1-0", "01-3", "1-03", "1-3-1", "1-3\n", " 1-3", "1-*", "٣-3"],
)
def test_an_id_that_is_no_position_is_named(entry_id: str) -> None:
    """An id is `<epoch>-<seq>`, both at least 1, and written in one way only."""
    with pytest.raises(CorruptEntryError, match=re.escape(repr(entry_id))):
        outbox.decode(entry_id, GOOD)


def test_one_bad_change_refuses_the_whole_entry() -> None:
    """No change of it is read, the good ones before included."""
    with pytest.raises(CorruptEntryError, match="change 2 "):
        outbox.decode("1-3", {**GOOD, "first": "1", "changes": "booked 5 a\nsold 5 b\nbooked 5 c"})


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(changes: str) -> None:
    """Whatever stands in `changes`, nothing but CorruptEntryError comes out."""
    seqs = [3]
    with contextlib.suppress(CorruptEntryError):
        seqs = [c.seq for c in outbox.decode("1-3", {**GOOD, "changes": changes}).changes]
    assert seqs == [3]
