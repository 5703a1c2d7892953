"""Which variants are measured next to each other, and what is hoped of their ratios."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from loadtests.benching.ceilings import Ceiling, Rival
from loadtests.benching.changes import Cancel, CatchUp, ManyEvents, SoldOut
from loadtests.benching.measures import Pair
from loadtests.benching.reads import Repeat, SoldOutAgain, Status, User
from loadtests.benching.traffic import Traffic, booking
from loadtests.benching.variants import Book, NoOp, Variant


@dataclass(frozen=True, slots=True)
class Group:
    """Variants in the order in which each round runs them; a pair's two are neighbours there."""

    title: str
    variants: Callable[[], Sequence[Variant]]
    pairs: Sequence[Pair]


_GET_STATUS = Traffic("GET", "/status/1")


def _no_op(name: str = "no-op", connections: int = 0) -> Variant:
    what = "a Starlette service that reads the body and answers a constant"
    return NoOp(name, "starlette", booking(1, "r00-"), what, connections=connections)


def _raw_no_op() -> Variant:
    return NoOp("raw no-op", "raw", booking(1, "r00-"), "the same in raw ASGI")


def _no_op_get() -> Variant:
    what = "GET /status/{event} of the Starlette service that answers a constant"
    return NoOp("no-op get", "starlette", _GET_STATUS, what)


def _postgresql() -> Variant:
    what = "a careful Starlette service on PostgreSQL alone: one statement, committed"
    return Rival("postgresql", what)


def _evalsha() -> Variant:
    what = "a Starlette service with one EVALSHA per request, of a short script, and no record"
    return Rival("evalsha", what)


def _at_1024(name: str, prefer: str = "") -> Variant:
    return Book(name, connections=1_024, prefer=prefer, counts_statuses=True)


GROUPS: Sequence[Group] = (
    Group(
        "Bookings beside a no-op",
        lambda: (
            _raw_no_op(),
            _no_op(),
            Book("book"),
            Book("book everysec", deployment="everysec"),
        ),
        (
            Pair("no-op", "raw no-op"),
            Pair("book", "no-op", 1.0),
            Pair("book", "book everysec", 0.95),
        ),
    ),
    Group(
        "Few connections",
        lambda: (_no_op("no-op 64", 64), Book("book 64", connections=64)),
        (Pair("book 64", "no-op 64", 1.0),),
    ),
    Group(
        "Reads",
        lambda: (Status("status"), _no_op_get(), User("user")),
        (Pair("status", "no-op get", 0.85), Pair("user", "no-op get")),
    ),
    Group(
        "On record before the answer",
        lambda: (_at_1024("recorded 1024", "recorded"), _at_1024("book 1024")),
        (Pair("recorded 1024", "book 1024", 0.8),),
    ),
    Group(
        "Bookings beside others'",
        lambda: (_postgresql(), Book("book"), _evalsha()),
        (Pair("book", "postgresql", 8.0), Pair("book", "evalsha")),
    ),
    Group(
        "Many events",
        lambda: (ManyEvents("10k events"), Book("1 event")),
        (Pair("10k events", "1 event", 0.87),),
    ),
    Group(
        "Many waiters",
        lambda: (SoldOut("1M waiters", many=True), SoldOut("1k waiters", 1_000)),
        (Pair("1M waiters", "1k waiters", 0.95),),
    ),
    Group(
        "Sold out, and again",
        lambda: (
            SoldOut("sold out"),
            _no_op(),
            Repeat("repeat"),
        ),
        (Pair("sold out", "no-op"), Pair("repeat", "no-op")),
    ),
    Group(
        "Again and back",
        lambda: (SoldOutAgain("sold out again"), _no_op(), Cancel("cancel")),
        (Pair("sold out again", "no-op"), Pair("cancel", "no-op")),
    ),
    Group(
        "The writer",
        lambda: (
            Ceiling("incr", "INCR of one key, 100 pipelined, on the service's Valkey"),
            Book("book"),
            CatchUp("catch up"),
            Ceiling("copy", "COPY into a table like the journal alone, 10,000 rows a commit"),
        ),
        (
            Pair("incr", "book"),
            Pair("catch up", "book", 3.0),
            Pair("catch up", "copy", 0.4),
        ),
    ),
    Group(
        "Workers",
        lambda: (Book("2 workers", deployment="two workers"), Book("1 worker")),
        (Pair("2 workers", "1 worker"),),
    ),
)


def names() -> list[str]:
    """Return the names of all variants, each once."""
    return list(dict.fromkeys(v.name for group in GROUPS for v in group.variants()))


def chosen(only: Collection[str]) -> list[Group]:
    """Return the groups with these variants alone, all for none.

    A variant that has no partner among them runs alone, once, in the first group that has it.
    """
    if not only:
        return list(GROUPS)
    found: list[Group] = []
    placed: set[str] = set()
    for group in GROUPS:
        pairs = [pair for pair in group.pairs if {pair.over, pair.under} <= set(only)]
        if pairs:
            placed |= {name for pair in pairs for name in (pair.over, pair.under)}
            found.append(_of(group, pairs, placed))
    for group in GROUPS:
        alone = {v.name for v in group.variants()} & set(only) - placed
        if alone:
            placed |= alone
            found.append(_of(group, (), alone))
    return found


def _of(group: Group, pairs: Sequence[Pair], names: Collection[str]) -> Group:
    wanted = {name for pair in pairs for name in (pair.over, pair.under)} or set(names)
    return Group(
        group.title, lambda: [v for v in group.variants() if v.name in wanted], tuple(pairs)
    )
