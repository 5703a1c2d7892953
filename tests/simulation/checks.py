"""What must hold in every world: some of it at each step, the rest when all is at rest.

Nothing here looks at what the service thinks of itself. What is on record is judged by the audit's
own replay and by the reference model, what was answered by the history, and what Redis holds by
both. A loss is allowed only where a store came back older, and only if the protocol has told of it
or nobody was left who could (see `_is_excused`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.journal_replay import JournalReplay
from service.journal_view import BookingRow, EventRow
from service.keyed import keyed_of
from service.lineage import NOWHERE, Position
from service.outbox import Change
from service.replay_result import ReplayResult
from service.results import Booking, Cancellation
from service.violations import Violations
from tests.model import Answer, PartitionModel
from tests.simulation.faults import ORDERED
from tests.simulation.history import Operation
from tests.simulation.postgres_server import EpochRow

if TYPE_CHECKING:
    from tests.simulation.world import World

_TRIES_MAX = 8
_OF = {"booked": "book", "waiting": "book", "cancelled": "cancel", "left": "cancel"}


@dataclass(frozen=True, slots=True)
class Broken:
    """An invariant that does not hold, and how."""

    invariant: str
    says: str


class Checks:
    """The invariants of one world. The first that is broken ends the run."""

    def __init__(self, world: "World") -> None:
        self.violations: list[Broken] = []
        self.stayed_closed = False
        self.tries = 0
        self._kept: dict[int, int] = {}
        self._world = world

    def violate(self, invariant: str, says: str) -> None:
        """Take note of what is broken."""
        self.violations.append(Broken(invariant, says))
        self._world.note(f"BROKEN {invariant}: {says}")

    # At each step.

    def watermark(self, recorded: Position) -> None:
        """I7: W is never ahead of what was committed."""
        if recorded.epoch and recorded not in self._world.postgres.ever:
            self.violate("watermark", f"{recorded.entry_id} is told as recorded and was not")

    def trimmed(self, gone: Iterable[Position]) -> None:
        """Nothing leaves the outbox that was not on record."""
        for last in gone:
            if last not in self._world.postgres.ever:
                self.violate("trimmed", f"{last.entry_id} is trimmed and was not on record")

    def dropped(self, gone: Sequence[Position]) -> None:
        """A rebuild keeps what it drops: on record, or with the orphans."""
        record = self._world.postgres.committed
        if self._world.postgres.went_back:
            return
        for last in gone:
            held = record.journal.get(last.seq)
            on_record = held is not None and held[0].epoch == last.epoch
            if not on_record and (last.epoch, last.seq) not in record.orphans:
                self.violate("dropped", f"{last.entry_id} is neither on record nor an orphan")

    def decided(self, row: EpochRow) -> None:
        """Nothing is lost and nothing stays closed where no store came back older."""
        if row.verdict == "stay_closed" and row.reason != ORDERED and not self.may_stay_closed:
            self.violate("false_alarm", f"it stays closed: {row.reason}")

    def refused(self, why: str) -> None:
        """No change is refused: what PostgreSQL could refuse, no script makes."""
        self.violate("refused", why)

    def kept(self, answered: Iterable[Position]) -> None:
        """Hear which H is on a disk now."""
        for epoch, seq in answered:
            self._kept[epoch] = max(seq, self._kept.get(epoch, 0))

    # At rest.

    @property
    def may_stay_closed(self) -> bool:
        """Whether something may be lost: a store came back older, and the other lacks some."""
        redis, postgres = self._world.redis, self._world.postgres
        is_provable = redis.is_whole and postgres.began
        return redis.went_back or (postgres.went_back and not is_provable)

    @property
    def is_given_up(self) -> bool:
        """Whether the operator has done all there is to do, and it stays closed."""
        return self.tries > _TRIES_MAX

    @property
    def is_at_rest(self) -> bool:
        """Whether the partition is open and W = P = R."""
        meta, record = self._world.redis.state.meta, self._world.postgres.committed
        return (
            meta is not None
            and meta.open
            and meta.last == record.last
            and meta.recorded == record.last
        )

    @property
    def situation(self) -> str:
        """Return where everything stands."""
        meta, record = self._world.redis.state.meta, self._world.postgres.committed
        open_ = [op for op in self._world.operations if op.answer is None]
        return f"meta {meta}; P {record.last.entry_id}; {len(open_)} without an answer"

    def judge(self) -> None:
        """Judge what is left when all is at rest."""
        rows = [row for _, row in sorted(self._world.postgres.committed.journal.items())]
        changes = [change for change, _ in rows]
        self._audit()
        if self.violations:
            return
        answers, model = self._replay(changes)
        if self.violations:
            return
        if not self.stayed_closed:
            self._compare(model)
        journal = {change.seq: change for change in changes}
        for operation in self._world.operations:
            self._answered(operation, journal, answers)
        self._attributed(changes)
        self._in_order(journal)
        for trouble in self._world.loop.troubles:
            self.violate("trouble", trouble)

    def _audit(self) -> None:
        """I2, I4, I5, I6, I9: what `onsale audit` holds against a record."""
        record = self._world.postgres.committed
        found = Violations()
        replay = JournalReplay(0, 1, record.cursor, record.lineage, found)
        for _, (change, hash_) in sorted(record.journal.items()):
            replay.take(change, hash_)
        replay.end()
        result = ReplayResult(replay.events, 1, found)
        result.judge_events(
            EventRow(id_, row.status, row.name, row.capacity, row.sold, row.waiting)
            for id_, row in record.events.items()
        )
        result.take_bookings(
            BookingRow(event, user, row.status, 1, row.seq, row.keyed)
            for (event, user), row in record.bookings.items()
        )
        result.end_bookings()
        for violation in found.kept[:3]:
            self.violate(f"audit:{violation.rule}", f"seq {violation.seq}: {violation.says}")

    def _replay(self, changes: Sequence[Change]) -> tuple[dict[int, Answer], PartitionModel]:
        """I8: the journal is what the reference model makes of the same requests."""
        model, answers = PartitionModel(), {}
        for change in changes:
            if change.seq <= model.seq:
                continue  # a promotion, made together with its cancellation
            event, user, keyed = change.event_id or 0, change.user_id or "", ""
            if change.user_id and change.details:
                found = keyed_of(change.kind, change.details)
                keyed = f"{found.key}/{found.digest}" if found else ""
            if change.kind == "epoch_began":
                model.seq += 1
            elif change.kind == "opened":
                capacity = int((change.details or "").rpartition(":")[2].rstrip("}"))
                answers[change.seq] = model.open(event, capacity)
            elif change.kind in ("booked", "waiting"):
                answers[change.seq] = model.book(event, user, keyed)
            else:
                answers[change.seq] = model.cancel(event, user, keyed)
        made = [(c.seq, c.kind, c.event, c.user) for c in model.changes]
        held = [(c.seq, c.kind, c.event_id, c.user_id) for c in changes if c.kind != "epoch_began"]
        if made != held:
            odd = next((pair for pair in zip(made, held) if pair[0] != pair[1]), (made, held))  # noqa: B905  # the first that differs
            self.violate("model", f"the model makes {odd[0]}, the journal has {odd[1]}")
        return answers, model

    def _compare(self, model: PartitionModel) -> None:
        """I1, I3, I4, I7: Redis holds what the record comes to."""
        state, record = self._world.redis.state, self._world.postgres.committed
        if state.meta is None or not state.meta.recorded <= record.last <= state.last:
            self.violate("order_of_stores", self.situation)
        if model.seq != state.last.seq:
            self.violate("redis", f"R is {state.last.seq}, the journal ends at {model.seq}")
        for event_id, event in state.model.events.items():
            wanted = model.events.get(event_id)
            if wanted is None:
                self.violate("redis", f"event {event_id} is in Redis alone")
                continue
            for what in ("capacity", "states", "waiting_list", "keyed", "available"):
                held, due = getattr(event, what), getattr(wanted, what)
                if held != due:
                    self.violate("redis", f"event {event_id} {what}: {held}, on record {due}")

    def _answered(
        self, operation: Operation, journal: dict[int, Change], answers: dict[int, Answer]
    ) -> None:
        """I10: what was answered is on record, as it was answered."""
        at, answer = operation.named, operation.answer
        if at is None or not isinstance(answer, Booking | Cancellation):
            return
        row = journal.get(at.seq)
        is_there = (
            row is not None
            and row.user_id == operation.user
            and row.event_id == operation.event_id
            and (row.epoch == at.epoch or not operation.is_fresh)
        )
        if not is_there:
            if not self._is_excused(operation, at):
                said = f"{operation.user} {operation.kind}: {answer.status} at {at.entry_id}"
                self.violate("lost", f"{said} ({answer.durability}) is not on record: {row}")
            return
        if operation.is_fresh and not self._agrees(answer, answers.get(at.seq)):
            said = f"{operation.user} was told {answer}"
            self.violate("answer", f"{said}, the model says {answers.get(at.seq)}")

    @staticmethod
    def _agrees(answer: Booking | Cancellation, wanted: Answer | None) -> bool:
        if wanted is None:
            return False
        if isinstance(answer, Booking):
            outcome = "BOOKED" if answer.status == "booked" else "WAITING"
            return (outcome, answer.position) == (wanted.outcome, wanted.extra)
        outcome = "CANCELLED" if answer.status == "cancelled" else "LEFT"
        return (outcome, int(answer.reassigned)) == (wanted.outcome, wanted.extra)

    def _is_excused(self, operation: Operation, at: Position) -> bool:
        """Whether an answer may be lost.

        A store came back older, and either an operator has confirmed a range that has this change,
        or whoever answered died before it was kept (the last second of a worker), or it was said to
        be pending.
        """
        if not self.may_stay_closed:
            return False
        answer = operation.answer
        assert isinstance(answer, Booking | Cancellation)
        if answer.durability == "none" or self.stayed_closed:
            return True
        if any(
            loss.first <= at.seq <= loss.last and at.epoch <= loss.epoch
            for loss in self._world.confirmed
        ):
            return True
        return self._kept.get(at.epoch, 0) < at.seq

    def _attributed(self, changes: Sequence[Change]) -> None:
        """I5: every change about a person is one that this person asked for, and each once."""
        named, unknown = self._asked()
        keys: Counter[tuple[int, str, str]] = Counter()
        for change in changes:
            if change.kind not in _OF or change.event_id is None or change.user_id is None:
                continue
            if change.details and (found := keyed_of(change.kind, change.details)):
                keys[change.event_id, change.user_id, found.key] += 1
            if (change.event_id, change.user_id, change.seq) in named:
                continue
            asked = (change.event_id, change.user_id, _OF[change.kind])
            unknown[asked] -= 1
            if unknown[asked] < 0:
                self.violate("once", f"{change} was asked for by nobody, or done twice")
        for (event, user, key), times in keys.items():
            if times > 1:
                self.violate("once", f"event {event} {user}: key {key} has {times} changes")

    def _asked(self) -> tuple[set[tuple[int, str, int]], Counter[tuple[int, str, str]]]:
        """Return the changes that were named in answers, and how many requests have none."""
        named: set[tuple[int, str, int]] = set()
        unknown: Counter[tuple[int, str, str]] = Counter()
        for operation in self._world.operations:
            if operation.kind in _OF.values():
                where = (operation.event_id, operation.user)
                if operation.named is not None:
                    named.add((*where, operation.named.seq))
                attempts = sum(attempt.is_unknown for attempt in operation.attempts)
                unknown[*where, operation.kind] += attempts
        return named, unknown

    def _in_order(self, journal: dict[int, Change]) -> None:
        """Who was answered before another asked has the smaller seq."""
        fresh = []
        for operation in self._world.operations:
            at = operation.named
            if at is None or not operation.is_fresh:
                continue
            row = journal.get(at.seq)
            if row is not None and row.epoch == at.epoch and row.user_id == operation.user:
                last = operation.attempts[-1]
                fresh.append((last.invoked, last.ended, at.seq))
        ended = sorted((end, seq) for _, end, seq in fresh)
        highest, taken = NOWHERE.seq, 0
        for invoked, _, seq in sorted(fresh):
            while taken < len(ended) and ended[taken][0] < invoked:
                highest = max(highest, ended[taken][1])
                taken += 1
            if highest > seq:
                self.violate("order", f"change {seq} was asked for after {highest} was answered")
