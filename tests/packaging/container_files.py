"""Reads the Dockerfile, .dockerignore and compose.yaml as the tests need them.

Knows of their grammar what these files use, and no more: what it does not know makes a test fail.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PASSWORDS = {"POSTGRES_PASSWORD": "p/ä ss@:%#1", "VALKEY_PASSWORD": "s3cret"}

_VARIABLE = re.compile(r"\$\{(\w+):([?-])([^}]*)\}")


@dataclass(frozen=True)
class Instruction:
    """One instruction of the Dockerfile, in its stage (0 is the first)."""

    stage: int
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its words, of either form: ["onsale", "health"] or a shell's."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


def dockerfile() -> list[Instruction]:
    """Return the instructions, comments gone and lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: list[Instruction] = []
    stage = -1
    for line in text.replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        stage += name == "FROM"
        if name:
            found.append(Instruction(stage, name, " ".join(rest.split())))
    return found


DOCKERFILE = dockerfile()


def instructions(name: str, *, stage: int | None = None) -> list[Instruction]:
    """Return all of a name, in order; of one stage, if given."""
    return [i for i in DOCKERFILE if i.name == name and stage in (None, i.stage)]


def image_environment() -> dict[str, str]:
    """Return what the image sets for every role, but for its PATH."""
    words = [word for i in instructions("ENV", stage=1) for word in i.words]
    pairs = (word.partition("=") for word in words)
    return {name: value for name, _, value in pairs if name != "PATH"}


def image_health_check() -> tuple[dict[str, str], list[str]]:
    """Return its options and its command."""
    (check,) = instructions("HEALTHCHECK", stage=1)
    options, _, command = check.text.partition(" CMD ")
    pairs = (word.removeprefix("--").partition("=") for word in options.split())
    return {name: value for name, _, value in pairs}, json.loads(command)


def let_through() -> set[str]:
    """Return what .dockerignore lets into the build, everything else being kept out."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    assert kept[0] == "*", "begin with what keeps everything out"
    return {line.removeprefix("!") for line in kept[1:] if line.startswith("!")}


def composition(environment: Mapping[str, str] = PASSWORDS) -> dict[str, Any]:
    """Return compose.yaml with its variables filled in, as `docker compose config` would.

    Raises LookupError, with the message that it has for it, where a variable is missing.
    """

    def value(match: re.Match[str]) -> str:
        name, operator, word = match.groups()
        if environment.get(name):
            return environment[name]
        if operator == "?":
            msg = f"{name}: {word}"
            raise LookupError(msg)
        return word

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(item) for key, item in node.items()}
        if isinstance(node, list):
            return [filled(item) for item in node]
        return _VARIABLE.sub(value, node) if isinstance(node, str) else node

    found = filled(yaml.safe_load((ROOT / "compose.yaml").read_text()))
    assert isinstance(found, dict)
    return found


def seconds(duration: str) -> float:
    """Return a duration such as 20s."""
    match = re.fullmatch(r"(\d+)s", duration)
    assert match, f"{duration}: say it in seconds"
    return float(match[1])
