"""What a comparison reads of Redis while the sale is open. Never writes.

A look is one MULTI together with `meta`, so that all it holds is of one exact seq. What is too long
for one look (users, gaps) is read in pages beside it: a page is of no exact seq, but whoever did
not change meanwhile is in it as he stood all the while.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from service import keys
from service.lineage import Position
from service.redis_store import RedisStore

PAGE = 2_000
"""Elements of one page: some hundred microseconds of Redis's time."""


class MovedOnError(Exception):
    """The partition closed or began another epoch: what was read before says nothing any more."""


@dataclass(frozen=True, slots=True)
class Look:
    """A part of one event as it stood at the change `at`.

    `event` is empty where Redis does not hold the event. `elements` are those of the waiting list
    from `start` (0-based) on, of `length` in all. `users` holds who was asked for, None for one who
    is not there. The gaps are turns as text.
    """

    at: Position
    event: dict[str, str]
    start: int
    elements: list[str]
    length: int
    users: dict[str, str | None]
    gaps: frozenset[str] = frozenset()
    more_users: int = 0
    more_gaps: int = 0


class RedisView(RedisStore):
    """Redis as a comparison sees it. Raises redis.exceptions.RedisError and OSError.

    `epoch` is the one that the comparison began in: a look at another raises MovedOnError.
    """

    async def event_ids(self, partition: int) -> set[int]:
        """Return the events that have keys, those that are being loaded included."""
        found: set[int] = set()
        pattern, cursor = keys.event_pattern(partition), 0
        while True:
            cursor, names = await self._within(self._client.scan(cursor, match=pattern, count=PAGE))
            found.update(i for i in map(keys.event_id_of, names) if i is not None)
            if not cursor:
                return found

    async def holds(self, partition: int, event_id: int) -> bool:
        """Whether Redis holds an event."""
        event_key = keys.event_keys(partition, event_id).event
        return bool(await self._within(self._client.hexists(event_key, "capacity")))

    async def first_look(self, partition: int, event_id: int, epoch: int) -> Look:
        """Look at an event together with the first page of everything, and so at a small one whole.

        `more_users` and `more_gaps` say where the next pages begin, 0 where there are none.
        """
        of = keys.event_keys(partition, event_id)
        more = [("HSCAN", of.users, 0, "COUNT", PAGE), ("ZSCAN", of.gaps, 0, "COUNT", PAGE)]
        look, ((more_users, users), (more_gaps, gaps)) = await self._look(
            partition, event_id, epoch, 0, more
        )
        return Look(
            *look,
            users=users,
            gaps=_turns(gaps),
            more_users=int(more_users),
            more_gaps=int(more_gaps),
        )

    async def look(
        self,
        partition: int,
        event_id: int,
        epoch: int,
        *,
        start: int,
        users: Sequence[str] = (),
    ) -> Look:
        """Look at a page of the waiting list, and at some users."""
        of = keys.event_keys(partition, event_id)
        more = [("HMGET", of.users, *users)] if users else []
        look, held = await self._look(partition, event_id, epoch, start, more)
        return Look(*look, users=dict(zip(users, held[0], strict=True)) if users else {})

    async def users(
        self, partition: int, event_id: int, cursor: int
    ) -> AsyncIterator[dict[str, str]]:
        """Yield the pages of users from a cursor on. One who changes may come in either shape."""
        users_key = keys.event_keys(partition, event_id).users
        while cursor:
            cursor, page = await self._within(self._client.hscan(users_key, cursor, count=PAGE))
            yield page

    async def gaps(self, partition: int, event_id: int, cursor: int) -> AsyncIterator[set[str]]:
        """Yield the pages of gaps from a cursor on."""
        gaps_key = keys.event_keys(partition, event_id).gaps
        while cursor:
            cursor, page = await self._within(self._client.zscan(gaps_key, cursor, count=PAGE))
            yield set(_turns(page))

    async def _look(
        self,
        partition: int,
        event_id: int,
        epoch: int,
        start: int,
        more: Sequence[tuple[str | int, ...]],
    ) -> tuple[tuple[Position, dict[str, str], int, list[str], int], list[Any]]:
        """Ask for one look's parts, the fixed ones first; raise MovedOnError for another epoch."""
        of = keys.event_keys(partition, event_id)
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.hmget(keys.partition_keys(partition).meta, "epoch", "seq", "open")
            pipe.hgetall(of.event)
            pipe.llen(of.waiting_list)
            pipe.lrange(of.waiting_list, start, start + PAGE - 1)
            for command in more:
                pipe.execute_command(*command)
            meta, event, length, elements, *rest = await self._within(pipe.execute())
        if meta[2] != "1" or meta[0] != str(epoch):
            msg = "a handshake came between"
            raise MovedOnError(msg)
        at = Position(epoch, int(meta[1]))
        # An event without capacity is being loaded, and absent for everybody else too.
        return (at, event if "capacity" in event else {}, start, elements, length), rest


def _turns(page: Sequence[tuple[str, float]]) -> frozenset[str]:
    """Return the turns that ZCOUNT counts: the scores, whatever the members are called."""
    return frozenset(f"{score:.0f}" for _, score in page)
