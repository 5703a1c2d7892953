"""What a Valkey holds, alone: read key by key, and held against the model at its own seq.

A script's effects are one unit: whatever Valkey has kept of its file, it is the state after some
call, never in the middle of one. Reads alone, and asks neither scripts nor the record.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from service import outbox
from service.keys import event_keys, partition_keys
from tests.model import Event, PartitionModel
from tests.torture.checker import done
from tests.torture.history import Row

_STATE = re.compile(r"(\S+) (\d+) 1 (\d+) ?(.*)")


def model_at(seq: int, rows: Sequence[Row]) -> PartitionModel:
    """Have the model do what is on record up to a seq; it may end one change beyond."""
    model = PartitionModel()
    for row in rows:
        if model.seq < row.change.seq <= seq:
            if row.change.kind == "epoch_began":
                model.seq += 1
            else:
                done(model, row)
    return model


def differences(url: str, rows: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence for each thing that is not as the journal has it at this Valkey's seq."""
    meta_key, _, outbox_key = partition_keys(0)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        valkey: Any = client
        meta = valkey.hgetall(meta_key)
        seq = int(meta.get("seq", 0))
        entries = [outbox.decode(*one) for one in valkey.xrange(outbox_key)]
        changes = [change for entry in entries for change in entry.changes]
        on_record = {row.change.seq: row.change for row in rows}
        if (changes[-1].seq if changes else 0) != seq:
            yield f"meta has seq {seq}, the outbox ends at {changes[-1:]}"
        if changes != [on_record.get(change.seq) for change in changes]:
            yield "the outbox has another change than the record"
        model = model_at(seq, rows)
        if model.seq != seq:
            yield f"meta has seq {seq}, in the middle of a call that ends at {model.seq}"
        keys = set(valkey.scan_iter("*:event:*"))
        if keys != {event_keys(0, event_id)[0] for event_id in model.events}:
            yield f"at seq {seq} there are the events {sorted(keys)}"
        for event_id, event in model.events.items():
            yield from _of_event(valkey, seq, event_id, event)


def _of_event(valkey: Any, seq: int, event_id: int, event: Event) -> Iterator[str]:
    event_key, users_key, waiting_list_key, gaps_key = event_keys(0, event_id)
    held = valkey.hmget(event_key, "capacity", "available", "waiting")
    counts = [event.capacity, event.available, len(event.waiting_list)]
    if held != [str(count) for count in counts]:
        yield f"at seq {seq} event {event_id} has {held}, the model {counts}"
    users, turns = {}, {}
    for user, text in valkey.hgetall(users_key).items():
        found = _STATE.fullmatch(text)
        assert found, text
        users[user] = found[1], int(found[2]), found[4]
        turns[user] = int(found[3])
    states = {user: (*event.states[user], event.kept(user)) for user in event.states}
    if users != states:
        wrong = {user for user, _ in users.items() ^ states.items()}
        yield f"at seq {seq} event {event_id} has other states of {sorted(wrong)}"
    line = [one.split() for one in valkey.lrange(waiting_list_key, 0, -1)]
    waiting = [user for turn, user in line if turns.get(user) == int(turn)]
    if waiting != event.waiting_list:
        yield f"at seq {seq} event {event_id} has another waiting list"
    gone = {turn for turn, user in line if turns.get(user) != int(turn)}
    if not gone <= set(valkey.zrange(gaps_key, 0, -1)):
        yield f"at seq {seq} event {event_id} lacks gaps of who left"
