"""The twelve broken variants that the simulation must catch: each takes one promise away.

A mutant replaces one step of the service, or of what stands in for a store, while it is in force.
What is caught tells of the checks; what is not, of a hole in them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from service import settling
from service.handshake import Handshake, Opened
from service.ledger import Ledger
from service.lineage import Epoch, Lineage, Position
from service.outbox import Entry
from service.redis_store import Closed
from service.scripts import serving_scripts
from service.settling import Settling
from service.unrecorded import KeepAlive
from service.verdicts import Verdict, decide
from service.writer import Writer
from tests.model import Answer
from tests.simulation.ledger import SimulatedApplication
from tests.simulation.redis_server import RedisServer, Scripts
from tests.simulation.world import ANY, Focus

Patch = tuple[object, str, Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken variant: what is put in place of what.

    `focus`: the kinds of faults that show it, where seeds that draw from all of them take long.
    `shown_by`: the first seed that shows it, where it takes many. `make test` begins there and
    goes on if the simulation has changed since; the fault suite begins with the first of all.
    """

    name: str
    patches: Sequence[Patch]
    focus: Focus = ANY
    shown_by: int = 0

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Break it."""
        with ExitStack() as stack:
            for target, attribute, broken in self.patches:
                stack.enter_context(mock.patch.object(target, attribute, broken))
            yield


# What the writer and its transaction may get wrong.


def _follows_whatever_its_epoch(
    self: Lineage, cursor: Position, first: int, last: Position
) -> bool:
    return first == cursor.seq + 1


def _follows_across_gaps(self: Lineage, cursor: Position, first: int, last: Position) -> bool:
    return last.epoch >= cursor.epoch and self.holds(last)


_commit = Writer._commit
_cancel = Scripts.cancel
_evaluate = RedisServer.evaluate


async def _watermark_first(
    self: Writer, ledger: Ledger, entries: Mapping[int, Sequence[Entry]], *rows: Any
) -> None:
    for partition, found in entries.items():
        await self._after_commit._raise_watermark(partition, found[-1].last)
    await _commit(self, ledger, entries, *rows)


async def _trim_first(
    self: Writer, ledger: Ledger, entries: Mapping[int, Sequence[Entry]], *rows: Any
) -> None:
    for partition, found in entries.items():
        epoch, seq = found[-1].last
        await self._redis.trim_outbox(partition, Position(epoch, seq + 1))
    await _commit(self, ledger, entries, *rows)


# What a handshake may get wrong.


def _rebuild_whatever_the_watermark(
    closed: Closed, recorded: Position, lineage: Lineage, missing: str, replayed: str = ""
) -> Verdict:
    if closed.recorded > recorded:
        return Verdict("rebuild", recorded, "the record is right, whatever Redis knows")
    return decide(closed, recorded, lineage, missing, replayed)


async def _not_brought_forward(self: Settling) -> None:
    return None


async def _open_first(
    self: Handshake, ledger: Ledger, epoch: Epoch, next_: str, why: str = ""
) -> Opened | None:
    await self._redis.load_scripts(self.partition, epoch.epoch)
    began = await self._redis.begin_epoch(
        self.partition,
        next_,
        Position(epoch.epoch, epoch.beginning),
        epoch.predecessor,
        await ledger.cursor(self.partition),
        (),
    )
    if began and epoch.verdict == "rebuild":
        awake = KeepAlive(ledger)
        await self._redis.empty(self.partition, next_, awake.touch, rebuild=True)
    began_at = Position(epoch.predecessor, epoch.beginning)
    return Opened(epoch.epoch, epoch.verdict, began_at, why) if began else None


# What the scripts may get wrong.


def _promote_without_pop(
    self: Scripts, event_id: int, user: str, keyed: str = "", *, most: int = 10**17
) -> Answer:
    answer = _cancel(self, event_id, user, keyed, most=most)
    if answer.outcome == "CANCELLED" and answer.extra == 1:
        self.events[event_id].waiting_list.insert(0, self.changes[-1].user or "")
    return answer


def _cancel_again(
    self: Scripts, event_id: int, user: str, keyed: str = "", *, most: int = 10**17
) -> Answer:
    answer = _cancel(self, event_id, user, keyed, most=most)
    event = self.events.get(event_id)
    if answer.outcome != "NOT_BOOKED" or event is None or event.state(user)[0] != "cancelled":
        return answer
    return replace_outcome(answer, self._become("cancelled", "cancelled", event_id, user))


def replace_outcome(answer: Answer, seq: int) -> Answer:
    """Return an answer that says cancelled."""
    return answer._replace(outcome="CANCELLED", seq=seq)


def _load_when_missing(
    self: RedisServer, sha: str, keys: int, words: Sequence[str | int]
) -> list[str]:
    for epoch in range(1, 60):
        if any(script.sha == sha for script in serving_scripts(0, epoch).values()):
            self.load(epoch)
            break
    return _evaluate(self, sha, keys, words)


MUTANTS: Sequence[Mutant] = (
    Mutant(
        "no epoch check",
        [(Lineage, "follows", _follows_whatever_its_epoch)],
        # Entries that it holds while nobody is left who would know of their loss.
        focus=Focus(
            ("freeze_writer", "kill_api", "wipe_redis"),
            {"writers": 1, "workers": 1, "linger_s": 1.0, "awaited": 0.0, "think_s": 0.05},
        ),
        shown_by=1_085,
    ),
    Mutant("no contiguity check", [(Lineage, "follows", _follows_across_gaps)]),
    Mutant("watermark before COMMIT", [(Writer, "_commit", _watermark_first)]),
    Mutant("XTRIM before COMMIT", [(Writer, "_commit", _trim_first)]),
    Mutant(
        "acknowledge before fsync",
        [(RedisServer, "acknowledges_early", True)],
        focus=Focus(("restart_redis",)),
    ),
    Mutant(
        "no operation id",
        [(RedisServer, "remembers_calls", False)],
        focus=Focus(("network",), {"keyed": 0.0}),
        shown_by=290,
    ),
    Mutant(
        "rebuild when the watermark is ahead",
        [
            (settling, "decide", _rebuild_whatever_the_watermark),
            (Settling, "_bring_forward", _not_brought_forward),
        ],
        focus=Focus(("stale_postgres", "kill_writer", "restart_postgres")),
    ),
    Mutant(
        "open before the rebuild is done",
        [(Handshake, "_finish", _open_first)],
        focus=Focus(("stale_redis", "order")),
    ),
    Mutant("cursor moved outside the transaction", [(SimulatedApplication, "cursor_apart", True)]),
    Mutant("promote without pop", [(Scripts, "cancel", _promote_without_pop)]),
    Mutant("cancel not idempotent", [(Scripts, "cancel", _cancel_again)]),
    Mutant(
        "NOSCRIPT loads the scripts by itself",
        [(RedisServer, "evaluate", _load_when_missing)],
        focus=Focus(("stale_redis", "freeze_writer", "kill_api")),
    ),
)


def named(name: str) -> Mutant:
    """Return a mutant. Raises StopIteration for one that there is not."""
    return next(mutant for mutant in MUTANTS if mutant.name == name)
