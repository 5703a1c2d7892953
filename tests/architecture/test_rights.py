"""The rights that are tried are those of the commands that scripts and Python send."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from service import rights
from service.resources import lua_directory

SERVICE = Path(__file__).resolve().parents[2] / "service"
CLIENTS = {"client", "pipe", "pipeline", "subscription"}
SENDS = {"ask", "ask_map", "call", "execute_command"}
NO_COMMAND = {"aclose", "pipeline", "pubsub", "execute", "execute_command", "get_message"}
ELSEWHERE = {"rights", "demo"}
"""What is compared, and a client of the service."""
IN_PARTS = {"SCRIPT", "MEMORY", "CONFIG", "XINFO", "CLIENT", "ACL", "OBJECT"}
OF_CONNECTIONS = {"ping", "select", "multi", "exec"}
"""Sent by redis-py itself: at a connection, and around a transaction."""

_SPEAKS = re.compile(r"^from (?:redis|service\.redis_store)\b", re.MULTILINE)
_FIRST = {"hscan", "zscan", "hmget", "xread"}
"""Commands that begin a tuple which is sent later."""


def in_scripts() -> set[str]:
    """Return every command that a script calls, as an ACL names it."""
    texts = (re.sub(r"--.*", "", path.read_text()) for path in lua_directory().rglob("*.lua"))
    calls = re.compile(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?")
    return {_named(words) for text in texts for words in calls.findall(text)}


def in_python() -> set[str]:
    """Return every command that a module which speaks to Redis sends."""
    found: set[str] = set()
    for path in SERVICE.glob("*.py"):
        text = path.read_text()
        if path.stem not in ELSEWHERE and _SPEAKS.search(text):
            found.update(*map(_sent, ast.walk(ast.parse(text))))
    return found


def _sent(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Tuple) and (words := _words(node.elts)):
        yield from {words[0].lower()} & _FIRST
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return
    name, words = node.func.attr, _words(node.args)
    if name in SENDS and words and words[0].isupper():
        yield _named(words)
    called_on = ast.unparse(node.func.value).rpartition(".")[2].lstrip("_")
    if called_on in CLIENTS and name not in NO_COMMAND:
        yield name.replace("_", "|")


def _words(nodes: Sequence[ast.expr]) -> list[str]:
    """Return the texts that an argument list begins with, two at most."""
    texts = [n.value for n in nodes[:2] if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return texts if nodes and isinstance(nodes[0], ast.Constant) else []


def _named(words: Sequence[str]) -> str:
    return ("|".join(words[:2]) if words[0] in IN_PARTS else words[0]).lower()


def test_the_rights_are_those_of_the_commands() -> None:
    """A command that is new in a script or in Python is tried before a partition opens."""
    listed = {*rights.tried(0), *rights.UNTRIED, *rights.OPTIONAL}
    assert in_scripts() | in_python() | OF_CONNECTIONS == listed


def test_this_check_would_notice() -> None:
    """Negative control: commands are found where they are sent."""
    assert "zadd" in in_scripts()
    assert {"xread", "memory|usage", "hgetall", "ssubscribe", "evalsha", "eval"} <= in_python()


def test_a_try_leaves_nothing() -> None:
    """Whatever it made of the scratch key, its last command removes it."""
    assert list(rights.tried(0))[-1] == "unlink"
