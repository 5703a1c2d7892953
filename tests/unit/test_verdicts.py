"""What a comparison of the stores comes to, case by case."""

import pytest

from service.lineage import NOWHERE, Epoch, Lineage, Position
from service.redis_store import Closed, Meta
from service.verdicts import Verdict, decide, died_between, ordered, went_back

ONE = Lineage([Epoch(1, 0, 0, "begin")])
TWO = Lineage([Epoch(1, 0, 0, "begin"), Epoch(2, 9, 1, "continue")])


def closed(
    last: tuple[int, int] = NOWHERE, recorded: tuple[int, int] = NOWHERE, *, loading: bool = False
) -> Closed:
    """Return what `close` found."""
    return Closed(Position(*last), Position(*recorded), loading)


def meta(epoch: int, next_: str, *, is_open: bool = False) -> Meta:
    """Return a `meta` at an epoch, with what stands in `next`."""
    return Meta(epoch, 9, Position(epoch, 5), is_open, next_, loading=False, reason="")


@pytest.mark.parametrize(
    ("found", "recorded", "lineage", "missing", "replayed", "verdict", "beginning"),
    [
        (closed(), NOWHERE, Lineage(), "", "", "begin", NOWHERE),
        (closed(), (1, 9), ONE, "", "", "rebuild", (1, 9)),
        (closed(), NOWHERE, ONE, "", "", "rebuild", NOWHERE),
        (closed(), (1, 9), Lineage(), "", "", "stay_closed", None),
        (closed(loading=True), NOWHERE, Lineage(), "", "", "stay_closed", None),
        (closed((1, 9), loading=True), (1, 9), ONE, "", "", "rebuild", (1, 9)),
        (closed((1, 9), (1, 5)), (1, 7), ONE, "", "", "continue", (1, 9)),
        (closed((1, 9), (1, 9)), (1, 9), ONE, "", "", "continue", (1, 9)),
        (closed((1, 9), (1, 5)), (1, 7), ONE, "8 to 8", "", "stay_closed", None),
        (closed((1, 9), (1, 9)), (1, 9), ONE, "", "4 changes", "replay", (1, 9)),
        (closed((1, 8), (1, 5)), (1, 9), ONE, "", "", "rebuild", (1, 9)),
        (closed((1, 9), (1, 5)), (1, 7), TWO, "", "", "rebuild", (1, 7)),
        (closed((2, 11), (1, 9)), (1, 9), ONE, "", "", "stay_closed", None),
        (closed((1, 9), (1, 9)), (1, 8), ONE, "", "", "stay_closed", None),
        (closed(NOWHERE, (1, 9)), (1, 8), ONE, "", "", "stay_closed", None),
        (closed((1, 9), (1, 9), loading=True), (1, 8), ONE, "", "", "stay_closed", None),
    ],
)
def test_a_comparison_comes_to_one_verdict(
    found: Closed,
    recorded: tuple[int, int],
    lineage: Lineage,
    missing: str,
    replayed: str,
    verdict: str,
    beginning: tuple[int, int] | None,
) -> None:
    """Begin, continue at R, rebuild at P, replay, or stay closed; never rebuilt where W > P."""
    result = decide(found, Position(*recorded), lineage, missing, replayed)
    assert (result.name, result.beginning) == (verdict, beginning)
    assert result.reason


@pytest.mark.parametrize(
    ("found", "lineage", "known", "epoch"),
    [
        (meta(1, "2 token"), TWO, 1, 2),
        (meta(0, "1 token"), ONE, 0, 1),
        (meta(1, "2 token"), TWO, 2, None),
        (meta(0, "1 token"), ONE, 1, None),
        (meta(1, "2 token", is_open=True), TWO, 1, None),
        (meta(1, ""), TWO, 1, None),
        (meta(1, "3 token"), TWO, 1, None),
        (meta(1, "2 token"), ONE, 1, None),
        (meta(2, "2 token"), TWO, 1, None),
        (meta(1, "2 token"), Lineage(), 1, None),
    ],
)
def test_an_attempt_died_between_the_stores_or_not(
    found: Meta, lineage: Lineage, known: int, epoch: int | None
) -> None:
    """Closed, older than `next`, the epoch of `next` is the newest on record and has no change."""
    died = died_between(found, lineage, known)
    assert (died and died.epoch) == epoch


@pytest.mark.parametrize(
    ("found", "recorded", "lineage", "is_so"),
    [
        (closed((1, 9), (1, 9)), (1, 8), ONE, True),
        (closed((1, 9), (1, 9)), (1, 9), ONE, False),
        (closed((2, 11), (1, 9)), (1, 9), ONE, True),
        (closed(), NOWHERE, Lineage(), False),
    ],
)
def test_a_record_went_back_or_not(
    found: Closed, recorded: tuple[int, int], lineage: Lineage, is_so: bool
) -> None:
    """It lacks a change that Redis knows to be on record, or the epoch that Redis is in."""
    assert went_back(found, Position(*recorded), lineage) == is_so


@pytest.mark.parametrize("found", ["begin", "continue", "replay", "rebuild", "stay_closed"])
@pytest.mark.parametrize("wanted", ["", "rebuild", "stay_closed"])
def test_an_order_is_no_way_round_the_comparison(found: str, wanted: str) -> None:
    """Stores that do not agree stay closed whatever was ordered; otherwise the order counts."""
    beginning = None if found == "stay_closed" else Position(1, 9)
    verdict = Verdict(found, beginning, "found")
    result = ordered(verdict, wanted, "told", Position(1, 9))
    if wanted == "stay_closed":
        assert result == Verdict("stay_closed", None, "told")
    elif wanted == "rebuild" and found in {"continue", "replay", "rebuild"}:
        assert result == Verdict("rebuild", Position(1, 9), "told")
    else:
        assert result == verdict
