"""What `onsale deadletters` shows: tables or JSON, plans and what was done, one line why not.

Invariant: of people nothing but user ids, of the stores' addresses nothing.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from itertools import groupby
from typing import Any

import asyncpg

from service.deadletters import DeadLetters, Kept, Move, Retry
from service.handshake import Handshake, HandshakeImpossible, Opened, StaysClosed
from service.handshakes import make_handshakes
from service.looking import CANNOT_TELL, count, cut_short, looked, printable, rest, say, some, table
from service.outbox import Change
from service.redis_store import RedisStore
from service.setting_aside import NotPossible, Standing
from service.settings import Settings
from service.times import from_microseconds

_TO_DO = 1

Said = tuple[int, dict[str, Any], str]
"""Exit code, what --json prints beside it, what a person reads."""


def run_list(redis_url: str, postgresql_url: str, settings: Settings, *, as_json: bool) -> int:
    """Print what is kept and what stands; return the exit code: 0 when there is neither."""

    async def look(letters: DeadLetters) -> Said:
        kept = await letters.kept()
        found = bool(kept.letters or kept.standing)
        return _TO_DO if found else CANNOT_TELL if kept.unknown else 0, _kept(kept), _in_words(kept)

    return _run(redis_url, postgresql_url, settings, look, as_json=as_json)


def run_move(
    redis_url: str,
    postgresql_url: str,
    settings: Settings,
    partition: int,
    seqs: Collection[int],
    *,
    apply: bool,
    as_json: bool,
) -> int:
    """Set changes aside, or print the plan; return the exit code: 0 once they are."""

    async def move(letters: DeadLetters) -> Said:
        return _moved(await letters.move(partition, seqs, apply=apply))

    return _run(redis_url, postgresql_url, settings, move, as_json=as_json)


def run_retry(
    redis_url: str,
    postgresql_url: str,
    settings: Settings,
    event_id: int,
    *,
    apply: bool,
    as_json: bool,
) -> int:
    """Put an event's letters on record, or print the plan; return the exit code: 0 once done."""

    async def retry(letters: DeadLetters) -> Said:
        return _retried(event_id, await letters.retry(event_id, apply=apply))

    return _run(redis_url, postgresql_url, settings, retry, as_json=as_json)


def _run(
    redis_url: str,
    postgresql_url: str,
    settings: Settings,
    do: Callable[[DeadLetters], Awaitable[Said]],
    *,
    as_json: bool,
) -> int:
    def handshakes(redis: RedisStore, partitions: int) -> Mapping[int, Handshake]:
        deployed = settings.model_copy(update={"partitions": partitions})
        return make_handshakes(deployed, redis, "deadletters", postgresql_url=postgresql_url)

    async def done() -> Said:
        async with await DeadLetters.open(redis_url, postgresql_url, handshakes) as letters:
            try:
                return await do(letters)
            except NotPossible as error:
                return _TO_DO, {"says": str(error)}, f"Not possible: {error}."
            except HandshakeImpossible as error:
                text = f"Not now: {error}. `onsale deadletters list` shows how it stands."
                return CANNOT_TELL, {"says": str(error)}, text

    # Nothing is looked for that may be unknown: what is not there says NotPossible.
    said = looked("looking", lambda _: asyncio.run(done()), unknown=NotPossible)
    if isinstance(said, int):
        return cut_short(said, machine_readable=as_json)
    code, data, text = said
    say(json.dumps({"exitCode": code, **data}) if as_json else text)
    return code


# List.


def _kept(kept: Kept) -> dict[str, Any]:
    return {
        "events": [
            {
                "event": event_id,
                "partition": letters[0]["partition"],
                "letters": [_letter(letter) for letter in letters],
            }
            for event_id, letters in _by_event(kept)
        ],
        "standing": [_standing(found) for found in kept.standing],
        "unknown": [{"partition": p, "why": why} for p, why in kept.unknown.items()],
    }


def _by_event(kept: Kept) -> list[tuple[int, list[asyncpg.Record]]]:
    ordered = sorted(kept.letters, key=lambda letter: (letter["event_id"], letter["seq"]))
    return [(e, list(of)) for e, of in groupby(ordered, key=lambda letter: letter["event_id"])]


def _letter(letter: asyncpg.Record) -> dict[str, Any]:
    return {
        "seq": letter["seq"],
        "epoch": letter["epoch"],
        "at": _time(letter["at"]),
        "kind": letter["kind"],
        "user": letter["user_id"],
        "details": letter["details"],
        "reason": letter["reason"],
        "movedAt": _time(letter["moved_at"]),
    }


def _standing(found: Standing) -> dict[str, Any]:
    return {
        "partition": found.partition,
        "wentBack": found.went_back,
        "entry": found.entry.last.entry_id if found.entry else None,
        "why": found.why or None,
        "refused": [
            {
                "seq": change.seq,
                "kind": change.kind,
                "event": change.event_id,
                "user": change.user_id,
                "at": _time(from_microseconds(change.at)),
                "reason": _reason(found, change),
                "following": [later.seq for later in found.following(change)],
            }
            for change in found.changes
        ],
    }


def _in_words(kept: Kept) -> str:
    rows = [
        [
            f"{letter['event_id']}",
            f"{letter['partition']}",
            f"{letter['seq']}",
            _time(letter["moved_at"]),
            letter["kind"],
            printable(letter["user_id"] or "-"),
            printable(letter["reason"]),
        ]
        for _, letters in _by_event(kept)
        for letter in letters
    ]
    heads = ["event", "partition", "seq", "set aside", "change", "user", "reason"]
    parts = [table(heads, some(rows), ">>><<<<") + rest(len(rows), "dead letters")]
    parts += [_plan(found) for found in kept.standing]
    parts += [f"Partition {p}: cannot tell what stands: {why}" for p, why in kept.unknown.items()]
    events = len(_by_event(kept))
    if rows:
        parts.append(
            f"{count(len(rows), 'dead letter')}, {count(events, 'event')} frozen. Once the cause is"
            " gone: onsale deadletters retry EVENT_ID"
        )
    elif not kept.standing and not kept.unknown:
        parts.append("No dead letters, and no writer stands.")
    return "\n\n".join(part for part in parts if part)


# Move.


def _moved(move: Move) -> Said:
    if move.found is None:
        return 0, {"done": True, "says": "set aside before"}, "That is set aside already."
    frozen = sorted(move.found.refused)
    data = {"done": move.done is not None, "frozen": frozen, **_standing(move.found)}
    if move.done is None:
        return _TO_DO, data, _plan(move.found)
    letters = sum(1 + len(move.found.following(change)) for change in move.found.changes)
    events = f"{'event' if len(frozen) == 1 else 'events'} {', '.join(map(str, frozen))}"
    text = f"Set aside: {count(letters, 'change')} of {events}, frozen now. {_end(move.done)}"
    return _code(move.done), {**data, **_as_json(move.done)}, text


def _plan(found: Standing) -> str:
    """Say what stands, and what would set it aside."""
    head = f"The writer of partition {found.partition} stands"
    if found.went_back:
        head = f"The replay of partition {found.partition} stands"
    if found.entry is None:
        return f"{head}: {found.why}. This is not a change that could be set aside."
    lines = [f"{head} before entry {found.entry.last.entry_id}. PostgreSQL refuses"]
    for change in found.changes:
        who = f"event {change.event_id}, user {printable(change.user_id or '-')}"
        lines.append(f"  change {change.seq}: {change.kind}, {who}: {_reason(found, change)}")
        if following := found.following(change):
            seqs = ", ".join(str(later.seq) for later in following)
            lines.append(f"    with it would go what follows of that event: {seqs}")
    seqs = " ".join(str(change.seq) for change in found.changes)
    events = ", ".join(map(str, sorted(found.refused)))
    on = "then `onsale open`" if found.went_back else "and the writer goes on by itself"
    lines += [
        f"Mend the cause, {on}. Or set this aside, which freezes",
        f"event {events}:",
        f"  onsale deadletters move {found.partition} {seqs} --apply",
    ]
    return "\n".join(lines)


def _reason(found: Standing, change: Change) -> str:
    refused = found.refused.get(change.event_id or 0)
    return printable(refused.reason) if refused else ""


# Retry.


def _retried(event_id: int, retry: Retry) -> Said:
    letters = count(len(retry.letters), "dead letter")
    data: dict[str, Any] = {"event": event_id, "letters": len(retry.letters)}
    if not retry.letters:
        text = f"Event {event_id} has no dead letters: there is nothing to retry."
        return 0, {**data, "done": True, "refused": None, "says": "nothing to retry"}, text
    if retry.refused is not None:
        seq, reason = retry.refused
        text = (
            f"Refused again: change {seq} of event {event_id}: {printable(reason)}\n"
            f"Nothing was done; the event stays frozen, with {letters}."
        )
        refused = {"seq": seq, "reason": reason}
        return _TO_DO, {**data, "done": False, "refused": refused}, text
    if retry.done is None:
        text = (
            f"PostgreSQL takes {letters} of event {event_id}. To put this on record, and open the"
            f" event again:\n  onsale deadletters retry {event_id} --apply"
        )
        return _TO_DO, {**data, "done": False, "refused": None}, text
    text = f"On record: {letters} of event {event_id}, frozen no more. {_end(retry.done)}"
    return _code(retry.done), {**data, "done": True, **_as_json(retry.done)}, text


def _code(done: Opened | StaysClosed) -> int:
    return 0 if isinstance(done, Opened) else _TO_DO


def _as_json(done: Opened | StaysClosed) -> dict[str, Any]:
    if isinstance(done, Opened):
        return {"epoch": done.epoch}
    return {"staysClosed": done.reason}


def _end(done: Opened | StaysClosed) -> str:
    if isinstance(done, Opened):
        return f"The partition goes on in epoch {done.epoch}."
    return f"The partition stays closed: {done.reason}"


def _time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
