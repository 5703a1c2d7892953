"""What is pure in the bench: requests, wrk's words, ratios, tables, the choice of groups."""

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from loadtests.benching import (
    comparing,
    comparison_report,
    groups,
    plot,
    processes,
    report,
    trees,
    wrk,
)
from loadtests.benching.cpu import snapshot
from loadtests.benching.measures import (
    Lag,
    Measured,
    Pair,
    Sent,
    change,
    interval_tail,
    percentile,
    ratio,
    summed_us,
)
from loadtests.benching.overload import Load, verdicts
from loadtests.benching.rounds import GroupResult
from loadtests.benching.stage import Options, Stage
from loadtests.benching.traffic import Traffic, booking
from loadtests.benching.variants import OnsaleVariant, unlike


def sent(rate: float = 100.0, *, answers: int = 100, refused: int = 0, in_flight: int = 0) -> Sent:
    """Return a run."""
    return Sent(answers / rate, answers, refused, 0, 1.0, 2.0, in_flight)


def measured(rate: float) -> Measured:
    """Return a round of a variant."""
    return Measured(sent(rate), {"api": 10.0, "generator": 2.0}, Lag(20, 5.0, 9.0), 0.02)


def test_each_request_is_whole_and_by_another_user() -> None:
    """Bookings differ in their users alone, and say how long their bodies are."""
    requests = list(itertools.islice(booking(7, "r01-", first=5).requests("h:1"), 3))
    heads, bodies = zip(*(request.split(b"\r\n\r\n") for request in requests), strict=True)
    assert [json.loads(body) for body in bodies] == [
        {"eventId": 7, "userId": f"r01-{number:09}"} for number in (5, 6, 7)
    ]
    for head, body in zip(heads, bodies, strict=True):
        assert head.startswith(b"POST /book HTTP/1.1\r\nHost: h:1\r\n")
        assert f"Content-Length: {len(body)}".encode() in head


def test_events_and_users_among_many_are_of_those_that_there_are() -> None:
    """What is taken at random stays within its range, and the length fits each."""
    traffic = Traffic("POST", "/book", "<event>,<user>", events=range(8, 12), users="p", among=3)
    for request in itertools.islice(traffic.requests("h"), 50):
        head, _, body = request.decode().partition("\r\n\r\n")
        event, user = body.split(",")
        assert int(event) in range(8, 12)
        assert user in {"p000000000", "p000000001", "p000000002"}
        assert f"Content-Length: {len(body)}\r\n" in f"{head}\r\n"


def test_a_constant_request_is_a_constant_in_lua() -> None:
    """The generator spends nothing on what never changes."""
    script = Traffic("GET", "/status/3").lua("h:1", seed=1)
    assert 'return "GET /status/3 HTTP/1.1\\r\\nHost: h:1\\r\\n\\r\\n"' in script
    assert "string.format" not in script


def test_statuses_are_counted_only_where_asked_for() -> None:
    """Counting costs the generator in every answer."""
    usual = booking(1, "r-")
    assert "function response" not in wrk.script(usual, "h", 1)
    counting = Traffic("GET", "/", counts_statuses=True)
    assert "function response" in wrk.script(counting, "h", 1)


def test_what_wrk_prints_is_read() -> None:
    """Its own summary is passed over, the script's line counts."""
    line = {"seconds": 2.0, "answers": 50, "refused": 5, "errors": 1, "p50": 1500, "p99": 9000}
    output = f"Running 2s test\nonsale-bench {json.dumps({**line, 'statuses': {}})}\n"
    found = wrk.parse(output, connections=64)
    assert (found.good, found.rate, found.p50_ms, found.p99_ms) == (45, 22.5, 1.5, 9.0)
    assert (found.errors, found.in_flight_max) == (1, 64)


def test_a_wrk_that_could_not_connect_is_no_result() -> None:
    """Nothing is made of what it says then but an error that repeats it."""
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused\n", connections=64)


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """Not the ratio of the medians: a round in which both were slow counts as any other."""
    over = [measured(rate) for rate in (100, 10, 300)]
    under = [measured(rate) for rate in (100, 20, 100)]
    found = ratio(Pair("a", "b", 0.9), over, under)
    assert (found.median, found.least, found.most) == (1.0, 0.5, 3.0)
    assert found.verdict == "holds"
    assert ratio(Pair("a", "b", 1.01), over, under).verdict == "does not hold"
    assert ratio(Pair("a", "b"), over, under).verdict == ""


def test_a_change_is_told_from_noise_by_the_ratios_of_the_rounds() -> None:
    """Each round is a ratio of its own: what slows both in one round is in neither's number."""
    base = [100.0, 50.0, 200.0, 100.0, 100.0, 100.0]
    slower = change([each * 1.03 for each in base], base)
    assert slower.median == pytest.approx(1.03)
    assert slower.interval == pytest.approx((1.03, 1.03))
    assert slower.verdict == "a change"
    noise = change([101, 49, 203, 97, 100, 99], base)
    assert (noise.least, noise.most) == pytest.approx((0.97, 1.015))
    assert noise.interval == pytest.approx((0.97, 1.015))
    assert noise.verdict == "noise"
    few = change([3, 1, 2], [1, 1, 1])
    assert (few.median, few.interval, few.verdict) == (2, None, "too few rounds")


@pytest.mark.parametrize(
    ("rounds", "tail"), [(1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (15, 4), (25, 8)]
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(rounds: int, tail: int) -> None:
    """The numbers of the tables: 15 values give the 4th and the 12th, fewer than 6 give none."""
    assert interval_tail(rounds) == tail


def test_the_service_s_cpu_time_is_without_the_generator_s() -> None:
    """API, stores and writer are the service."""
    assert summed_us(measured(1)) == 10.0


class Loaded(OnsaleVariant):
    """A scenario of a service that is not there: it notes which tree was loaded, and when."""

    def __init__(self, loaded: list[str]) -> None:
        """Take the list to note it in."""
        super().__init__("book")
        self._loaded = loaded

    async def prepare(self, stage: Stage) -> None:
        """Bring nothing up."""
        self.stage = stage

    async def run(self, number: int, seconds: float) -> Measured:
        """Return a rate and CPU time that drift from round to round, and differ by tree."""
        del seconds
        self._loaded.append(self.stage.tree.name)
        here = self.stage.tree is trees.HERE
        cpu = {"api": (40.0 + number) * (1.02 if here else 1.0), "generator": 9.0}
        return replace(measured(100.0 / (number + 1)), cpu_us=cpu, idle=0.25)


def test_two_trees_are_loaded_in_turn_and_compared_round_by_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A B, B A: the drift of the machine is in no ratio, and neither tree is always second."""
    loaded: list[str] = []
    monkeypatch.setattr(comparing, "scenarios", lambda: {"book": Loaded(loaded)})
    monkeypatch.setattr(comparing, "LOOK_S", 0.02)
    base = trees.Tree("base", Path("/base"), "python")
    found = asyncio.run(comparing.measure("book", base, Options(6, 1.0, 4, wrk=False)))
    here = trees.HERE.name
    assert loaded[2:] == ["base", here, here, "base"] * 3
    assert (found.rate.median, found.rate.verdict) == (1.0, "noise")
    assert found.cpu.median == pytest.approx(1.02)
    assert found.cpu.verdict == "a change"
    text = comparison_report.comparison(found)
    assert "| book | CPU µs per answer | 1.020 | 1.020 to 1.020 | 1.020 to 1.020 | a change |" in (
        text.splitlines()
    )
    assert "and 25% (median) while one was loaded." in text


def test_a_commit_s_files_are_unpacked_and_run_by_this_interpreter(tmp_path: Path) -> None:
    """Another lock has an environment of its own, made as that tree's Makefile makes it."""
    repository = tmp_path / "repository"
    (repository / "requirements").mkdir(parents=True)
    lock = repository / trees.LOCK
    lock.write_bytes((processes.ROOT / trees.LOCK).read_bytes())
    makefile = ".venv/.run:\n\tmkdir -p .venv/bin && ln -s $(PYTHON) .venv/bin/python\n"
    (repository / "Makefile").write_text(makefile)
    git(repository, "init", "-q")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "one")
    lock.write_text("other==1\n")
    git(repository, "commit", "-q", "-a", "-m", "two")

    same, note = trees.unpack("HEAD~1", tmp_path / "same", repository)
    assert (same.python, same.path) == (sys.executable, tmp_path / "same")
    assert note == "requirements/run.txt is the same in both trees."
    assert (same.path / trees.LOCK).read_bytes() == (processes.ROOT / trees.LOCK).read_bytes()

    other, note = trees.unpack("HEAD", tmp_path / "other", repository)
    assert other.python == str(tmp_path / "other/.venv/bin/python")
    assert Path(other.python).resolve() == Path(sys.executable).resolve()
    assert "differs" in note
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "repository", "same"]


def test_an_interpreter_without_optimisation_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are those of another interpreter than most services run."""
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "'--prefix=/usr'")
    assert "**Warning**: it was built without --enable-optimizations" in trees.build()
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "'--enable-optimizations'")
    assert "Warning" not in trees.build()


def git(repository: Path, *arguments: str) -> None:
    """Run git with an author, and without the settings of the account."""
    names = [f"{name}=test" for name in ("user.name", "user.email")]
    options = [word for name in names for word in ("-c", name)]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    argv = ["git", "-C", str(repository), *options, *arguments]
    subprocess.run(argv, check=True, env=environment)


def test_a_percentile_is_one_of_the_values() -> None:
    """The p99 of a hundred is the last but none."""
    assert percentile(range(100), 0.99) == 99
    assert percentile([5.0], 0.5) == 5.0
    assert percentile([], 0.5) == 0.0


def test_a_process_has_used_what_all_below_it_have(tmp_path: Path) -> None:
    """Children, theirs, and those that were reaped count; a name may hold anything."""
    numbers = {1: (0, 10, 0), 2: (1, 20, 5), 3: (2, 30, 0), 4: (9, 40, 0)}
    for pid, (parent, used, reaped) in numbers.items():
        (tmp_path / str(pid)).mkdir()
        rest = " ".join(["0"] * 9)
        line = f"{pid} (a) b) S {parent} {rest} {used} 0 {reaped} 0 20\n"
        (tmp_path / str(pid) / "stat").write_text(line)
    (tmp_path / "stat").write_text("cpu 100 0 50 700 50 0 0 100 0 0\ncpu0 1\n")
    found = snapshot(tmp_path)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert found.of([1]) == pytest.approx(65 * tick)
    assert found.of([3, 4]) == pytest.approx(70 * tick)
    assert found.busy_s == pytest.approx(250 * tick)
    assert found.all_s == pytest.approx(1000 * tick)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"booked": 90}, []),
        ({"booked": 154}, []),
        ({"booked": 89}, ["89 changes `booked` after 90 good answers"]),
        ({"booked": 155}, ["155 changes `booked` after 90 good answers"]),
        ({}, ["0 changes `booked` after 90 good answers"]),
        ({"booked": 90, "waiting": 1}, ["1 changes `waiting`"]),
    ],
)
def test_the_record_has_each_good_answer_and_what_was_in_flight(
    changes: dict[str, int], wrong: list[str]
) -> None:
    """One answer that is not on record is found, and so is one change too many."""
    assert unlike(changes, "booked", sent(refused=10, in_flight=64)) == wrong


def test_reads_leave_nothing_on_record() -> None:
    """A change behind a request that changes nothing is found."""
    assert not unlike({}, "", sent())
    assert unlike({"booked": 1}, "", sent()) == ["1 changes `booked`"]


def test_a_choice_keeps_pairs_together_and_runs_the_rest_alone() -> None:
    """Two neighbours are compared; one without its partner is measured, once."""
    (pair,) = groups.chosen(["book", "no-op"])
    assert [variant.name for variant in pair.variants()] == ["no-op", "book"]
    assert [(each.over, each.under) for each in pair.pairs] == [("book", "no-op")]
    (alone,) = groups.chosen(["book"])
    assert [variant.name for variant in alone.variants()] == ["book"]
    assert not alone.pairs
    assert groups.chosen([]) == list(groups.GROUPS)


@pytest.mark.parametrize("group", groups.GROUPS, ids=lambda group: group.title)
def test_what_is_compared_runs_next_to_each_other(group: groups.Group) -> None:
    """Whatever disturbs the machine for seconds disturbs both."""
    names = [variant.name for variant in group.variants()]
    assert len(set(names)) == len(names)
    for pair in group.pairs:
        assert abs(names.index(pair.over) - names.index(pair.under)) == 1, pair


def test_the_report_has_a_line_for_each_variant_and_ratio() -> None:
    """Medians, spread, CPU time of each process, lag, and what was wrong."""
    rounds = {"book": [measured(100), measured(300)], "no-op": [measured(100), measured(100)]}
    found = ratio(Pair("book", "no-op", 1.0), rounds["book"], rounds["no-op"])
    result = GroupResult("Bookings", rounds, [found], ["1 sold"], ["book, round 1: it burns"])
    lines = report.group(result).splitlines()
    assert "| book | 200 (100 to 300) | 1.00 | 2.00 | 10.0 | 2.0 | 12.0 | 5, 9 | 20 | 0 |" in lines
    assert "Verified: 1 sold." in lines
    assert "**Wrong**: book, round 1: it burns." in lines
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert len(columns) == 1
    assert "| book ÷ no-op | 2.00 | 1.00 to 3.00 | 1 | holds |" in report.ratios([result])


def test_the_head_says_what_it_takes_to_repeat_it() -> None:
    """Date, command, commit, cores and versions."""
    text = report.head(Options(7, 4.0, 64, wrk=True), "loadtests/bench.py --only book")
    assert "`loadtests/bench.py --only book`" in text
    assert re.search(r"# Bench, \d{4}-\d\d-\d\d\n", text)
    assert re.search(r"\d+ cores of ", text)
    assert "7 rounds of 4 s" in text


def test_the_picture_is_xml_with_a_bar_for_each_ratio() -> None:
    """One too great for the scale ends at its edge."""
    pairs = [Pair("a", "b", 1.0), Pair("c & d", "e")]
    ratios = [ratio(pair, [measured(900)], [measured(100)]) for pair in pairs]
    tree = ET.fromstring(plot.svg(ratios, "Bench"))
    bars = [each for each in tree.iter() if each.tag.endswith("rect")][1:]
    assert len(bars) == 2
    assert float(bars[0].attrib["width"]) == 520


def test_overload_is_held_against_what_is_hoped() -> None:
    """Goodput against the peak, its p99 against that at 70 %, the time of a refusal."""

    def load(good: float, p99: float, refused_p99: float = 0.0) -> Load:
        return Load(good, good, good, (1.0, p99), (1.0, refused_p99), 0.5, 0.0)

    text = verdicts([(load(1000, 20), load(700, 10), load(960, 31, 9))])
    assert "÷ peak 0.96 (at least 0.95): holds" in text
    assert "70 % 3.1 (at most 3): does not hold" in text
    assert "503 p99 9.0 ms (at most 10): holds" in text


def test_nothing_is_said_of_refusals_where_there_were_none() -> None:
    """The time of no answer is not a good time."""
    loads = [Load(1, 1, 1, (1.0, 1.0), (0.0, 0.0), 0.0, 0.0)] * 3
    text = verdicts([(loads[0], loads[1], loads[2])])
    assert "503" not in text
    assert "nothing was refused" in text
