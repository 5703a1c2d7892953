"""One worker's calls of one partition: each has one effect and one reply.

A call of a changing script is numbered and sent again, the same, until its reply is known, its
deadline is past, or its epoch has ended; the script remembers the last one. What may have happened
and cannot be found out is answered `outcome_unknown`, never guessed. A Redis that lost its scripts,
fences this worker or went back in time asks for a handshake (`opening`), during which calls wait.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

from redis.exceptions import RedisError

from service.errors import Problem
from service.handshake import Handshake
from service.keys import partition_keys
from service.lineage import Position
from service.opening import Opening, Serving
from service.redis_store import RedisStore
from service.suspension import Suspension
from service.wire import (
    MissingScript,
    NotExecuted,
    OutboxRefused,
    OutOfMemory,
    ScriptFailed,
    Unknown,
    Wire,
)

_HEADER = 5
_PAUSE_S = 0.02
_PAUSE_MAX_S = 0.5


@dataclass(frozen=True, slots=True)
class Reply:
    """What a script said: R at that moment, and the words behind the header."""

    last: Position
    clock: int
    words: list[str]


@dataclass(slots=True)
class _Fate:
    """What is known of one call.

    Its number; the latest time at which it may run, the same in every send; the epoch in which a
    send of it may have run; and why Redis refused the last send, empty where it did not.
    """

    caller: str
    number: int
    latest: int = 0
    unknown_in: int | None = None
    attempts: int = 0
    refused_because: str = ""


class Partition:
    """Calls scripts of one partition for one worker. Raises Problem, and nothing else."""

    def __init__(
        self,
        number: int,
        wire: Wire,
        redis: RedisStore,
        handshake: Handshake,
        *,
        worker: str,
        suspension: Suspension | None = None,
    ) -> None:
        """`worker` is fresh and random at each process start."""
        self.number = number
        self.keys = partition_keys(number)
        self._wire = wire
        self._redis = redis
        self._opening = Opening(number, redis, handshake, self._tidy, suspension or Suspension())
        self._worker = worker
        self._numbers: dict[str, int] = {}
        self._tidied = False
        self._clock_ahead_us = 0
        self.booked_at = -math.inf
        """When a booking was last taken, of the loop's clock."""

    def start(self) -> None:
        """Begin to open, in the background."""
        self._opening.start()

    async def stop(self) -> None:
        """End what runs in the background; calls from here on are `unavailable`."""
        await self._opening.stop()

    async def change(
        self, script: str, keys: Sequence[str], arguments: Sequence[str | int], deadline: float
    ) -> Reply:
        """Call a changing script, numbered. One call of a script at a time.

        `deadline` is of the loop's clock, in seconds. Raises Problem: `unavailable` and `closed`
        when it surely had no effect, `outcome_unknown` when it may have had.
        """
        self._numbers[script] = self._numbers.get(script, 0) + 1
        fate = _Fate(f"{self._worker}:{script}", self._numbers[script])
        try:
            while True:
                serving = await self._opening.served(deadline)
                if fate.unknown_in not in (None, serving.epoch):
                    raise Problem("outcome_unknown")
                fate.latest = fate.latest or self._redis_clock(deadline)
                call = (fate.caller, fate.number, fate.latest, *arguments)
                reply = await self._attempt(serving, script, keys, call, deadline, fate)
                if reply is None:
                    continue
                if reply[0] == "OK":
                    if (accepted := self._accept(serving, reply)) is None:
                        raise Problem("outcome_unknown")
                    return accepted
                # LATE by Redis's clock and not by the loop's: it was not known, or has been set. By
                # one that was set a worker that starts may have had this one's last call forgotten,
                # so that this call has surely not run only where no send of it is unknown.
                is_late = reply[0] == "LATE"
                if reply[0] == "STALE_CALL" or (is_late and fate.unknown_in is not None):
                    raise Problem("outcome_unknown")
                if is_late:
                    fate.latest = 0
                else:
                    self._refused(serving, reply)
        except Problem as problem:
            if fate.unknown_in is None:
                raise
            raise Problem("outcome_unknown") from problem

    async def ask(
        self, script: str, keys: Sequence[str], arguments: Sequence[str | int], deadline: float
    ) -> Reply:
        """Call a script that may run any number of times.

        Raises Problem: `unavailable`, `closed`.
        """
        fate = _Fate("", 0)
        while True:
            serving = await self._opening.served(deadline)
            reply = await self._attempt(serving, script, keys, arguments, deadline, fate)
            if reply is None:
                continue
            if reply[0] != "OK":
                self._refused(serving, reply)
            elif (accepted := self._accept(serving, reply)) is not None:
                return accepted

    async def once(
        self,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[str | int],
        deadline: float,
        *,
        epoch: int,
    ) -> Reply:
        """Call a script at most once, in one epoch: a fate that is unknown is not looked into.

        Raises Problem `unavailable` when it may not have run, `closed`.
        """
        serving = await self._opening.served(deadline)
        if serving.epoch != epoch:
            raise Problem("unavailable")
        reply = await self._attempt(serving, script, keys, arguments, deadline, _Fate("", 0))
        if reply is not None and reply[0] != "OK":
            self._refused(serving, reply)
        elif reply is not None and (accepted := self._accept(serving, reply)) is not None:
            return accepted
        raise Problem("unavailable")

    async def probe(self, unrecorded_max: int, deadline: float) -> tuple[Position, int]:
        """Ask whether a booking would be taken now; return R, and the seq of W.

        Raises Problem with the reason, `unavailable`, `closed` or `record_behind`.
        """
        keys = [self.keys.meta, self.keys.outbox]
        reply = await self.ask("probe", keys, [unrecorded_max], deadline)
        outcome, recorded = reply.words
        if outcome == "OUTBOX_AHEAD":
            self._opening.damaged(reply.last.epoch, "the outbox is ahead")
            raise Problem("unavailable", "Redis refuses entries of the outbox: it is ahead.")
        if outcome == "RECORD_BEHIND":
            raise Problem("record_behind")
        return reply.last, int(recorded)

    async def watermark(self, epoch: int) -> Position | None:
        """Return W as an epoch has it, None where Redis is in another by now. Raises Problem."""
        try:
            meta = await self._redis.meta(self.number)
        except (RedisError, OSError) as error:
            self._opening.note(str(error) or type(error).__name__)
            raise Problem("unavailable") from error
        return meta.recorded if meta and meta.epoch == epoch else None

    def doubt(self, epoch: int) -> None:
        """Have the stores compared before the next call, if that epoch still serves."""
        self._opening.doubt(epoch)

    async def _attempt(
        self,
        serving: Serving,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[str | int],
        deadline: float,
        fate: _Fate,
    ) -> list[str] | None:
        """Send once. None, after a pause, when there is no reply; `fate` says what that means.

        Raises Problem when the deadline is past, when Redis is full, or when the script failed.
        """
        loop = asyncio.get_running_loop()
        if deadline <= loop.time():
            raise Problem("unavailable", fate.refused_because)
        try:
            return await self._evaluate(serving, script, keys, arguments, deadline - loop.time())
        except MissingScript:
            self._opening.lost(serving)
            return None
        except OutOfMemory as error:
            self._opening.note(str(error))
            raise Problem("unavailable", error.reason) from error
        except OutboxRefused as error:
            self._opening.damaged(serving.epoch, str(error))
            return None
        except ScriptFailed as error:
            fate.unknown_in = serving.epoch
            self._opening.damaged(serving.epoch, str(error))
            raise Problem("unavailable", "A script failed; Redis is rebuilt.") from error
        except NotExecuted as error:
            fate.refused_because = error.reason
            self._opening.note(str(error))
        except Unknown as error:
            fate.unknown_in = serving.epoch
            self._opening.note(str(error))
        pause = min(_PAUSE_S * 2**fate.attempts, _PAUSE_MAX_S)
        fate.attempts += 1
        await asyncio.sleep(max(0.0, min(pause, deadline - loop.time())))
        return None

    async def _evaluate(
        self,
        serving: Serving,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[str | int],
        timeout_s: float,
    ) -> list[str]:
        sha = serving.scripts[script].sha
        reply: list[str] = await self._wire.call(
            "EVALSHA", sha, len(keys), *keys, *arguments, timeout_s=timeout_s
        )
        self._clock_ahead_us = int(reply[3]) - int(asyncio.get_running_loop().time() * 1e6)
        return reply

    def _redis_clock(self, at: float) -> int:
        """Return a time of the loop's clock as Redis would tell it, in microseconds.

        Taken from the last reply, so a little early, never late. Before the first reply Redis's
        clock is not known: such a call is answered LATE, with the time, and sent again.
        """
        return max(0, int(at * 1e6) + self._clock_ahead_us)

    def _accept(self, serving: Serving, reply: list[str]) -> Reply | None:
        """Take a reply; None when Redis went back behind one that this worker has seen."""
        last = Position(serving.epoch, int(reply[2]))
        if not self._opening.saw(serving, last):
            return None
        return Reply(last, int(reply[3]), reply[_HEADER:])

    def _refused(self, serving: Serving, reply: list[str]) -> None:
        """UNINIT or FENCED: nothing was done. A partition that stays closed says why."""
        if reply[0] == "FENCED" and reply[4]:
            self._opening.stays_closed(reply[4])
        self._opening.lost(serving)

    async def _tidy(self, serving: Serving) -> None:
        """At a worker's start, at best effort: forget callers that have long gone."""
        if self._tidied:
            return
        self._tidied = True
        keys = [self.keys.meta, self.keys.calls]
        try:
            await self._evaluate(serving, "forget_callers", keys, (), 1.0)
        except (NotExecuted, Unknown) as error:  # the next start does it
            self._opening.note(f"callers that have gone are kept: {error}")
