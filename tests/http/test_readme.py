"""The README's commands exist, and its example answers are what a fresh service answers."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import PROBLEMS
from service.settings import Settings
from tests.running import Running, running

__all__ = ["running"]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def of(program: str) -> list[list[str]]:
    """Return the README's calls of a program, as words."""
    return [shlex.split(line) for line in COMMANDS if line.split()[0].endswith(program)]


def test_every_command_is_one_that_is_tested_here() -> None:
    """No line of the README escapes these tests."""
    known = len(of("make")) + len(of("onsale")) + len(of("curl"))
    assert known == len(COMMANDS) > 10


@pytest.mark.parametrize("words", of("make"), ids=" ".join)
def test_make_has_the_target(words: list[str]) -> None:
    """`make -n` knows every target that the README names."""
    result = subprocess.run(
        ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("words", of("onsale"), ids=" ".join)
def test_onsale_has_the_command(words: list[str]) -> None:
    """Every command and option has a help that names it."""
    command = [word for word in words[1:] if not word.startswith("-")][:2]
    result = subprocess.run(
        [sys.executable, "-m", "service", *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for option in (word for word in words if word.startswith("--")):
        assert option in result.stdout


def test_curl_prints_what_the_readme_shows(running: Running) -> None:
    """Line by line, on a fresh service; only the times differ."""
    shown = "".join(re.findall(r"```json\n(.*?)```", README, re.DOTALL)).splitlines()
    asked = [_ask(words, str(running.urls["http"])) for words in of("curl")]
    assert len(asked) == len(shown)
    for answer, line in zip(asked, shown, strict=True):
        assert _timeless(answer) == _timeless(json.loads(line))


def test_every_setting_is_in_the_table() -> None:
    """And under its own name."""
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        variable = alias if isinstance(alias, str) else f"ONSALE_{name.upper()}"
        assert f"`{variable}" in README, variable


def test_every_problem_is_in_the_table() -> None:
    """With its status."""
    for code, problem in PROBLEMS.items():
        row = next(line for line in README.splitlines() if f"`{code}`" in line and "|" in line)
        assert str(problem.status) in row


def _ask(words: list[str], address: str) -> Any:
    """Do what a curl line of the README does."""
    url = words[1].replace("http://127.0.0.1:3000", address)
    options = list(zip(words[2::2], words[3::2], strict=True))
    headers = dict(value.split(": ") for name, value in options if name == "-H")
    for name, value in options:
        if name == "-d":
            return httpx.post(url, content=value, headers=headers, trust_env=False).json()
    return httpx.get(url, headers=headers, trust_env=False).json()


def _timeless(answer: Any) -> str:
    return MOMENT.sub("<time>", json.dumps(answer))
