"""What `onsale history` shows: a line for each change, a summary, or JSON.

Invariant: of people nothing but user ids, of the store's address nothing.
"""

import asyncio
import json
from typing import Any

from service.history import SET_ASIDE, Happening, NoHistoryError, Told, history
from service.looking import count, looked, printable, say, table
from service.times import from_microseconds

_NO_HISTORY = 1
_COUNTED = (
    ("booked", "booked at once"),
    ("waiting", "joined the waiting list"),
    ("promoted", "promoted"),
    ("cancelled", "cancelled"),
    ("left", "left the waiting list"),
    (SET_ASIDE, "set aside"),
)


def run(
    postgresql_url: str,
    event_id: int,
    user_id: str | None,
    *,
    limit: int,
    machine_readable: bool,
) -> int:
    """Tell, and return the exit code; what keeps it from that is one line on stderr."""
    told = looked(
        "reading",
        lambda on_progress: asyncio.run(
            history(postgresql_url, event_id, user_id, limit=limit, on_progress=on_progress)
        ),
        unknown=NoHistoryError,
        unknown_code=_NO_HISTORY,
    )
    if isinstance(told, int):
        return told
    say(json.dumps(as_json(told)) if machine_readable else render(told))
    return 0


def as_json(told: Told) -> dict[str, Any]:
    """Return the history as one JSON object."""
    return {
        "event": told.event_id,
        "user": told.user_id,
        "name": told.name,
        "totalTickets": told.capacity,
        "partition": told.partition,
        "until": {"epoch": told.until.epoch, "seq": told.until.seq},
        "changes": [_as_json(happening) for happening in told.shown],
        "leftOut": told.left_out,
        "summary": {
            "changes": told.number,
            **{kind: told.kinds[kind] for kind, _ in _COUNTED},
            "status": told.status,
            "nowBooked": told.sold,
            "nowWaiting": told.waiting,
        },
    }


def _as_json(happening: Happening) -> dict[str, Any]:
    change = happening.change
    return {
        "seq": change.seq,
        "epoch": change.epoch,
        "at": _time(change.at),
        "kind": change.kind,
        "user": change.user_id,
        "position": happening.position or None,
        "says": happening.says,
    }


def render(told: Told) -> str:
    """Return the history for a person: a line for each change, a summary at the end."""
    rows = [
        [
            _time(happening.change.at),
            f"{happening.change.epoch}",
            f"{happening.change.seq}",
            printable(happening.change.user_id or "-"),
            printable(happening.says),
        ]
        for happening in told.shown
    ]
    lines = table(["time", "epoch", "seq", "user", ""], rows, "<>><<").splitlines()
    if told.left_out:
        lines.insert(2, f"... {count(told.left_out, 'change')} not shown: --limit shows more")
    return "\n".join([*lines, "", _summary(told)])


def _summary(told: Told) -> str:
    counted = [f"{told.kinds[kind]:,} {words}" for kind, words in _COUNTED if told.kinds[kind]]
    changes = ": ".join(filter(None, (count(told.number, "change"), ", ".join(counted))))
    if told.user_id is not None:
        now = (told.status or "unknown").replace("_", " ")
        return f"event {told.event_id}, user {printable(told.user_id)}: {now} now; {changes}."
    now = f"{told.sold:,} of {told.capacity:,} tickets booked and {told.waiting:,} waiting now"
    return f"event {told.event_id}: {now}; {changes}."


def _time(at: int) -> str:
    try:
        moment = from_microseconds(at)
    except OverflowError:
        return "beyond all times"  # by hand: no clock says so
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
