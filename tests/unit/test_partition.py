"""What a worker makes of what a script says, and of what it does not hear."""

import asyncio
from typing import Any, cast

import pytest

from service.errors import Problem
from service.handshake import Handshake, Opened
from service.partition import Partition
from service.redis_store import RedisStore
from service.wire import ScriptFailed, Unknown, Wire

NOW = 1_795_340_000_000_000
OK = ["OK", "1", "7", str(NOW), "-"]
LATE = ["LATE", "1", "7", str(NOW + 7_200_000_000), ""]


class Saying(Wire):
    """A Redis that says one thing after the other, and at first has nothing to forget."""

    def __init__(self, *said: list[str] | Exception) -> None:
        self.sent: list[tuple[str | int, ...]] = []
        self._said = [OK, *said]

    async def call(self, *command: str | int, timeout_s: float | None = None) -> Any:  # noqa: ARG002  # it waits for nothing
        self.sent.append(command)
        said = self._said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


class Agreed:
    """A handshake that has nothing to do."""

    async def run(self, *_: object, **__: object) -> Opened:
        return Opened(1)


async def book(wire: Saying) -> list[str]:
    """Book, as a worker that has just begun."""
    handshake, redis = cast("Handshake", Agreed()), cast("RedisStore", None)
    partition = Partition(0, wire, redis, handshake, worker="w")
    deadline = asyncio.get_running_loop().time() + 3
    return (await partition.change("book", [], [], deadline)).words


async def test_a_call_that_is_late_by_another_clock_is_sent_again() -> None:
    """Redis's clock was set: the same call, with a time of that clock, is answered."""
    wire = Saying(LATE, [*OK, "BOOKED", "7", "0"])
    assert await book(wire) == ["BOOKED", "7", "0"]
    first, second = (int(command[5]) for command in wire.sent[1:])
    assert second - first > 7_000_000_000
    assert [command[4] for command in wire.sent[1:]] == [1, 1]


async def test_a_call_that_may_have_run_is_not_taken_for_late() -> None:
    """By a clock that was set its number may have been forgotten: it could run twice."""
    wire = Saying(Unknown("the connection was lost"), LATE)
    with pytest.raises(Problem) as caught:
        await book(wire)
    assert caught.value.code == "outcome_unknown"


async def test_a_script_that_failed_is_not_sent_again() -> None:
    """It may have written: `outcome_unknown`, and the epoch is not served again."""
    wire = Saying(ScriptFailed("DAMAGED WRONGTYPE"))
    with pytest.raises(Problem) as caught:
        await book(wire)
    assert caught.value.code == "outcome_unknown"
    assert len(wire.sent) == 2  # the first is the start's own
