"""The runbook and CONTRIBUTING against the code: what they name is there, under that name."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.cli import main
from service.settings import Settings, variable_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {name: (ROOT / name).read_text() for name in ("docs/runbook.md", "CONTRIBUTING.md")}
RUNBOOK = DOCUMENTS["docs/runbook.md"]


# Not at import: each process of a run would parse the package while it collects.
@cache
def words_of_the_code() -> frozenset[str]:
    """Return every text in the code."""
    return frozenset(
        node.value
        for path in (ROOT / "service").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def spans() -> set[str]:
    """Return all that stands between backticks, in both documents."""
    prose = [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in DOCUMENTS.values()]
    return {" ".join(span.split()) for text in prose for span in re.findall("`([^`]+)`", text)}


def blocks() -> list[str]:
    """Return the lines of the blocks that a shell is to run."""
    found = [re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for text in DOCUMENTS.values()]
    return [line for of_one in found for block in of_one for line in block.splitlines()]


def commands() -> list[tuple[str, ...]]:
    """Return every `onsale` command that is named, without its options and arguments."""
    found = set()
    for said in [*spans(), *blocks()]:
        match = re.search(r"(?:^|[ /])onsale ((?:[a-z]+(?:-[a-z]+)* ?)+)", said)
        if match:
            found.add(tuple(match[1].split())[: 2 if match[1].startswith("migrate") else 1])
    return sorted(found)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_onsale_command_exists(command: tuple[str, ...]) -> None:
    """It has a help of its own."""
    assert CliRunner().invoke(main, [*command, "--help"]).exit_code == 0


def test_every_make_target_exists() -> None:
    """`make -n` knows it."""
    targets = {said.split()[1] for said in [*spans(), *blocks()] if said.startswith("make ")}
    assert {"run", "test", "check"} <= targets
    known = subprocess.run(
        ["make", "-n", *sorted(targets)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert known.returncode == 0, known.stderr


def test_every_metric_is_one() -> None:
    """An operator who greps for it finds it."""
    named = set(re.findall(r"\bonsale_([a-z_]+)", RUNBOOK))
    assert {"open", "writer_stopped", "lag_seconds"} <= named
    known = {word.removeprefix("onsale_") for word in words_of_the_code()}
    assert {name.removesuffix("_total") for name in named} <= known  # a counter's, when scraped


def test_every_setting_is_one() -> None:
    """Under its own name."""
    known = {variable_of(name) for name in Settings.model_fields}
    assert set(re.findall(r"\bONSALE_[A-Z_]+", " ".join(DOCUMENTS.values()))) <= known


@pytest.mark.parametrize(
    "said",
    [
        "all that Redis held is on record",
        "suspended",
        "resumed",
        "not ready",
        "Redis is a read-only replica now.",
        "Redis cannot write to its disk.",
        "cannot serve now",
        "cannot write now",
        "changes of Redis are orphans now",
        "entries do not follow the record",
        "epoch decided",
        "event loaded",
        "step fails",
        "Not on record yet; its Location tells when it is",
        "role down",
        "role up",
        "stays closed",
        "the stores disagree",
        "writing again",
        "the writer goes on",
        "changes set aside",
        "THE WRITER HAS STOPPED, nothing is recorded any more",
        "Redis has no memory left.",
        "The record of this event does not add up.",
        "Redis is empty",
        "Redis was empty",
        "PostgreSQL lost the lineage of a rebuild",
    ],
)
def test_what_an_operator_reads_is_what_is_printed(said: str) -> None:
    """Each line of a log or of an answer that a section goes by."""
    assert said in spans()
    assert said in words_of_the_code()


def test_every_link_leads_somewhere() -> None:
    """To a heading of the same document, or to a file."""
    for name, text in DOCUMENTS.items():
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
        for target in re.findall(r"\]\(([^)]+)\)", text):
            place, _, anchor = target.partition("#")
            assert not anchor or anchor in anchors, target
            assert not place or (ROOT / name).parent.joinpath(place).exists(), target


def test_every_file_that_is_named_exists() -> None:
    """Paths of the repository, at least those with a directory or an ending that tells."""
    files = re.compile(r"[\w./-]+\.(?:md|py|toml|yaml)|(?:docs|tests|loadtests|sql|lua)/[\w./-]*")
    named = {span for span in spans() if files.fullmatch(span)}
    assert len(named) > 8
    places = (ROOT, ROOT / "service", ROOT / "tests")
    missing = {n for n in named if not any((place / n).exists() for place in places)}
    assert missing <= {"lua/verb_noun.lua"}
