"""Steps at best effort: counted each time, said once, and once when they work again."""

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

import pytest
from redis.exceptions import NoScriptError, RedisError

from service.after_commit import AfterCommit
from service.failures import Failures
from service.ledger import Ledger
from service.lineage import Position
from service.metrics import Metrics
from service.redis_store import RedisStore
from service.wakeups import Wakeups
from service.watermark import Watermarks

AT = Position(1, 2)


class Failing:
    """A Redis of which every question fails, so long as there is something to raise."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def meta(self, *_: object) -> None:
        self._say()

    async def raise_watermark(self, *_: object) -> bool:
        self._say()
        return True

    async def outbox_size(self, *_: object) -> tuple[int, int]:
        self._say()
        return 0, 0

    def _say(self) -> None:
        if self.error is not None:
            raise self.error


def count(metrics: Metrics, step: str) -> float:
    """Return how often a step has failed."""
    return float(metrics.failed_steps.labels(step)._value.get())


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return what was logged, with its step."""
    found = [cast("dict[str, str]", r.msg) for r in caplog.records if isinstance(r.msg, dict)]
    return [(f["event"], f["step"]) for f in found if "step" in f]


async def test_what_follows_a_commit_fails_loudly_once(caplog: pytest.LogCaptureFixture) -> None:
    """A watermark and a trim that fail are counted, and said at warning; so is that it is over."""
    metrics, redis = Metrics(), Failing(RedisError("NOPERM"))
    after = AfterCommit(
        cast("RedisStore", redis),
        retained_bytes=1,
        clock=iter(range(0, 100, 10)).__next__,
        failures=Failures(metrics.failed_steps),
    )
    for error in (redis.error, redis.error, None, None):
        redis.error = error
        await after.run(cast("Ledger", None), {0: AT}, [0])
    assert (count(metrics, "watermark"), count(metrics, "trim")) == (2, 2)
    assert said(caplog) == [
        (event, step)
        for event in ("step fails", "step works again")
        for step in ("watermark", "trim")
    ]


async def test_a_watermark_without_its_script_is_kept_in_mind() -> None:
    """Until it can be raised: the writer asks for a handshake."""
    redis = Failing(NoScriptError("NOSCRIPT"))
    after = AfterCommit(cast("RedisStore", redis), retained_bytes=1, clock=lambda: 0.0)
    await after.run(cast("Ledger", None), {0: AT}, [0])
    assert after.without_scripts == {0}
    redis.error = None
    await after.run(cast("Ledger", None), {0: AT}, [0])
    assert after.without_scripts == set()


class NoMessages(Wakeups):
    """A subscription that is refused, then one message, then nothing."""

    def __init__(self) -> None:
        self.tries = 0

    async def listen(self) -> AsyncGenerator[int, None]:
        self.tries += 1
        if self.tries < 3:
            raise RedisError("NOPERM")
        yield 0
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        """Nothing is held."""


async def test_a_wakeup_that_never_comes_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """And once that it comes again; the looks go on, and theirs is another failure."""
    metrics, wakeups = Metrics(), NoMessages()
    watermarks = Watermarks(
        cast("RedisStore", Failing(None)), wakeups, 1, waiting_max=9, metrics=metrics
    )
    deadline = asyncio.get_running_loop().time() + 30
    waiting = asyncio.ensure_future(watermarks.reached(0, AT, deadline))
    async with asyncio.timeout(30):
        while ("step works again", "wakeup") not in said(caplog):
            await asyncio.sleep(0.01)
    waiting.cancel()
    await watermarks.stop()
    assert count(metrics, "wakeup") == 2
    assert [event for event, step in said(caplog) if step == "wakeup"] == [
        "step fails",
        "step works again",
    ]
