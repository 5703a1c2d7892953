"""What people asked and what they were answered: one line for each operation, from start to end."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg

from service.outbox import Change
from service.record import change_of

Kind = Literal["book", "cancel", "look", "poll"]


@dataclass(slots=True)
class Operation:
    """One operation, however often it was sent; times in seconds of one monotonic clock.

    `key` is its Idempotency-Key, the same at each sending, and nobody else's; empty where the
    operation changes nothing. `completed` is None while there is no answer that says what it did.
    """

    kind: Kind
    event_id: int
    user: str
    key: str
    invoked: float
    completed: float | None = None
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    sends: int = 0

    @property
    def seq(self) -> int | None:
        """The seq of the change that the answer tells of."""
        found = self.body.get("seq")
        return found if isinstance(found, int) else None

    @property
    def state(self) -> str | None:
        """What the answer says of the user; in a problem `status` is a number."""
        found = self.body.get("status")
        return found if isinstance(found, str) else None

    def __str__(self) -> str:
        """Say what a person needs to find it in the journal."""
        return f"{self.kind} {self.event_id} {self.user} ({self.key or 'no key'}): {self.status}"


@dataclass(frozen=True, slots=True)
class Row:
    """One change on record, and the key that asked for it, empty for none."""

    partition: int
    change: Change
    key: str


async def read_journal(url: str) -> list[Row]:
    """Read the whole journal, partition by partition, in the order of seq."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT * FROM journal ORDER BY partition, seq")
    finally:
        await connection.close()
    return [Row(row["partition"], change_of(row), _key(row["details"])) for row in rows]


def _key(details: str | None) -> str:
    found = json.loads(details).get("key", "") if details else ""
    assert isinstance(found, str)
    return found


def write(path: str, operations: Sequence[Operation]) -> None:
    """Keep a history for who looks into a failure."""
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123  # a name from the environment
        for one in operations:
            line = {name: getattr(one, name) for name in Operation.__slots__}
            file.write(json.dumps(line) + "\n")
