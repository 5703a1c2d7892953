"""Measures a group: everything up, half a round to warm up, then round after round, then the audit.

In a round the variants run one after the other, so that a ratio compares neighbours in time: what a
noisy machine does to one it does to the other.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.benching.groups import Group
from loadtests.benching.measures import Measured, Ratio, ratio
from loadtests.benching.onsale import Onsale
from loadtests.benching.stage import Options, Stage
from loadtests.benching.variants import Variant


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What a group gave: its variants' rounds, the ratios, and what was verified afterwards.

    `wrong` is what was not as promised, in words; `verified` what was looked at and holds.
    """

    title: str
    rounds: dict[str, list[Measured]]
    ratios: Sequence[Ratio]
    verified: Sequence[str] = ()
    wrong: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)


async def measure(group: Group, options: Options) -> GroupResult:
    """Measure a group in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="onsale-bench-") as directory:
        async with contextlib.AsyncExitStack() as taken:
            stage = Stage(Path(directory), options, taken)
            variants = list(group.variants())
            say(f"{group.title}: bringing up")
            for variant in variants:
                await variant.prepare(stage)
            rounds = await _rounds(variants, options)
            verified, wrong = await verify(stage)
    wrong += [
        f"{name}, round {number}: {what}"
        for name, found in rounds.items()
        for number, each in enumerate(found, 1)
        for what in each.wrong
    ]
    ratios = [ratio(pair, rounds[pair.over], rounds[pair.under]) for pair in group.pairs]
    return GroupResult(group.title, rounds, ratios, verified, wrong)


async def _rounds(variants: Sequence[Variant], options: Options) -> dict[str, list[Measured]]:
    rounds: dict[str, list[Measured]] = {variant.name: [] for variant in variants}
    for number in range(options.rounds + 1):
        told = []
        for variant in variants:
            seconds = options.seconds if number else options.seconds / 2
            measured = await variant.run(number, seconds)
            told.append(f"{variant.name} {measured.sent.rate:,.0f}/s")
            if number:
                rounds[variant.name].append(measured)
        say(f"  round {number or 'to warm up'}: {', '.join(told)}")
    return rounds


async def verify(stage: Stage) -> tuple[list[str], list[str]]:
    """Hold each service's record against its own journal; return what holds and what does not."""
    verified: list[str] = []
    wrong: list[str] = []
    for name, onsale in stage.onsales.items():
        checks = (_oversold(onsale), _audit(onsale), _drift(onsale))
        for what, holds in await asyncio.gather(*checks):
            say(f"  {name}: {what}")
            (verified if holds else wrong).append(f"{name}: {what}")
    return verified, wrong


async def _oversold(onsale: Onsale) -> tuple[str, bool]:
    row = await onsale.postgresql.fetchrow(
        "SELECT count(*) AS events, coalesce(sum(sold), 0) AS sold,"
        " count(*) FILTER (WHERE sold > capacity OR sold <> coalesce(booked, 0)) AS wrong"
        " FROM events LEFT JOIN (SELECT event_id, count(*) AS booked FROM bookings"
        " WHERE status = 'booked' GROUP BY event_id) AS held ON event_id = id"
    )
    assert row is not None
    what = f"{row['sold']:,} sold of {row['events']:,} events, {row['wrong']} of them oversold"
    return what, not row["wrong"]


async def _audit(onsale: Onsale) -> tuple[str, bool]:
    began = time.monotonic()
    code, output = await onsale.command("audit", "--json")
    try:
        seq = sum(partition["seq"] for partition in json.loads(output)["partitions"])
    except ValueError:
        return f"`onsale audit` exits {code}: {output.strip()[-500:]}", False
    took = time.monotonic() - began
    return f"`onsale audit` replayed {seq:,} changes in {took:.0f} s and exits {code}", not code


async def _drift(onsale: Onsale) -> tuple[str, bool]:
    began = time.monotonic()
    code, output = await onsale.command("reconcile", "--json")
    took = time.monotonic() - began
    told = "" if not code else f": {output.strip()[-500:]}"
    return (
        f"`onsale reconcile` compared both stores in {took:.0f} s and exits {code}{told}",
        not code,
    )


def say(text: str) -> None:
    """Tell whoever waits."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
