"""What the service is given in place of its ways to Redis: the same methods, over the network.

They say of every call what the real ones say: what surely did not run, what may have. Nothing here
decides or remembers.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service import outbox
from service.lineage import Position
from service.outbox import Entry
from service.redis_store import Closed, Meta, RedisStore
from service.wakeups import Wakeups
from service.wire import MissingScript, NotExecuted, Unknown, Wire
from tests.simulation.network import Network, Refused, Reset, Silent
from tests.simulation.redis_server import RedisServer

_TIMEOUT_S = 5.0
_ATTEMPT_S = 1.0
_BYTES_PER_CHANGE = 100


class SimulatedRedisStore(RedisStore):
    """What the writer and the handshake ask of Redis."""

    def __init__(self, network: Network, server: RedisServer) -> None:
        self._network = network
        self._server = server

    async def aclose(self) -> None:
        """Nothing is held."""

    async def _ask(self, effect: Callable[[], Any]) -> Any:
        return await self._send(self._server.answering(effect))

    async def _send(self, effect: Any) -> Any:
        try:
            return await self._network.ask(self._server, effect, _TIMEOUT_S)
        except (Refused, Reset) as error:
            raise RedisConnectionError(str(error) or type(error).__name__) from error
        except Silent as error:
            raise RedisTimeoutError("no reply in time") from error
        except KeyError as error:
            raise NoScriptError("No matching script. Please use EVAL.") from error
        except ValueError as error:
            raise ResponseError(str(error)) from error

    async def meta(self, partition: int) -> Meta | None:
        found: Meta | None = await self._ask(lambda: self._server.state.meta)
        return found

    async def read_outboxes(
        self, after: Mapping[int, Position], *, block_ms: int, count: int
    ) -> dict[int, list[tuple[str, dict[str, str]]]]:
        at, server = after[0], self._server
        if block_ms:
            found = await self._send(
                lambda answer: server.wait_for(at, count, block_ms / 1000, answer)
            )
        else:
            entries = await self._ask(lambda: server.after(at, count))
            found = {0: entries} if entries else {}
        result: dict[int, list[tuple[str, dict[str, str]]]] = found
        return result

    async def outbox_after(
        self,
        partition: int,
        after: Position,
        *,
        upto: Position | None = None,
        strays: Collection[str] = (),
    ) -> AsyncGenerator[Entry, None]:
        page = 8
        while True:
            at = after
            found = await self._ask(lambda at=at: self._server.after(at, page))  # type: ignore[misc]
            for entry_id, fields in found:
                entry = outbox.decode(entry_id, fields)
                if upto is not None and entry.last > upto:
                    return
                after = entry.last
                yield entry
            if len(found) < page:
                return

    async def outbox_entry(self, partition: int, last: Position) -> Entry | None:
        found = await self._ask(lambda: [e for e in self._server.state.outbox if e[0] == last])
        return outbox.decode(last.entry_id, found[0][1]) if found else None

    async def outbox_end(self, partition: int) -> Position | None:
        end: Position = await self._ask(lambda: self._server.state.last_id)
        return end

    async def outbox_size(self, partition: int) -> tuple[int, int]:
        entries = await self._ask(lambda: list(self._server.state.outbox))
        if not entries:
            return 0, 0
        changes = sum(fields["changes"].count("\n") + 1 for _, fields in entries)
        return changes * _BYTES_PER_CHANGE, int(entries[0][1]["first"])

    async def trim_outbox(self, partition: int, first_retained: Position) -> int:
        removed: int = await self._ask(lambda: self._server.trim(first_retained))
        return removed

    async def raise_watermark(self, partition: int, recorded: Position) -> bool:
        raised: bool = await self._ask(lambda: self._server.raise_watermark(recorded))
        return raised

    async def scripts_loaded(self, partition: int, epoch: int) -> bool:
        loaded: bool = await self._ask(
            lambda: any(known == epoch for _, known in self._server.scripts.values())
        )
        return loaded

    async def load_scripts(self, partition: int, epoch: int) -> None:
        await self._ask(lambda: self._server.load(epoch))

    async def close(self, partition: int, seen: Meta | None, next_: str) -> Closed | None:
        meta, closed = await self._ask(lambda: self._server.close(seen, next_))
        return Closed(meta.last, meta.recorded, meta.loading) if closed else None

    async def resume(self, partition: int, seen_next: str, next_: str) -> bool:
        resumed: bool = await self._ask(lambda: self._server.resume(seen_next, next_))
        return resumed

    async def empty(
        self, partition: int, next_: str, touch: Callable[[], Awaitable[None]], *, rebuild: bool
    ) -> bool:
        for whole in (False, True):
            await touch()
            effect = partial(self._server.empty, next_, whole=whole, rebuild=rebuild)
            if not await self._ask(effect):
                return False
        return True

    async def begin_epoch(
        self,
        partition: int,
        next_: str,
        began: Position,
        predecessor: int,
        recorded: Position,
        frozen: Collection[int],
    ) -> bool:
        await self.meta(partition)
        begun: bool = await self._ask(
            lambda: self._server.begin_epoch(next_, began, predecessor, recorded)
        )
        return begun

    async def stay_closed(self, partition: int, next_: str, reason: str) -> bool:
        kept: bool = await self._ask(lambda: self._server.stay_closed(next_, reason))
        return kept


class SimulatedWire(Wire):
    """The way on which script calls travel."""

    def __init__(self, network: Network, server: RedisServer) -> None:
        self._network = network
        self._server = server

    async def call(self, *command: str | int, timeout_s: float | None = None) -> Any:
        _, sha, keys, *words = command
        effect = self._server.answering(lambda: self._server.evaluate(str(sha), int(keys), words))
        try:
            attempt_s = min(timeout_s or _ATTEMPT_S, _ATTEMPT_S)
            return await self._network.ask(self._server, effect, attempt_s)
        except Refused as error:
            raise NotExecuted("refused") from error
        except (Reset, Silent) as error:
            raise Unknown(type(error).__name__) from error
        except KeyError as error:
            raise MissingScript("NOSCRIPT") from error

    async def close(self) -> None:
        """Nothing is held."""


class NoWakeups(Wakeups):
    """Messages that never come: they only save time."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def listen(self) -> AsyncGenerator[int, None]:
        await self._network.never()
        yield 0

    async def aclose(self) -> None:
        """Nothing is held."""
