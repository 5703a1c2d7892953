"""Commands that come with every commit, without what redis-py's client does around each.

The client takes a connection out of its pool, counts, observes and times each command: some 100 µs
of the writer's CPU time, several times a commit, where this takes half. The connections are
redis-py's own all the same. Nothing that changes anything is ever sent twice, and a connection
whose reply was not read to its end is never used again.
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError


class DirectCommands:
    """Sends commands on connections that are kept. Raises what the client does."""

    def __init__(self, pool: ConnectionPool) -> None:
        """Make connections as this pool would; they are none of its."""
        self._pool = pool
        self._idle: list[AbstractConnection] = []

    async def ask(self, *command: str | int) -> Any:
        """Send one command and return its reply. Whoever gives up costs it its connection."""
        connection = self._idle.pop() if self._idle else self._new()
        try:
            await connection.send_packed_command(
                connection.pack_command(*command), check_health=False
            )
            reply = await connection.read_response(disconnect_on_error=False)
        except BaseException:
            # The others were made to the same server, which may be gone.
            lost = [connection, *self._idle]
            self._idle.clear()
            for one in lost:
                await one.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return reply

    async def ask_map(self, *command: str | int) -> dict[str, str]:
        """Return the map that a command which changes nothing replies with.

        It is asked once more where the connection, idle since the last time, turns out to be gone.
        """
        try:
            reply = await self.ask(*command)
        except (RedisConnectionError, OSError):
            reply = await self.ask(*command)
        return reply if isinstance(reply, dict) else paired(reply)

    def _new(self) -> AbstractConnection:
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def aclose(self) -> None:
        """Close what is kept."""
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)


def paired(fields: Sequence[str]) -> dict[str, str]:
    """Return the fields of a stream's entry by name; in a reply they lie flat."""
    each = iter(fields)
    return dict(zip(each, each, strict=True))
