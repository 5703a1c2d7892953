"""The scripts as a worker calls them, on either backend, with every reply parsed.

A `Partition` is opened by the handshake's own scripts and then calls the serving scripts of its
epoch by digest. What is stored is read back key by key, so that tests assert on keys.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import fakeredis
import redis

from service import outbox, scripts
from service.keys import event_keys, events_key, partition_keys, tag, watermark_channel

HEADER = 5
NEVER_LATE = 10**17
"""Microseconds of a clock that no test lives to see."""
UNBOUNDED = 10**17
"""More changes than any test makes."""

Item = tuple[int, str] | tuple[int, str, str]
"""Event, user and, of book and cancel, `<key>/<digest>`."""
Change = tuple[int, str, int | None, str | None]
"""Seq, kind, event, user: what the outbox says of one change, without its time and details."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A script broken on purpose: in the text of `script`, `old` becomes `new`."""

    script: str
    old: str
    new: str

    def apply(self, name: str, text: str) -> str:
        """Return the text broken; fails where there is nothing to break."""
        if name != self.script:
            return text
        assert text.count(self.old) == 1, f"{self.old!r} occurs {text.count(self.old)} times"
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Reply:
    """One script's reply: the header's five words, and the items."""

    word: str
    epoch: str
    seq: str
    clock: str
    reason: str
    items: list[tuple[str, ...]]


class Backend:
    """A server for the scripts: fakeredis, which is fast, or Valkey, which decides."""

    def __init__(self, client: Any, kind: Literal["fakeredis", "valkey"]) -> None:
        self.client = client
        self.kind = kind
        self._loaded: dict[tuple[int, Mutation | None], dict[str, str]] = {}

    @classmethod
    def fake(cls) -> "Backend":
        """A server in this process, without keys."""
        server = fakeredis.FakeServer()
        return cls(fakeredis.FakeRedis(server=server, decode_responses=True), "fakeredis")

    @classmethod
    def valkey(cls, url: str) -> "Backend":
        """The real one."""
        return cls(redis.Redis.from_url(url, decode_responses=True), "valkey")

    def eval(self, name: str, names: Sequence[str], *arguments: str | int) -> list[str]:
        """Run a script of the handshake from its text."""
        text = self._text(scripts.source(name))
        reply: list[str] = self.client.eval(text, len(names), *names, *arguments)
        return reply

    def load(self, epoch: int, mutation: Mutation | None = None) -> dict[str, str]:
        """Load the serving scripts of an epoch; return their digests by name."""
        if (epoch, mutation) not in self._loaded:
            shas = {}
            for name, script in scripts.serving_scripts(0, epoch).items():
                text = mutation.apply(name, script.text) if mutation else script.text
                shas[name] = str(self.client.script_load(self._text(text)))
            self._loaded[epoch, mutation] = shas
        return self._loaded[epoch, mutation]

    def _text(self, text: str) -> str:
        return scripts.without_shebang(text) if self.kind == "fakeredis" else text


class Partition:
    """One partition, with keys that no other test has."""

    def __init__(self, backend: Backend, mutation: Mutation | None = None) -> None:
        self.backend = backend
        self.client = backend.client
        self.number = next(_numbers)
        self.keys = partition_keys(self.number)
        self.epoch = 0
        self.shas: dict[str, str] = {}
        self._mutation = mutation
        self._calls: dict[str, int] = {}

    # The handshake.

    def close(self, next_: str, seen_epoch: str = "", seen_next: str = "") -> list[str]:
        """Run close.lua."""
        return self.backend.eval("close", [self.keys.meta], seen_epoch, seen_next, next_)

    def begin_epoch(
        self,
        next_: str,
        epoch: int,
        beginning: int,
        predecessor: int,
        recorded: tuple[int, int],
        *,
        frozen: Iterable[int] = (),
        thawed: Iterable[int] = (),
    ) -> list[str]:
        """Run begin_epoch.lua."""
        names = [*self.keys, *(key for event in thawed for key in event_keys(self.number, event))]
        ids = " ".join(map(str, frozen))
        return self.backend.eval(
            "begin_epoch", names, next_, epoch, beginning, predecessor, *recorded, ids
        )

    def open(
        self, epoch: int = 1, *, frozen: Iterable[int] = (), thawed: Iterable[int] = ()
    ) -> "Partition":
        """Begin an epoch where the last one ends, as the handshake does; load its scripts."""
        meta = self.meta()
        next_ = f"{epoch} token{epoch}"
        assert self.close(next_, meta.get("epoch", ""), meta.get("next", ""))[0] == "CLOSED"
        self.shas = self.backend.load(epoch, self._mutation)
        recorded = (int(meta.get("recorded_epoch", 0)), int(meta.get("recorded", 0)))
        began = self.begin_epoch(
            *(next_, epoch, int(meta.get("seq", 0)), int(meta.get("epoch", 0)), recorded),
            frozen=frozen,
            thawed=thawed,
        )
        assert began == ["BEGUN"]
        self.epoch = epoch
        self._calls.clear()
        return self

    def set_seq(self, seq: int) -> None:
        """Let the next change have the seq `seq + 1`."""
        self.client.hset(self.keys.meta, "seq", str(seq))

    # The serving scripts.

    def call(self, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> list[str]:
        """Call one script of this partition's epoch; return the reply as it came."""
        reply: list[str] = self.client.evalsha(self.shas[script], len(keys), *keys, *arguments)
        return reply

    def book(self, *items: Item, **numbered: str | int) -> Reply:
        """Run book.lua for (event, user), with a key or without."""
        return self._change("book", items, numbered)

    def cancel(self, *items: Item, **numbered: str | int) -> Reply:
        """Run cancel.lua for (event, user), with a key or without."""
        return self._change("cancel", items, numbered)

    def read(self, *items: Item) -> Reply:
        """Run read.lua for (event, user) pairs; an empty user asks for the event alone."""
        keys, arguments = self._arguments(items)
        return _parse(self.call("read", [self.keys.meta, *keys], arguments), 11)

    def open_events(self, *items: tuple[int, int, str, str], **numbered: str | int) -> Reply:
        """Run open_event.lua for (event, capacity, name, details)."""
        places: dict[int, int] = {}
        words: list[str | int] = []
        for event_id, capacity, name, details in items:
            place = places.setdefault(event_id, len(places) + 1)
            words += (place, capacity, name, details)
        keys = [k for event_id in places for k in event_keys(self.number, event_id)]
        arguments = [*self._caller("open_event", numbered), len(places), *places, *words]
        names = [*self.keys, *keys, events_key(self.number)]
        return _parse(self.call("open_event", names, arguments), 3)

    def sell(self, event_id: int, capacity: int) -> None:
        """Open one event."""
        reply = self.open_events((event_id, capacity, "Name", '{"name":"Name"}'))
        assert reply.items[0][0] == "OPENED"

    def load(self, step: str, event_id: int, token: str, *arguments: str | int) -> str:
        """Run one step of load_event.lua; return its outcome, or the refusal."""
        keys = [self.keys.meta, *event_keys(self.number, event_id), events_key(self.number)]
        reply = _parse(self.call("load_event", keys, [step, token, *arguments]), 1)
        return reply.items[0][0] if reply.items else reply.word

    def load_whole(
        self, event_id: int, capacity: int, available: int, users: Sequence[tuple[str, str]]
    ) -> None:
        """Load an event with (user, state) pairs; those that wait wait in this order."""
        assert self.load("begin", event_id, "loader", 0) == "BEGUN"
        turn = 0
        for chunk in _chunks(users, 1000):
            words: list[str | int] = []
            for seq, (user, state) in enumerate(chunk, start=1):
                waits = state == "waiting"
                turn += waits
                words += (user, f"{state} {seq} 1 {turn if waits else 0}", turn if waits else "")
            assert self.load("chunk", event_id, "loader", *words) == "ADDED"
        loaded = self.load(
            "finish", event_id, "loader", capacity, available, turn, turn + 1, "Name", 1, 2
        )
        assert loaded == "LOADED"

    def raise_watermark(self, recorded: int) -> Reply:
        """Run raise_watermark.lua."""
        channel = watermark_channel(self.number)
        return _parse(self.call("raise_watermark", [self.keys.meta], [recorded, channel]), 1)

    def forget_callers(self) -> Reply:
        """Run forget_callers.lua."""
        return _parse(self.call("forget_callers", [self.keys.meta, self.keys.calls], []), 1)

    # What is stored.

    def meta(self) -> dict[str, str]:
        """Return the partition's meta."""
        found: dict[str, str] = self.client.hgetall(self.keys.meta)
        return found

    def calls(self) -> dict[str, str]:
        """Return what is remembered of each caller's last call."""
        found: dict[str, str] = self.client.hgetall(self.keys.calls)
        return found

    def event(self, event_id: int) -> dict[str, str]:
        """Return an event's hash."""
        found: dict[str, str] = self.client.hgetall(event_keys(self.number, event_id).event)
        return found

    def counters(self, event_id: int) -> tuple[int, int]:
        """Return how many tickets are available and how many users wait."""
        event = self.event(event_id)
        return int(event["available"]), int(event["waiting"])

    def users(self, event_id: int) -> dict[str, str]:
        """Return what is stored of each user: `<state> <seq> <quantity> <turn>`, and keys."""
        found: dict[str, str] = self.client.hgetall(event_keys(self.number, event_id).users)
        return found

    def states(self, event_id: int) -> dict[str, tuple[str, int]]:
        """Return each user's state and its seq."""
        parted = {user: held.split(" ") for user, held in self.users(event_id).items()}
        return {user: (words[0], int(words[1])) for user, words in parted.items()}

    def elements(self, event_id: int) -> list[str]:
        """Return the waiting list as stored, those who have left included."""
        name = event_keys(self.number, event_id).waiting_list
        found: list[str] = self.client.lrange(name, 0, -1)
        return found

    def waiters(self, event_id: int) -> list[str]:
        """Return those who wait, first come first; an element lives if its user has its turn."""
        users = self.users(event_id)
        parted = [element.split(" ") for element in self.elements(event_id)]
        return [
            user for turn, user in parted if users[user].split(" ")[0::3][:2] == ["waiting", turn]
        ]

    def gaps(self, event_id: int) -> list[int]:
        """Return the turns of those who left from the middle."""
        name = event_keys(self.number, event_id).gaps
        return [int(turn) for turn in self.client.zrange(name, 0, -1)]

    def entries(self) -> list[outbox.Entry]:
        """Return the outbox, decoded."""
        return [
            outbox.decode(name, fields) for name, fields in self.client.xrange(self.keys.outbox)
        ]

    def changes(self) -> list[Change]:
        """Return every change in the outbox."""
        return [
            (change.seq, change.kind, change.event_id, change.user_id)
            for entry in self.entries()
            for change in entry.changes
        ]

    def stored(self) -> dict[str, Any]:
        """Return every key of the partition with all that it holds."""
        readers = {
            "hash": self.client.hgetall,
            "set": lambda name: sorted(self.client.smembers(name)),
            "list": lambda name: self.client.lrange(name, 0, -1),
            "zset": lambda name: self.client.zrange(name, 0, -1, withscores=True),
            "stream": self.client.xrange,
        }
        names = sorted(self.client.scan_iter(match=f"{tag(self.number)}:*", count=10_000))
        return {name: readers[self.client.type(name)](name) for name in names}

    def stored_but_calls(self) -> dict[str, Any]:
        """Return what `stored` does, without the remembered calls."""
        return {name: held for name, held in self.stored().items() if name != self.keys.calls}

    def _change(self, script: str, items: Sequence[Item], numbered: Mapping[str, Any]) -> Reply:
        keys, arguments = self._arguments((*item, "")[:3] for item in items)
        caller = self._caller(script, numbered)
        return _parse(self.call(script, [*self.keys, *keys], [*caller, *arguments]), 3)

    def _arguments(self, items: Iterable[tuple[Any, ...]]) -> tuple[list[str], list[str | int]]:
        places: dict[int, int] = {}
        found: list[str | int] = []
        for event_id, *words in items:
            found += (places.setdefault(event_id, len(places) + 1), *words)
        keys = [key for event_id in places for key in event_keys(self.number, event_id)]
        return keys, [len(places), *places, *found]

    def _caller(self, script: str, numbered: Mapping[str, Any]) -> tuple[str, int, int, int, int]:
        """Return what stands before the events; a number that is given leaves the count as it is.

        Caller, number, latest, unrecorded_max and awaited.
        """
        assert numbered.keys() <= {"worker", "number", "latest", "unrecorded_max", "awaited"}
        caller = f"{numbered.get('worker', 'w1')}:{script}"
        number = numbered.get("number")
        if number is None:
            number = self._calls[caller] = self._calls.get(caller, 0) + 1
        latest = numbered.get("latest", NEVER_LATE)
        unrecorded_max = numbered.get("unrecorded_max", UNBOUNDED)
        return caller, number, latest, unrecorded_max, numbered.get("awaited", 0)


def outcomes(reply: Reply) -> list[str]:
    """Return the outcome of each item."""
    assert reply.word == "OK", reply
    return [item[0] for item in reply.items]


def _parse(words: list[str], stride: int) -> Reply:
    assert all(isinstance(word, str) for word in words), words
    word, epoch, seq, clock, reason = words[:HEADER]
    items = list(zip(*(iter(words[HEADER:]),) * stride, strict=True))
    return Reply(word, epoch, seq, clock, reason, items)


def _chunks(users: Sequence[tuple[str, str]], length: int) -> Iterable[Sequence[tuple[str, str]]]:
    for at in range(0, len(users), length):
        yield users[at : at + length]
