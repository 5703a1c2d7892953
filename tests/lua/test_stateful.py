"""The scripts against the model: random batches, every reply, every change, all that is stored.

The fault suite does it with 2,000 examples of 50 steps. The broken scripts at the end are the
negative control: a suite that passes them proves nothing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.exceptions import ResponseError

from service.errors import CorruptEntryError
from tests.lua.harness import Backend, Item, Mutation, Partition, Reply
from tests.model import UNBOUNDED, Answer, Event, PartitionModel

EVENTS = (1, 7, 2**53 - 1)
USERS = ("1", "2", "9007199254740991", "01", "a", "-", "A", "A.b_c~d@e:f+g|h=i-j")

SETTINGS = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

# Most of it is about the first event, so that collisions are common.
event_ids = st.sampled_from((EVENTS[0],) * 6 + EVENTS)
# Half of them without a key; few keys, so that they come again.
keyed = st.builds("k{}/{:016x}".format, st.integers(0, 3), st.sampled_from((0, 0, 0, 1)))
items = st.lists(
    st.tuples(event_ids, st.sampled_from(USERS), st.just("") | keyed), min_size=1, max_size=6
)
states = st.sampled_from(("booked", "waiting", "cancelled", "left_waiting_list"))
# How many changes more may go unrecorded: mostly any number.
rooms = st.sampled_from((UNBOUNDED,) * 6 + (0, 1, 2, 4))


class ScriptsAgainstModel(RuleBasedStateMachine):
    """One partition, and the model that says what it should hold."""

    def __init__(self, backend: Backend, mutation: Mutation | None = None) -> None:
        super().__init__()
        self.partition = Partition(backend, mutation).open()
        self.model = PartitionModel(seq=1)
        self.loaded: set[int] = set()
        self.last: tuple[str, list[Item], Reply] | None = None

    @initialize(
        capacity=st.integers(1, 3),
        spare=st.none() | st.integers(0, 2),
        users=st.permutations(USERS),
        of=st.integers(1, len(USERS)),
    )
    def begin_with_a_queue(
        self, capacity: int, spare: int | None, users: list[str], of: int
    ) -> None:
        """All runs have an event that is wanted: opened, or loaded with `spare` tickets free."""
        if spare is None:
            self.open_events([(EVENTS[0], capacity)])
            self.book([(EVENTS[0], user) for user in users[:of]])
        else:
            kept = dict.fromkeys(users[:of], "waiting") | dict.fromkeys(users[:capacity], "booked")
            self.load_event(EVENTS[0], spare, kept)

    @rule(
        wanted=st.lists(st.tuples(event_ids, st.integers(1, 3)), min_size=1, max_size=3),
        room=rooms,
    )
    def open_events(self, wanted: list[tuple[int, int]], room: int = UNBOUNDED) -> None:
        """An id that is known already, twice in the call, or used up is refused."""
        most = self._most(room)
        asked = ((e, c, "Name", '{"a": 1}') for e, c in wanted)
        reply = self.partition.open_events(*asked, unrecorded_max=most)
        expected = [self.model.open(event, capacity, most) for event, capacity in wanted]
        assert [(o, int(s)) for o, s, _ in reply.items] == [(a.outcome, a.seq) for a in expected]

    @rule(
        event_id=st.sampled_from(EVENTS),
        spare=st.integers(0, 2),
        users=st.dictionaries(st.sampled_from(USERS), states, min_size=1),
    )
    def load_event(self, event_id: int, spare: int, users: dict[str, str]) -> None:
        """An event from the record goes on as it stood; one that is known is not loaded."""
        if event_id in self.model.events:
            assert self.partition.load("begin", event_id, "token", 0) == "PRESENT"
            return
        booked = sum(state == "booked" for state in users.values())
        pairs = list(users.items())
        self.partition.load_whole(event_id, booked + spare, spare, pairs)
        self.model.events[event_id] = Event(
            booked + spare,
            {user: (state, seq) for seq, (user, state) in enumerate(pairs, start=1)},
            [user for user, state in pairs if state == "waiting"],
        )

    @rule(wanted=items, room=rooms)
    def book(self, wanted: list[Item], room: int = UNBOUNDED) -> None:
        """A batch of bookings comes to what the model says of them one by one."""
        most = self._most(room)
        reply = self.partition.book(*wanted, unrecorded_max=most)
        self._compare(reply, [self.model.book(*item, most=most) for item in wanted])
        self.last = ("book", wanted, reply)

    @rule(wanted=items, room=rooms)
    def cancel(self, wanted: list[Item], room: int = UNBOUNDED) -> None:
        """So does a batch of cancellations, promotions included."""
        most = self._most(room)
        reply = self.partition.cancel(*wanted, unrecorded_max=most)
        self._compare(reply, [self.model.cancel(*item, most=most) for item in wanted])
        self.last = ("cancel", wanted, reply)

    @rule(behind=st.integers(0, 3))
    def put_on_record(self, behind: int) -> None:
        """The watermark comes near the last change; it never goes back."""
        upto = max(self.model.recorded, self.model.seq - behind)
        self.partition.raise_watermark(upto)
        self.model.recorded = upto

    @rule(which=st.integers(0, 7))
    def a_holder_gives_back(self, which: int) -> None:
        """Somebody who surely has a ticket of the first event, so that promotions are common."""
        event = self.model.events[EVENTS[0]]
        holders = [user for user, (state, _) in event.states.items() if state == "booked"]
        if holders:
            self.cancel([(EVENTS[0], holders[which % len(holders)])])

    @rule(which=st.integers(0, 7), back=st.booleans())
    def a_waiter_leaves(self, which: int, back: bool) -> None:
        """Somebody who surely waits leaves, perhaps to join again at the end."""
        waiting_list = self.model.events[EVENTS[0]].waiting_list
        if waiting_list:
            user = waiting_list[which % len(waiting_list)]
            self.cancel([(EVENTS[0], user)])
            if back:
                self.book([(EVENTS[0], user)])

    @rule(times=st.integers(1, 10))
    def somebody_comes_and_goes(self, times: int) -> None:
        """More keys of one user than are kept, and then the first of them again."""
        event, user = self.model.events[EVENTS[0]], USERS[0]
        first = f"n{self.model.seq}/{0:016x}"
        for number in range(times):
            key = f"n{self.model.seq}/{0:016x}" if number else first
            held = event.state(user)[0] in ("booked", "waiting")
            (self.cancel if held else self.book)([(EVENTS[0], user, key)])
        self.book([(EVENTS[0], user, first)])

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat_the_last_call(self) -> None:
        """The same number again: the same answer, and nothing changes."""
        assert self.last is not None
        script, wanted, reply = self.last
        number = self.partition._calls[f"w1:{script}"]
        again = getattr(self.partition, script)(*wanted, number=number)
        assert again.items == reply.items

    @rule(wanted=items, freeze=st.sets(st.sampled_from(EVENTS[1:]), max_size=1))
    def begin_another_epoch(self, wanted: list[Item], freeze: set[int]) -> None:
        """While closed, and with an old epoch's scripts, nothing happens; then all goes on.

        Which events are frozen is said anew by each; one that was goes, and may be loaded again.
        """
        partition, old = self.partition, self.partition.shas
        assert partition.close(f"{partition.epoch + 1} gone", str(partition.epoch))[0] == "CLOSED"
        before = partition.stored()
        assert partition.book(*wanted).word == partition.cancel(*wanted).word == "FENCED"
        assert partition.stored() == before
        thawed = self.model.frozen - freeze
        partition.open(partition.epoch + 1, frozen=freeze, thawed=thawed)
        self.model.begin_epoch()
        self.model.frozen = freeze
        for event_id in thawed:
            self.model.events.pop(event_id, None)
        self.last = None
        new, partition.shas = partition.shas, old
        assert partition.book(*wanted).word == "FENCED"
        partition.shas = new
        partition._calls.clear()

    @invariant()
    def tells_everybody_their_state_and_exact_position(self) -> None:
        """Gaps or not."""
        self._read([(event_id, user) for event_id in EVENTS for user in ("", *USERS)])

    @invariant()
    def stores_what_the_model_holds(self) -> None:
        """Counters, users, order of the waiting list; nothing left over."""
        for event_id, event in self.model.events.items():
            assert self.partition.counters(event_id) == (event.available, len(event.waiting_list))
            assert self.partition.states(event_id) == event.states
            for user, held in self.partition.users(event_id).items():
                assert " ".join(held.split(" ")[4:]) == event.kept(user)
            assert self.partition.waiters(event_id) == event.waiting_list
            elements = self.partition.elements(event_id)
            turns = [int(element.split(" ")[0]) for element in elements]
            assert turns == list(range(turns[0], turns[0] + len(turns))) if turns else True
            if not event.waiting_list:
                assert not elements
                assert not self.partition.gaps(event_id)

    @invariant()
    def never_sells_above_capacity(self) -> None:
        """Counted from the users, not from the counter."""
        for event_id, event in self.model.events.items():
            held = [state for state, _ in self.partition.states(event_id).values()]
            assert held.count("booked") <= event.capacity

    @invariant()
    def writes_every_change_once_and_densely(self) -> None:
        """The outbox holds the model's changes, each entry's id is its last, seq has no gap."""
        changes = self.partition.changes()
        assert [seq for seq, *_ in changes] == list(range(1, len(changes) + 1))
        made = [c for c in changes if c[1] != "epoch_began"]
        assert made == [(c.seq, c.kind, c.event, c.user) for c in self.model.changes]
        told = [c.details for e in self.partition.entries() for c in e.changes if c.user_id]
        assert told == [c.details for c in self.model.changes if c.user is not None]
        assert self.partition.meta()["seq"] == str(len(changes)) == str(self.model.seq)

    @staticmethod
    def _compare(reply: Reply, expected: Sequence[Answer]) -> None:
        assert reply.word == "OK"
        found = [(o, int(s), x if o == "REPLAYED" else int(x)) for o, s, x in reply.items]
        assert found == expected

    def _most(self, room: int) -> int:
        """Return the bound at which so many more changes are let through."""
        return self.model.seq - self.model.recorded + room

    def _read(self, wanted: Sequence[Item]) -> None:
        found = [
            (words[0], *words[1:4], *words[7:10]) for words in self.partition.read(*wanted).items
        ]
        assert found == [self._shown(*item) for item in wanted]

    def _shown(self, event_id: int, user: str) -> tuple[str, ...]:
        event = self.model.events.get(event_id)
        if event is None:
            return ("NO_EVENT", "", "", "", "", "", "")
        state, seq = event.state(user)
        counts = (event.capacity, event.available, len(event.waiting_list))
        position = str(event.position(user))
        return ("FOUND", *map(str, counts), state, str(seq) if state else "", position)


def run(
    backend: Backend,
    chosen: settings,
    mutation: Mutation | None = None,
    *,
    chance: int | None = None,
) -> None:
    """Run the machine on a backend, each example in a partition of its own.

    `chance` is the seed of all of them; with none they are others each time.
    """
    # A function that makes a machine does as well as its class, whatever the annotation says.
    machine: Any = partial(ScriptsAgainstModel, backend, mutation)
    if chance is not None:
        machine = seed(chance)(machine)
    run_state_machine_as_test(machine, settings=chosen)


def test_scripts_do_what_the_model_does(backend: Backend) -> None:
    """No sequence of batches, reads, repeats, loads and epochs tells scripts and model apart."""
    run(backend, SETTINGS)


MUTANTS = {
    "a promotion ignores who left": Mutation(
        "cancel", "state == 'waiting' and waits_with == turn", "true"
    ),
    "a promotion ignores turns": Mutation(
        "cancel", "state == 'waiting' and waits_with == turn", "state == 'waiting'"
    ),
    "a promotion skips one too many": Mutation(
        "cancel",
        "math.max(1, run_of_gaps(event, turn))",
        "math.max(1, run_of_gaps(event, turn) + 1)",
    ),
    "a promotion leaves the list as it is": Mutation(
        "cancel", "event.popped = event.popped + 1\n", "\n"
    ),
    "a booking takes no ticket": Mutation("book", "event.available = event.available - 1", ""),
    "a booking overtakes the waiting list": Mutation(
        "book", "event.available > 0 and event.waiting == 0", "event.available > 0"
    ),
    "a booking sells one too many": Mutation("book", "event.available > 0", "event.available >= 0"),
    "a joiner's turn is used twice": Mutation("book", "event.next_turn = event.next_turn + 1", ""),
    "who leaves leaves no gap": Mutation(
        "cancel", "redis.call('ZADD', event.gaps_key, unpack(event.left))", ""
    ),
    "the gap at the head is forgotten": Mutation(
        "cancel", "'(' .. string.match(head, '^%d+')", "string.match(head, '^%d+')"
    ),
    "a position ignores the gaps": Mutation("read", "turn - head + 1 - gone", "turn - head + 1"),
    "a position of the same call is asked of Redis": Mutation(
        "book",
        "ahead >= 0 and event.waited + ahead + 1 or position_of",
        "position_of",
    ),
    "an empty list is kept": Mutation(
        "cancel", "event.waiting == 0 and (event.popped > 0 or event.left)", "false"
    ),
    "meta's seq stands still": Mutation(
        "cancel", "redis.call('HSET', meta_key, 'seq', text(seq))", ""
    ),
    "a cancellation is not in the entry": Mutation(
        "cancel",
        "changes[#changes + 1] = kind",
        "changes[#changes + (kind == 'left' and 0 or 1)] = kind",
    ),
    "a repeated call runs again": Mutation("book", "last_number == number", "false"),
    "bookings know no bound": Mutation("book", "seq - recorded >= unrecorded_max", "false"),
    "bookings go one beyond the bound": Mutation(
        "book", "seq - recorded >= unrecorded_max", "seq - recorded > unrecorded_max"
    ),
    "cancellations know no bound": Mutation("cancel", "seq - recorded >= unrecorded_max", "false"),
    "openings know no bound": Mutation("open_event", "seq - recorded >= unrecorded_max", "false"),
    "the bound counts what is on record": Mutation(
        "book", "seq - recorded >= unrecorded_max", "seq >= unrecorded_max"
    ),
    "who is named twice in a call is a stranger twice": Mutation(
        "book", "  local last = #changed\n  event.users[user] = held\n", "  local last = #changed\n"
    ),
    "a line that has moved is not written": Mutation(
        "cancel", "if event.waiting == event.waited and event.next_turn", "if event.next_turn"
    ),
    "a key is forgotten": Mutation("book", "tail = string.match(tail, '^ %S+(.*)$')", "tail = ''"),
    "nine keys are kept": Mutation("book", "kept > 8", "kept > 9"),
    "a key's payload is not looked at": Mutation("cancel", "key .. digest ~= keyed", "false"),
    "a key that did something does it again": Mutation("cancel", "if not at then", "if true then"),
    "a change forgets its user's keys": Mutation("cancel", ".. turn .. tail", ".. turn"),
    "the journal is not told of a reassigned ticket": Mutation(
        "cancel", "outcome == 'reassigned' and", "false and"
    ),
    "a closed partition serves": Mutation("book", "or meta[3] ~= '1'", ""),
    "another epoch's script serves": Mutation("book", "meta[1] ~= EPOCH or", ""),
}


SHOWN_BY = {
    "a booking overtakes the waiting list": 7,
    "a booking takes no ticket": 0,
    "a joiner's turn is used twice": 0,
    "a key is forgotten": 3,
    "a key's payload is not looked at": 40,
    "a position of the same call is asked of Redis": 7,
    "nine keys are kept": 3,
    "openings know no bound": 40,
}
"""The seed whose first two examples show it; it is 2 for all others."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_script_is_caught(name: str) -> None:
    """Negative control: the same machine fails on each of these scripts.

    Two examples that have shown it are tried first: without them one of the scripts takes 200, and
    all together five times as long. After a change of the machine others may be needed.
    """
    backend, mutation = Backend.fake(), MUTANTS[name]
    Partition(backend, mutation).open()
    control = settings(SETTINGS, phases=[Phase.generate], database=None, report_multiple_bugs=False)

    def look() -> None:
        run(backend, settings(control, max_examples=2), mutation, chance=SHOWN_BY.get(name, 2))
        run(backend, settings(control, max_examples=500, derandomize=True), mutation)

    with pytest.raises((AssertionError, ResponseError, CorruptEntryError)):
        look()
