"""The rows that changes come to, as parameters of the statements that write them. Pure.

They follow from the changes and from the chain's head before them, so that they can be made before
the transaction that writes them. Whoever holds the cursor's lock sees whether that is still the
head.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from service.columns import numbers, one_or_numbers, one_or_words, start_or_numbers, words
from service.errors import RefusedChangeError
from service.outbox import STATUS_AFTER, Change
from service.times import from_microseconds

_HASH_BYTES = 32
_SOLD = {"booked": 1, "promoted": 1, "cancelled": -1}
_WAITING = {"waiting": 1, "promoted": -1, "left": -1}


class UserRows(NamedTuple):
    """The last state of each user, and what it means for the events' counters.

    `users`: event and user of each row; `events`: ids. `parameters`: of the statement that writes
    them, without what is kept of keys, which only the record knows.
    """

    users: Sequence[tuple[int | None, str | None]]
    events: Sequence[int]
    parameters: tuple[object, ...]


class Rows(NamedTuple):
    """What goes on record of some changes. `after` and `head`: the chain's, before and behind.

    `hashes`: of each change, by seq; `journal`: the parameters of the statement that writes it,
    behind the partition.
    """

    after: bytes
    head: bytes
    hashes: Mapping[int, bytes]
    journal: tuple[object, ...]
    users: UserRows | None


def chain(head: bytes, partition: int, change: Change) -> bytes:
    """Return the hash of a journal row: SHA-256 over the one before and every word of this one."""
    seq, epoch, at, kind, event_id, user_id, details = change
    event = "-" if event_id is None else event_id
    text = f"{partition} {seq} {epoch} {at} {kind} {event} {user_id or '-'} {details or '-'}"
    return sha256(head + text.encode()).digest()


def chained(head: bytes, partition: int, changes: Sequence[Change]) -> dict[int, bytes]:
    """Return the hash of each change, by seq; the first one's leads on from `head`."""
    hashes: dict[int, bytes] = {}
    for change in changes:
        hashes[change.seq] = head = chain(head, partition, change)
    return hashes


def rows_of(after: bytes, changes: Sequence[Change], hashes: Mapping[int, bytes]) -> Rows:
    """Return the rows of changes, in order. Raises RefusedChangeError and OverflowError."""
    head = hashes[changes[-1].seq] if changes else after
    about_users = [c for c in changes if c.kind in STATUS_AFTER]
    users = _user_rows(about_users) if about_users else None
    return Rows(after, head, hashes, _journal(changes, hashes), users)


def _journal(changes: Sequence[Change], hashes: Mapping[int, bytes]) -> tuple[object, ...]:
    seqs, epochs, times, kinds, events, users, details = _transposed(changes)
    # PostgreSQL multiplies as a double does: a time since the first is exact for 285 years, one
    # since 1970 would not be for ever.
    first = min(times, default=0)
    from_microseconds(max(times, default=0))  # refused unless it can be read again
    all_hashes = b"".join([hashes[seq] for seq in seqs])
    if len(all_hashes) != _HASH_BYTES * len(changes):
        msg = "a hash that is no SHA-256"
        raise RefusedChangeError(msg)
    start, each_seq = start_or_numbers(seqs)
    epoch, each_epoch = one_or_numbers(epochs)
    kind, each_kind = one_or_words(kinds)
    event, each_event = one_or_numbers(events)
    detail, each_detail = one_or_words([text or "" for text in details])
    return (
        from_microseconds(first),
        all_hashes,
        len(changes),
        *(each_seq, each_epoch, numbers([at - first for at in times]), each_kind, each_event),
        *(words([user or "" for user in users]), each_detail),
        *(start, epoch, kind, event, detail),
    )


def _transposed(changes: Sequence[Change]) -> Sequence[Sequence[Any]]:
    """Return changes by column, in the order of a change's fields."""
    return tuple(zip(*changes, strict=True)) or ((),) * len(Change._fields)


def _user_rows(changes: Sequence[Change]) -> UserRows:
    """Return what changes about users come to: one may change several times."""
    latest = {(c.event_id, c.user_id): c for c in changes}
    seqs, _, times, kinds, events, names, _ = zip(*latest.values(), strict=True)
    first = min(times)
    newest: dict[int, int] = {c.event_id: c.at for c in changes if c.event_id is not None}
    tally = Counter([(c.event_id, c.kind) for c in changes])
    event, each_event = one_or_numbers(events)
    status, each_status = one_or_words([STATUS_AFTER[kind] for kind in kinds])
    start, each_seq = start_or_numbers(seqs)
    parameters = (
        from_microseconds(first),
        each_event,
        words([name or "" for name in names]),
        each_status,
        each_seq,
        numbers([at - first for at in times]),
        list(newest),
        [sum(by * tally[of, kind] for kind, by in _SOLD.items()) for of in newest],
        [sum(by * tally[of, kind] for kind, by in _WAITING.items()) for of in newest],
        [from_microseconds(at) for at in newest.values()],
        *(event, status, start, len(latest)),
    )
    return UserRows(tuple(latest), tuple(newest), parameters)
