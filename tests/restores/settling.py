"""What an operator does where a sale stays closed: reads the range, and confirms it."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.deployment import Deployment
from tests.restores.attendance import Attendance

_RANGE = re.compile(r"partition 0: .*changes (\d+-)?\d+ to (\d+-)?\d+")


@dataclass(frozen=True)
class Confirmed:
    """The changes that were reported as lost, and confirmed to be."""

    first: int
    last: int


OnClosed = Callable[[], Awaitable[None]]


async def _nothing() -> None:
    """There is nothing to look at."""


async def sells_again(
    deployment: Deployment, people: Attendance, on_closed: OnClosed = _nothing
) -> Confirmed | None:
    """Wait until people are answered again; where they never would be, confirm what is lost.

    `on_closed` comes before that.
    """
    target = people.answered + 100
    known = len(people.heard)
    confirmed: Confirmed | None = None
    async with asyncio.timeout(90):
        while people.answered < target:
            closed = next((one for one in people.heard[known:] if one.code == "closed"), None)
            if closed is not None:
                assert _RANGE.search(closed.detail), closed.detail
                await on_closed()
                confirmed = await asyncio.to_thread(_confirm, deployment, confirmed)
                known = len(people.heard)
            await asyncio.sleep(0.02)
    return confirmed


def _confirm(deployment: Deployment, before: Confirmed | None) -> Confirmed | None:
    """Confirm what is shown; a loss that has turned out larger meanwhile is shown anew."""
    ended = deployment.onsale("confirm-loss", "--apply", "--json")
    assert ended.stdout, ended.stderr
    shown = json.loads(ended.stdout)["closed"]
    for one in shown:
        assert one["lost"] is not None, one
        first, last = one["lost"]["first"], one["lost"]["last"]
        if before is not None:
            first, last = min(first, before.first), max(last, before.last)
        before = Confirmed(first, last)
    return before
