"""The outbox entry: what the scripts append, read back. The codec and nothing else.

An entry is one script call, a change is one seq and one journal row. The entry's id is
`<epoch>-<seq of its last change>`. Version 2: fields `v`, `at` (microseconds since 1970 of Redis's
clock), `first` (seq of the first change), `changes` (lines of `kind event user details`; `-` stands
for none, details is JSON and may be absent); and `awaited` 1 where somebody waits until the entry
is on record. In version 1 changes about users had no details; now those of a request with an
Idempotency-Key have. An entry that this cannot read is never skipped.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from service.errors import CorruptEntryError
from service.keyed import keyed_of
from service.lineage import Position

VERSION = "2"
READABLE = ("1", VERSION)
"""The writer reads this version and the one before."""

FIELDS = ("v", "at", "first", "changes")
AWAITED = "awaited"
"""The one field that an entry may have or not; it says nothing of the changes."""

STATUS_AFTER: Mapping[str, str] = {
    "booked": "booked",
    "promoted": "booked",
    "waiting": "waiting",
    "cancelled": "cancelled",
    "left": "left_waiting_list",
}
"""Kinds that are about a user, and the user's status after each."""

KINDS = frozenset({"epoch_began", "opened", *STATUS_AFTER})


class Change(NamedTuple):
    """One change of one partition: one seq, one journal row."""

    seq: int
    epoch: int
    at: int
    kind: str
    event_id: int | None
    user_id: str | None
    details: str | None


_change_of = partial(tuple.__new__, Change)
"""A change of a tuple of its fields: 0.1 µs of the 0.9 a line less than by Change's own call."""


class Entry(NamedTuple):
    """One script call's changes, in order."""

    last: Position
    first: int
    changes: tuple[Change, ...]


_BIGINT_MAX = 2**63 - 1
_DIGITS_MAX = 19
_USER = re.compile(r"[A-Za-z0-9._~@:+|=-]{1,64}")
_ABOUT_USER = re.compile(
    # At most 18 digits are a bigint, whatever they are.
    rf"^({'|'.join(STATUS_AFTER)}) ([1-9][0-9]{{0,17}}) ({_USER.pattern})(?: (\{{.+))?$",
    re.MULTILINE,
)
"""A line about a user, as the scripts write nearly all: kind, event, user, details or none."""


def parse_id(entry_id: str) -> Position:
    """Return the position that an entry's id says. Raises CorruptEntryError."""
    epoch, _, seq = entry_id.partition("-")
    last = Position(_whole(epoch), _whole(seq))
    if not (last.epoch and last.seq):
        msg = f"outbox entry {entry_id!r}: its id is not <epoch>-<seq>"
        raise CorruptEntryError(msg)
    return last


def decode(entry_id: str, fields: Mapping[str, str]) -> Entry:
    """Read one entry. Raises CorruptEntryError, which names the entry and what is wrong with it."""
    last = parse_id(entry_id)
    try:
        return _entry(last, fields)
    except KeyError as error:
        msg = f"outbox entry {entry_id}: the field {error} is missing"
        raise CorruptEntryError(msg) from None
    except ValueError as error:
        msg = f"outbox entry {entry_id}: {error}"
        raise CorruptEntryError(msg) from None


def _entry(last: Position, fields: Mapping[str, str]) -> Entry:
    if fields["v"] not in READABLE:
        msg = f"version {fields['v']!r} is not known here"
        raise ValueError(msg)
    at, first = _number(fields["at"]), _number(fields["first"])
    text = fields["changes"]
    count = text.count("\n") + 1
    if first + count - 1 != last.seq:
        msg = f"{count} changes from {first} do not end at {last.seq}"
        raise ValueError(msg)
    # One pass over the whole text where every line is of the one shape (measured: 0.9 µs a change);
    # line by line (2 µs) where one is not, which finds what is wrong with it.
    found = _ABOUT_USER.findall(text)
    if len(found) == count and ("{" not in text or _are_keyed(found, fields["v"])):
        epoch = last.epoch
        changes = [
            _change_of((seq, epoch, at, kind, int(event), user, details or None))
            for seq, (kind, event, user, details) in enumerate(found, start=first)
        ]
    else:
        changes = [
            _change(line, seq, last.epoch, at, fields["v"])
            for seq, line in enumerate(text.split("\n"), start=first)
        ]
    return Entry(last, first, tuple(changes))


def _are_keyed(found: list[tuple[str, str, str, str]], version: str) -> bool:
    """Whether details, where there are any, are those that a request with a key leaves."""
    return version != "1" and all(
        not details or keyed_of(kind, details) for kind, _, _, details in found
    )


def _change(line: str, seq: int, epoch: int, at: int, version: str) -> Change:
    kind, event, user, *details = line.split(" ", 3) if line.count(" ") > 1 else (line, "", "")
    if kind not in KINDS:
        msg = f"change {seq} is of no known kind: {line!r}"
        raise ValueError(msg)
    about_user = kind in STATUS_AFTER
    if (event == "-") != (kind == "epoch_began") or (user != "-" and not about_user):
        msg = f"change {seq} has the wrong parts for its kind: {line!r}"
        raise ValueError(msg)
    if not about_user and not details:
        msg = f"change {seq} lacks its details: {line!r}"
        raise ValueError(msg)
    if about_user and _USER.fullmatch(user) is None:
        msg = f"change {seq} names no user that could have asked: {line!r}"
        raise ValueError(msg)
    if about_user and details and (version == "1" or keyed_of(kind, details[0]) is None):
        msg = f"change {seq} has details that no request leaves: {line!r}"
        raise ValueError(msg)
    return Change(
        seq=seq,
        epoch=epoch,
        at=at,
        kind=kind,
        event_id=None if event == "-" else _number(event),
        user_id=user if about_user else None,
        details=details[0] if details else None,
    )


def _number(text: str) -> int:
    if not (number := _whole(text)):
        msg = f"{text!r} is not a number"
        raise ValueError(msg)
    return number


def _whole(text: str) -> int:
    """Return a number from 1 to 2^63 - 1, 0 for any other text; there is one way to write each."""
    # int() alone takes blanks, signs, underscores and the digits of other scripts.
    if not (text.isascii() and text.isdecimal()) or text[0] == "0" or len(text) > _DIGITS_MAX:
        return 0
    number = int(text)
    return number if number <= _BIGINT_MAX else 0
