"""Changes under an Idempotency-Key: what is kept of them, and how it is written. Pure.

A user's last eight are kept as one text, oldest first, the same in Redis (behind the state) and on
record (`bookings.keyed`): `<key>/<digest>/<outcome>/<seq>`, with spaces between. On record
`kept` alone adds to it and cuts it; in Redis `include/keyed.lua` does the same.
"""

import json
import re
from hashlib import sha256
from typing import NamedTuple

KEPT_MAX = 8
"""Keyed changes of one user and event that are remembered."""

KEY_LENGTH_MAX = 64

KEY = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
"""What a key may be made of: no white space, and nothing that JSON would escape."""

_DETAILS = re.compile(
    r'\{"key":"([A-Za-z0-9_.:-]{1,64})","digest":"([0-9a-f]{16})"(,"reassigned":true)?\}'
)
_KINDS = frozenset({"booked", "waiting", "cancelled", "left"})
"""Changes that a request makes. A promotion is of somebody else's."""


class Keyed(NamedTuple):
    """What the details of a change say. `outcome`: the kind, or `reassigned` for a cancellation."""

    key: str
    digest: str
    outcome: str


def digest_of(operation: str, **fields: int) -> str:
    """Return what tells a payload from another: operation, and the fields beyond event and user."""
    payload = json.dumps([operation, fields], sort_keys=True, separators=(",", ":"))
    return sha256(payload.encode()).hexdigest()[:16]


def keyed_of(kind: str, details: str) -> Keyed | None:
    """Read the details of a change about a user; None where no script would have written them."""
    match = _DETAILS.fullmatch(details)
    if match is None or kind not in _KINDS or (match[3] and kind != "cancelled"):
        return None
    return Keyed(match[1], match[2], "reassigned" if match[3] else kind)


def kept(held: str, keyed: Keyed, seq: int) -> str:
    """Return what is kept after one change more: the last eight."""
    entries = [*held.split(), f"{keyed.key}/{keyed.digest}/{keyed.outcome}/{seq}"]
    return " ".join(entries[-KEPT_MAX:])


def keys_in(held: str) -> dict[str, int]:
    """Return the keys in a text that is kept, with the seqs of their changes."""
    entries = (entry.split("/") for entry in held.split())
    return {words[0]: int(words[3]) for words in entries}
