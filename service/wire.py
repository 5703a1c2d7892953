"""One connection to Redis on which all script calls of a worker travel, many in flight.

redis-py connects, greets and authenticates; then the transport is the wire's own, for its reader
costs several turns of the loop between a reply and the call that waits for the next one. Replies
come back in the order of the commands.
The wire never sends anything twice: it says whether a command surely did not run (`NotExecuted`)
or may have (`Unknown`), and who asked decides. A caller that gives up keeps its place in the queue
of replies, so that nobody gets another's.
"""

import asyncio
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

_SILENT = 0.9
"""The part of an attempt's time without a reply after which the connection counts as lost: a
caller's clock starts a little before its command's."""

_NOT_EXECUTED: Mapping[str, str] = {
    "MOVED ": "",
    "ASK ": "",
    "TRYAGAIN ": "",
    "CLUSTERDOWN ": "",
    "READONLY ": "Redis is a read-only replica now.",
    "MASTERDOWN ": "Redis is a replica now, and its primary is down.",
    "LOADING ": "Redis is loading its data.",
    "NOPERM ": "Redis denies this user a command.",
    "BUSY ": "Redis is busy with a script.",
    "MISCONF ": "Redis cannot write to its disk.",
    "NOREPLICAS ": "Redis has fewer replicas than min-replicas-to-write.",
}
"""Beginnings of errors that come before a `#!lua` script's first line (PROTOCOL, rule 5), and the
reason that a client is given."""

_ELSEWHERE = ("READONLY ", "MASTERDOWN ", "LOADING ")
"""Beginnings of errors after which the address may lead to another server: its name is looked up
again, by a new connection."""

_RETIRE_AFTER_S = 0.5
"""A younger connection is kept after such an error, so that a replica is not stormed."""

_STALE_ID = "equal or smaller than the target stream top item"
_DAMAGED = "DAMAGED "
_IN_A_SCRIPT = re.compile(r"user_script|script: [0-9a-f]{40}")
"""Text of every error that was raised inside a script."""

_MORE = object()
"""What the reader returns until a reply is whole."""


class NotExecuted(Exception):
    """The command did not run, and may be sent again.

    `reason` is a sentence for the client where Redis itself refused, empty otherwise.
    """

    reason = ""


class MissingScript(NotExecuted):
    """The script is not loaded: this Redis was restarted, or was never this epoch's."""


class OutOfMemory(NotExecuted):
    """Redis is full and refused to begin."""

    reason = "Redis has no memory left."


class OutboxRefused(NotExecuted):
    """The entry's id lies below another in the outbox: the script has written nothing."""


class Unknown(Exception):
    """The command may have run, or not, or may run yet."""


class ScriptFailed(Unknown):
    """A script ended with an error, maybe after its first write: it is not to be sent again."""


class _Pending:
    """A command on its way, and who waits for its reply."""

    __slots__ = ("future", "since")

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.future = future
        self.since = asyncio.get_running_loop().time()

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # looked at: a caller that gave up leaves nobody else to do it


class _Link(asyncio.Protocol):
    """One connection, and the callers whose replies are to come over it, in order.

    They belong together: a reply can only reach somebody whose command left on this connection.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        """Take over a connection on which no reply is outstanding."""
        self._connection = connection
        self._reader = hiredis.Reader(encoding="utf-8", notEnoughData=_MORE)
        self._waiting: deque[_Pending] = deque()
        self.lost = self.retired = False
        self._since = asyncio.get_running_loop().time()
        self._transport: asyncio.Transport = connection._writer.transport  # type: ignore[union-attr,assignment]  # noqa: SLF001  # no public name
        self._transport.set_protocol(self)

    def send(self, future: asyncio.Future[Any], command: tuple[str | int, ...]) -> None:
        """Write a command. Raises NotExecuted on a lost connection."""
        if self.lost:
            raise NotExecuted("the connection was lost")
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub means one word
        self._waiting.append(_Pending(future))
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        """Hand each reply to the caller at the head of the queue."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _MORE:
                if isinstance(reply, hiredis.PushNotification):
                    continue
                pending = self._waiting.popleft()
                if isinstance(reply, hiredis.ReplyError):
                    pending.fail(_refusal(str(reply)))
                    if str(reply).startswith(_ELSEWHERE):
                        self._retire()
                elif not pending.future.done():
                    pending.future.set_result(reply)
        except (hiredis.HiredisError, UnicodeError, IndexError) as error:
            self.lose(f"not a reply: {error}")
        if self.retired and not self._waiting:
            self.lose("the server takes no changes")

    def _retire(self) -> None:
        """Take no further command: the next is for a new connection. Replies still come."""
        if asyncio.get_running_loop().time() - self._since >= _RETIRE_AFTER_S:
            self.retired = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        self.lose(str(exc or "") or "the connection was closed")

    def silent_s(self) -> float:
        """Return how long the oldest command without a reply has waited for it."""
        if not self._waiting:
            return 0.0
        return asyncio.get_running_loop().time() - self._waiting[0].since

    def lose(self, why: str) -> None:
        """Give the connection up: what was sent is unknown."""
        if self.lost:
            return
        self.lost = True
        for pending in self._waiting:
            pending.fail(Unknown(why))
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

        Raises NotExecuted, MissingScript or Unknown; a script's own failure is ScriptFailed,
        since Lua has no rollback.
        """
        timeout_s = min(timeout_s or self._attempt_timeout_s, self._attempt_timeout_s)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        link: _Link | None = None
        sent = False
        try:
            async with asyncio.timeout(timeout_s):
                link = self._link
                if link is None or link.lost or link.retired:
                    link = await self._connect()
                link.send(future, command)
                sent = True
                return await future
        except TimeoutError:
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


def _refusal(text: str) -> Exception:
    """Return what an error of Redis means for the command that it answers."""
    if text.startswith("NOSCRIPT "):
        return MissingScript(text)
    if text.startswith("OOM "):
        return OutOfMemory(text)
    if _STALE_ID in text and not text.startswith(_DAMAGED):
        return OutboxRefused(text)
    if text.startswith(_DAMAGED) or _IN_A_SCRIPT.search(text):
        return ScriptFailed(text)
    for beginning, reason in _NOT_EXECUTED.items():
        if text.startswith(beginning):
            error = NotExecuted(text)
            error.reason = reason
            return error
    return Unknown(text)
