"""The bench's own load generator, at a service that does nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from loadtests.benching import baselines, sender
from loadtests.benching.traffic import booking


@pytest_asyncio.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """Run the raw no-op."""
    async with baselines.running("raw", tmp_path) as running:
        yield running.address


async def test_open_loop_sends_all_that_is_due_and_waits_for_the_answers(address: str) -> None:
    """Half a second at 200 a second are 100 requests, each with its answer."""
    told = await sender.send(address, booking(1, "a-"), connections=4, seconds=0.5, rate=200)
    assert told["sent"] + told["unsent"] == 101  # the first is due at once, the last at the end
    assert told["statuses"] == {"201": told["sent"]}
    assert told["errors"] == 0


async def test_so_many_are_sent_and_no_more(address: str) -> None:
    """A count ends a closed loop, long before its time."""
    told = await sender.send(address, booking(1, "a-"), connections=4, seconds=60, count=50)
    assert told["sent"] == told["answers"] == 50
    assert told["seconds"] < 30


async def test_what_is_told_is_what_wrk_would_have_told(address: str) -> None:
    """Nothing is in flight at its end: the bound that wrk needs is not needed."""
    told = await sender.send(address, booking(1, "a-"), connections=2, seconds=0.2)
    sent = sender.sent_of(told)
    assert sent.good == sent.answers == told["sent"] > 0
    assert sent.in_flight_max == 0
    assert 0 < sent.p50_ms <= sent.p99_ms
