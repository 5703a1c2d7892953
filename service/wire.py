"""One connection to Redis on which all script calls of a worker travel, many in flight.

Commands asked for in one turn of the loop leave in one write; replies come back in their order.
The wire never sends anything twice: it says whether a command surely did not run (`NotExecuted`)
or may have (`Unknown`), and who asked decides. A caller that gives up keeps its place in the queue
of replies, so that nobody gets another's.
"""

import asyncio
from collections import deque
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

Reply = list[str]

_SILENT = 0.9
"""The part of an attempt's time without a reply after which the connection counts as lost: a
caller's clock starts a little before its command's."""

_NOT_EXECUTED = (
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "READONLY",
    "MASTERDOWN",
    "BUSY ",
    "MISCONF",
    "NOREPLICAS",
)
"""Beginnings of errors that come before a `#!lua` script's first line (PROTOCOL, rule 5)."""


class NotExecuted(Exception):
    """The command did not run, and may be sent again."""


class MissingScript(NotExecuted):
    """The script is not loaded: this Redis was restarted, or was never this epoch's."""


class OutOfMemory(NotExecuted):
    """Redis is full and refused to begin."""


class Unknown(Exception):
    """The command may have run, or not, or may run yet."""


class _Pending:
    """A command on its way: its reply, and whether it has left."""

    __slots__ = ("future", "packed", "sent", "since")

    def __init__(self, packed: bytes, future: asyncio.Future[Any]) -> None:
        self.packed = packed
        self.future = future
        self.sent = False
        self.since = asyncio.get_running_loop().time()

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # looked at: a caller that gave up leaves nobody else to do it


class _Link:
    """One connection, and the callers whose replies are to come over it, in order.

    They belong together: a reply can only reach somebody whose command left on this connection.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._unsent: list[_Pending] = []
        self._waiting: deque[_Pending] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self.lost = False
        self._reader = asyncio.get_running_loop().create_task(self._read())

    def send(self, future: asyncio.Future[Any], command: tuple[str | int, ...]) -> _Pending:
        """Queue a command for this turn's write. Raises NotExecuted on a lost connection."""
        if self.lost:
            raise NotExecuted("the connection was lost")
        pending = _Pending(b"".join(self._connection.pack_command(*command)), future)
        self._unsent.append(pending)
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())
        return pending

    async def _flush(self) -> None:
        """Write whatever was asked for in this turn, in one piece."""
        try:
            while self._unsent:
                batch, self._unsent = self._unsent, []
                for pending in batch:
                    pending.sent = True
                self._waiting.extend(batch)
                await self._connection.send_packed_command(
                    [pending.packed for pending in batch], check_health=False
                )
        except (RedisError, OSError) as error:
            self.lose(str(error))
        finally:
            self._flusher = None

    async def _read(self) -> None:
        """Hand each reply to the caller at the head of the queue."""
        while True:
            try:
                reply = await self._connection.read_response()
            except ResponseError as error:
                self._waiting.popleft().fail(_refusal(error))
            except (RedisError, OSError) as error:
                return self.lose(str(error) or type(error).__name__)
            else:
                future = self._waiting.popleft().future
                if not future.done():
                    future.set_result(reply)

    def silent_s(self) -> float:
        """Return how long the oldest command without a reply has waited for it."""
        queue = self._waiting or self._unsent
        return asyncio.get_running_loop().time() - queue[0].since if queue else 0.0

    def lose(self, why: str) -> None:
        """Give the connection up: what was sent is unknown, what was not may be sent again."""
        if self.lost:
            return
        self.lost = True
        for pending in self._waiting:
            pending.fail(Unknown(why))
        for pending in self._unsent:
            pending.fail(NotExecuted(why))
        self._unsent.clear()
        for task in (self._reader, self._flusher):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        closing = asyncio.get_running_loop().create_task(self._connection.disconnect(nowait=True))
        closing.add_done_callback(lambda task: task.cancelled() or task.exception())


class Wire:
    """A multiplexed connection, made when first needed and again after each loss.

    `attempt_timeout_s` bounds one send and its reply; a reply as late as that costs the connection,
    since everything behind it would be late too. Whoever has less time gives up alone.
    """

    def __init__(self, url: str, *, attempt_timeout_s: float = 1.0) -> None:
        """Remember where Redis is; nothing is connected yet."""
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,
            socket_connect_timeout=attempt_timeout_s,
        )
        self._attempt_timeout_s = attempt_timeout_s
        self._link: _Link | None = None
        self._connecting: asyncio.Task[_Link] | None = None

    async def call(self, *command: str | int, timeout_s: float | None = None) -> Any:
        """Send one command and return its reply.

        Raises NotExecuted, MissingScript or Unknown; a script's own failure is Unknown as well,
        since Lua has no rollback.
        """
        timeout_s = min(timeout_s or self._attempt_timeout_s, self._attempt_timeout_s)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        link: _Link | None = None
        pending: _Pending | None = None
        try:
            async with asyncio.timeout(timeout_s):
                link = self._link
                if link is None or link.lost:
                    link = await self._connect()
                pending = link.send(future, command)
                return await future
        except TimeoutError:
            sent = pending is not None and pending.sent
            if link is not None and link.silent_s() >= _SILENT * self._attempt_timeout_s:
                link.lose("no reply in time")
            raise (Unknown if sent else NotExecuted)("no reply in time") from None

    async def close(self) -> None:
        """Drop the connection; calls in flight end as Unknown."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None:
            self._link.lose("closing")
        await asyncio.sleep(0)

    async def _connect(self) -> _Link:
        """Connect, or share the attempt that is under way."""
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._open())
        task = self._connecting
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and self._connecting is task:
                self._connecting = None

    async def _open(self) -> _Link:
        """Connect, and make sure that the server answers: while it loads it runs no script."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self._attempt_timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_command("PING")
                await connection.read_response()
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise NotExecuted(str(error) or type(error).__name__) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._link = _Link(connection)
        return self._link


def _refusal(error: ResponseError) -> Exception:
    if isinstance(error, NoScriptError):
        return MissingScript(str(error))
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return OutOfMemory(text)
    if isinstance(error, _BY_CLASS) or text.startswith(_NOT_EXECUTED):
        return NotExecuted(text)
    return Unknown(text)


_BY_CLASS = (
    ReadOnlyError,
    ClusterDownError,
    AskError,
    TryAgainError,
    NoPermissionError,
)
"""redis-py cuts the beginning off those errors for which it has a class (MOVED is an ASK to it,
MASTERDOWN a CLUSTERDOWN)."""
