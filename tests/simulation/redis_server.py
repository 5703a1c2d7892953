"""Redis, simulated: the scripts by the reference model, and an append-only file that is synced.

It owns what is in memory and what is on disk. Every change makes a new state and leaves the one
before as it was, so that any of them can be what a crash or a stale copy brings back. A reply
leaves after the sync that covers it (`appendfsync always`); a crash keeps what was synced, and of
the rest a whole number of changes, drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from service.lineage import NOWHERE, Position
from service.redis_store import Meta
from service.scripts import serving_scripts
from tests.model import Event, Keyed, PartitionModel
from tests.simulation.network import Answer, Server

if TYPE_CHECKING:
    from tests.simulation.world import World

EPOCH_US = 1_795_339_997_000_000
"""Redis's clock at 0 of the loop's, in microseconds since 1970."""


class Scripts(PartitionModel):
    """The scripts' stand-in: the reference model, of which a mutant may break one step."""


RawEntry = tuple[Position, dict[str, str]]
NO_META = Meta(0, 0, NOWHERE, open=False, next="", loading=False, reason="")


@dataclass(slots=True)
class Loading:
    """An event that is being brought in: whose, since when, and what came so far."""

    token: str
    at: int
    users: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Said:
    """What is shown of an event beside the model."""

    name: str
    created_at: int
    updated_at: int


@dataclass(slots=True)
class State:
    """All that one partition holds. `meta` is None where there is none."""

    meta: Meta | None = None
    model: Scripts = field(default_factory=Scripts)
    calls: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    outbox: list[RawEntry] = field(default_factory=list)
    last_id: Position = NOWHERE
    said: dict[int, Said] = field(default_factory=dict)
    loading: dict[int, Loading] = field(default_factory=dict)

    def copy(self) -> "State":
        """Return one that can be changed."""
        return State(
            self.meta,
            copy_model(self.model),
            dict(self.calls),
            list(self.outbox),
            self.last_id,
            dict(self.said),
            {id_: replace(held, users=list(held.users)) for id_, held in self.loading.items()},
        )

    @property
    def last(self) -> Position:
        """R."""
        return self.meta.last if self.meta else NOWHERE


def copy_model(model: Scripts) -> Scripts:
    """Return a model that can be changed."""
    copy = Scripts(model.seq)
    copy.recorded, copy.newest, copy.used = model.recorded, model.newest, model.used
    copy.events = {
        id_: Event(
            event.capacity,
            dict(event.states),
            list(event.waiting_list),
            {user: list(kept) for user, kept in event.keyed.items()},
        )
        for id_, event in model.events.items()
    }
    return copy


class RedisServer(Server):
    """One server. `is_whole`: its outbox has every change since the first.

    Broken variants: `acknowledges_early`, of which replies do not wait for the disk, and one that
    does not remember its callers.
    """

    acknowledges_early = False
    remembers_calls = True

    def __init__(self, world: "World", name: str = "redis") -> None:
        super().__init__(name, world.process(name))
        self.world = world
        self.state = State()
        self.past: list[State] = [self.state]
        self.scripts: dict[str, tuple[str, int]] = {}
        self.went_back = False
        self.is_whole = True
        self._unsynced: list[State] = []
        self._held: list[Callable[[], None]] = []
        self._blocked: list[Callable[[], bool]] = []

    # Its life.

    def crash(self) -> None:
        """Lose memory, scripts and connections; keep what was synced, and perhaps some more."""
        if self._unsynced:
            kept = self.world.random.randrange(len(self._unsynced) + 1)
            self.state = [self.past[-1], *self._unsynced][kept]
            if self.state is not self.past[-1]:
                self.past.append(self.state)
        self._unsynced, self._held, self._blocked = [], [], []
        self.scripts = {}
        self.end()

    def put_back(self, state: State) -> None:
        """While it is down: its files are an older copy's, or nobody's."""
        self.went_back = True
        self.state = state
        self.past.append(state)

    def answering(self, effect: Callable[[], Any]) -> Callable[[Answer], None]:
        """Return what runs a command and answers once what it saw is synced."""

        def run(answer: Answer) -> None:
            value, error = None, None
            try:
                value = effect()
            except Exception as failure:
                error = failure
            self.reply(lambda: answer(value, error))

        return run

    def reply(self, answer: Callable[[], None]) -> None:
        """Let a reply go, after the sync that covers what it says."""
        if self._unsynced and not self.acknowledges_early:
            self._held.append(answer)
        else:
            answer()

    def change(self) -> State:
        """Return the state to be changed; the one before stays as it was."""
        self.state = self.state.copy()
        if not self._unsynced:
            delay = self.world.random.random() * (1.0 if self.acknowledges_early else 0.001)
            incarnation = self.incarnation
            self.world.network.later(delay, self.process, self._sync, incarnation)
        self._unsynced.append(self.state)
        return self.state

    def _sync(self, incarnation: int) -> None:
        if incarnation != self.incarnation or not self._unsynced:
            return
        self.past.append(self._unsynced[-1])
        del self.past[:-200]
        self._unsynced = []
        held, self._held = self._held, []
        for answer in held:
            answer()

    def clock_us(self) -> int:
        """Return Redis's own time."""
        return EPOCH_US + int(self.world.loop.time() * 1e6)

    # The outbox.

    def append(self, state: State, last: Position, fields: dict[str, str]) -> None:
        """XADD with an explicit id."""
        if last <= state.last_id:
            msg = "The ID specified in XADD is equal or smaller than the target stream top item"
            raise ValueError(msg)
        state.outbox.append((last, fields))
        state.last_id = last
        blocked, self._blocked = self._blocked, []
        self._blocked += [look for look in blocked if not look()]

    def after(self, at: Position, count: int) -> list[tuple[str, dict[str, str]]]:
        """XRANGE: what follows a position, at most so many."""
        found = [e for e in self.state.outbox if e[0] > at]
        return [(last.entry_id, fields) for last, fields in found[:count]]

    def wait_for(self, at: Position, count: int, block_s: float, answer: Answer) -> None:
        """XREAD BLOCK."""
        incarnation, done = self.incarnation, [False]

        def look(*, final: bool = False) -> bool:
            if done[0] or incarnation != self.incarnation:
                return True
            found = self.after(at, count)
            if found or final:
                done[0] = True
                self.reply(lambda: answer({0: found} if found else {}))
            return done[0]

        if not look():
            self._blocked.append(look)
            ending = partial(look, final=True)
            self.world.network.later(block_s, self.process, ending)

    def trim(self, first_retained: Position) -> int:
        """XTRIM MINID."""
        gone = [last for last, _ in self.state.outbox if last < first_retained]
        if gone:
            self.world.checks.trimmed(gone)
            self.is_whole = False
            state = self.change()
            state.outbox = state.outbox[len(gone) :]
            self.world.note(f"trimmed up to {gone[-1].entry_id}")
        return len(gone)

    # The serving scripts.

    def load(self, epoch: int) -> None:
        """SCRIPT LOAD of all that serve an epoch."""
        for name, script in serving_scripts(0, epoch).items():
            self.scripts[script.sha] = (name, epoch)

    def fenced(self, epoch: int) -> list[str] | None:
        """Return the refusal of a script of an epoch, None where it may run."""
        meta, clock = self.state.meta, str(self.clock_us())
        if meta is None:
            return ["UNINIT", "", "", clock, ""]
        if meta.epoch != epoch or not meta.open:
            known = str(meta.epoch) if meta.epoch else ""
            return ["FENCED", known, str(meta.seq) if meta.epoch else "", clock, meta.reason]
        return None

    def evaluate(self, sha: str, keys: int, words: Sequence[str | int]) -> list[str]:
        """EVALSHA; raises KeyError where the script is not loaded."""
        name, epoch = self.scripts[sha]
        if refusal := self.fenced(epoch):
            return refusal
        arguments = [str(word) for word in words[keys:]]
        if name in ("book", "cancel", "open_event"):
            return self._numbered(name, epoch, arguments)
        if name == "load_event":
            event_id = int(str(words[1]).rpartition(":")[2])
            return self._ok(epoch, [self._load_event(event_id, arguments)])
        if name == "read":
            return self._ok(epoch, self._read(arguments))
        return self._ok(epoch, ["FORGOTTEN"])

    def raise_watermark(self, recorded: Position) -> bool:
        """Run that script; raises KeyError where it is not loaded."""
        script = serving_scripts(0, recorded.epoch)["raise_watermark"]
        _, epoch = self.scripts[script.sha]
        if self.fenced(epoch):
            return False
        self.world.checks.watermark(recorded)
        assert self.state.meta is not None
        if self.state.meta.recorded < recorded:
            state = self.change()
            assert state.meta is not None
            state.meta = replace(state.meta, recorded=recorded)
            state.model.recorded = recorded.seq
        return True

    def _ok(self, epoch: int, words: Sequence[str]) -> list[str]:
        return ["OK", str(epoch), str(self.state.last.seq), str(self.clock_us()), "-", *words]

    def _numbered(self, name: str, epoch: int, words: list[str]) -> list[str]:
        caller, number, latest, most, awaited, event_count, *rest = words
        now, seq = self.clock_us(), self.state.last.seq
        known = self.state.calls.get(caller)
        if known is not None and self.remembers_calls:
            if known[0] == int(number):
                return [*known[1][:2], str(seq), str(now), *known[1][4:]]
            if known[0] > int(number):
                return ["STALE_CALL", str(epoch), str(seq), str(now), ""]
        if now > int(latest):
            return ["LATE", str(epoch), str(seq), str(now), ""]
        state = self.change()
        ids = [int(word) for word in rest[: int(event_count)]]
        items = rest[int(event_count) :]
        said = self._decide(state, name, ids, items, int(most), now)
        self._write(state, epoch, now, awaited)
        reply = self._ok(epoch, said)
        state.calls[caller] = (int(number), reply)
        self.world.note(f"{caller} {number} {' '.join(items)} -> {' '.join(said)}")
        return reply

    def _decide(
        self, state: State, name: str, ids: list[int], items: list[str], most: int, now: int
    ) -> list[str]:
        model, said = state.model, []
        width = 4 if name == "open_event" else 3
        for at in range(0, len(items), width):
            event_id = ids[int(items[at]) - 1]
            if name == "open_event":
                if event_id in state.loading:
                    answer = ["EXISTS", "0", "0"]
                else:
                    outcome, seq, _ = model.open(event_id, int(items[at + 1]), most)
                    answer = [outcome, str(seq), str(now if outcome == "OPENED" else 0)]
                    if outcome == "OPENED":
                        model.changes[-1] = model.changes[-1]._replace(details=items[at + 3])
                        state.said[event_id] = Said(items[at + 2], now, now)
                said += answer
                continue
            decide = model.book if name == "book" else model.cancel
            outcome, seq, extra = decide(event_id, items[at + 1], items[at + 2], most=most)
            said += [outcome, str(seq), str(extra)]
        return said

    def _write(self, state: State, epoch: int, now: int, awaited: str) -> None:
        """Append the entry of what was decided, and move R."""
        changes, state.model.changes = state.model.changes, []
        if not changes:
            return
        lines = [
            " ".join(
                str("-" if word is None else word)
                for word in (c.kind, c.event, c.user, *([c.details] if c.details else ()))
            )
            for c in changes
        ]
        fields = {
            "v": "2",
            "at": str(now),
            "first": str(changes[0].seq),
            "changes": "\n".join(lines),
        }
        if awaited == "1":
            fields["awaited"] = "1"
        last = Position(epoch, changes[-1].seq)
        assert state.meta is not None
        state.meta = replace(state.meta, seq=last.seq)
        for change in changes:
            if change.event in state.said:
                said = state.said[change.event]
                state.said[change.event] = replace(said, updated_at=now)
        self.append(state, last, fields)

    def _read(self, words: list[str]) -> list[str]:
        count, state = int(words[0]), self.state
        ids, found = [int(word) for word in words[1 : 1 + count]], []
        items = words[1 + count :]
        recorded = state.meta.recorded.seq if state.meta else 0
        for at in range(0, len(items), 2):
            event_id, user = ids[int(items[at]) - 1], items[at + 1]
            event = state.model.events.get(event_id)
            if event is None:
                found += ["NO_EVENT", *[""] * 10]
                continue
            said, (status, seq) = state.said[event_id], event.state(user)
            numbers = [event.capacity, event.available, len(event.waiting_list)]
            times = [said.created_at, said.updated_at]
            of_user = [status, str(seq or ""), str(event.position(user))]
            is_recorded = "1" if seq and seq <= recorded else "0"
            found += ["FOUND", *map(str, [*numbers, *times]), said.name, *of_user, is_recorded]
        return found

    def _load_event(self, event_id: int, words: list[str]) -> str:
        step, token, *rest = words
        now, held = self.clock_us(), self.state.loading.get(event_id)
        if step == "begin":
            if event_id in self.state.model.events:
                return "PRESENT"
            if held and held.token != token and now - held.at < 2_000_000:
                return "BUSY"
            self.change().loading[event_id] = Loading(token, now)
            return "BEGUN"
        if held is None or held.token != token:
            return "TAKEN"
        state = self.change()
        loading = state.loading[event_id]
        if step == "chunk":
            loading.at = now
            loading.users += list(zip(rest[0::3], rest[1::3], rest[2::3], strict=True))
            return "ADDED"
        del state.loading[event_id]
        state.model.events[event_id] = loaded(int(rest[0]), loading.users)
        state.said[event_id] = Said(rest[4], int(rest[5]), int(rest[6]))
        return "LOADED"

    # The handshake's scripts.

    def close(self, seen: Meta | None, next_: str) -> tuple[Meta, bool]:
        """Return `meta` as it was, and whether it was closed."""
        meta = self.state.meta or NO_META
        if (meta.epoch, meta.next) != ((seen.epoch, seen.next) if seen else (0, "")):
            return meta, False
        state = self.change()
        state.meta = replace(meta, open=False, next=next_)
        return meta, True

    def is_attempt(self, next_: str) -> bool:
        """Whether the partition is closed and the handshake is still this attempt's."""
        meta = self.state.meta
        return meta is not None and not meta.open and meta.next == next_

    def resume(self, seen_next: str, next_: str) -> bool:
        """Take an attempt over."""
        if not self.is_attempt(seen_next):
            return False
        state = self.change()
        assert state.meta is not None
        state.meta = replace(state.meta, next=next_)
        return True

    def empty(self, next_: str, *, whole: bool, rebuild: bool) -> bool:
        """Remove the events, and with the last call calls and outbox too."""
        if not self.is_attempt(next_):
            return False
        self.world.checks.dropped([at for at, _ in self.state.outbox] if whole else [])
        self.is_whole = self.is_whole and not self.state.outbox
        state = self.change()
        assert state.meta is not None
        state.meta = replace(state.meta, loading=state.meta.loading or rebuild)
        state.model.events, state.said, state.loading = {}, {}, {}
        if whole:
            state.outbox, state.last_id, state.calls = [], NOWHERE, {}
        return True

    def begin_epoch(
        self, next_: str, began: Position, predecessor: int, recorded: Position
    ) -> bool:
        """Open the partition in a new epoch."""
        if not self.is_attempt(next_):
            return False
        state, now = self.change(), self.clock_us()
        seq = began.seq + 1
        details = f'{{"beginning":{began.seq},"predecessor":{predecessor}}}'
        fields = {"v": "2", "at": str(now), "first": str(seq)}
        self.append(
            state,
            Position(began.epoch, seq),
            {**fields, "changes": f"epoch_began - - {details}"},
        )
        state.calls = {}
        state.meta = Meta(began.epoch, seq, recorded, open=True, next="", loading=False, reason="")
        state.model.seq, state.model.recorded = began.seq, recorded.seq
        state.model.begin_epoch()
        self.world.checks.watermark(recorded)
        self.world.note(f"epoch {began.epoch} begins after {predecessor}-{began.seq}")
        return True

    def stay_closed(self, next_: str, reason: str) -> bool:
        """Say why it stays closed."""
        if not self.is_attempt(next_):
            return False
        state = self.change()
        assert state.meta is not None
        state.meta = replace(state.meta, next="", reason=reason)
        return True


def loaded(capacity: int, users: Sequence[tuple[str, str, str]]) -> Event:
    """Return an event as it came from the record."""
    event = Event(capacity)
    turns: Mapping[int, str] = {int(turn): user for user, _, turn in users if turn}
    for user, state, _ in users:
        status, seq, _, _, *keyed = state.split(" ")
        event.states[user] = (status, int(seq))
        if keyed:
            split = [entry.split("/") for entry in keyed]
            event.keyed[user] = [Keyed(k, d, outcome, int(at)) for k, d, outcome, at in split]
    event.waiting_list = [turns[turn] for turn in sorted(turns)]
    return event
