"""Which variants are measured next to each other, and what is hoped of their ratios."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from loadtests.benching.measures import Pair
from loadtests.benching.traffic import booking
from loadtests.benching.variants import Book, NoOp, Variant


@dataclass(frozen=True, slots=True)
class Group:
    """Variants in the order in which each round runs them; a pair's two are neighbours there."""

    title: str
    variants: Callable[[], Sequence[Variant]]
    pairs: Sequence[Pair]


def _no_op() -> Variant:
    what = "a Starlette service that reads the body and answers a constant"
    return NoOp("no-op", "starlette", booking(1, "r00-"), what)


def _raw_no_op() -> Variant:
    return NoOp("raw no-op", "raw", booking(1, "r00-"), "the same in raw ASGI")


GROUPS: Sequence[Group] = (
    Group(
        "Bookings",
        lambda: (_raw_no_op(), _no_op(), Book("book")),
        (Pair("no-op", "raw no-op"), Pair("book", "no-op", 1.0)),
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
