"""The scripts' headers against their bodies, and against what Python knows of them."""

import ast
import re
from pathlib import Path

import pytest

from service import keys, outbox, scripts
from service.resources import lua_directory

LUA = lua_directory()
SERVICE = Path(__file__).resolve().parents[2] / "service"
SCRIPTS = [path.stem for path in scripts.script_files()]
INCLUDES = sorted(path.stem for path in (LUA / "include").glob("*.lua"))
SECTIONS = ["KEYS", "ARGV", "RETURNS", "ERRORS"]

FLAGS = {
    "read": " flags=no-writes",
    "raise_watermark": " flags=allow-oom",
    **dict.fromkeys(scripts.HANDSHAKE, " flags=allow-oom"),
}
"""All others are refused while memory is full, before their first line."""

UNSPELT = {
    "FOUND": "its lane reads the words unless it is NO_EVENT",
    "UNINIT": "whatever else is not OK asks for a handshake",
    "CHANGED": "a step that did not say its word was not done",
    "PRESENT": "the loader goes on only after BEGUN",
    "STALE": "the same",
    "TAKEN": "the loader stops unless ADDED; what it hears at finish is all the same to it",
    "RAISED": "the writer asks only whether the epoch was its own",
    "UNCHANGED": "the same",
    "FORGOTTEN": "nobody asks",
    "TAKES": "the worker names the two outcomes that refuse",
}
"""Outcomes that no line of Python names, and why that is right."""

UNBOUNDED = frozenset(
    [
        "KEYS",
        "SCAN",
        "LPOS",
        "LREM",
        "LRANGE",
        "LINSERT",
        "SMEMBERS",
        "HGETALL",
        "HKEYS",
        "ZREMRANGEBYSCORE",
        "DEL",
        "EXPIRE",
        "FLUSHALL",
        "EVAL",
        "EVALSHA",
        "FCALL",
    ]
)
ALLOWED = {
    "forget_callers": frozenset({"HGETALL"}),  # a field per worker and script
    "begin_epoch": frozenset({"DEL"}),  # the same
}

every_script = pytest.mark.parametrize("name", SCRIPTS)
every_include = pytest.mark.parametrize("name", INCLUDES)

_OUTCOME = re.compile(r"'([A-Z][A-Z_]+)'")
_CALL = re.compile(r"redis\.p?call\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")


def lines(name: str) -> list[str]:
    """Return a script's own lines, includes not resolved."""
    return (LUA / f"{name}.lua").read_text().splitlines()


def header(name: str) -> list[str]:
    """Return the comment that a script begins with, without the includes."""
    found = []
    for line in lines(name)[1:]:
        if not line.startswith("--") or line.startswith("-- @include"):
            break
        found.append(line[2:].removeprefix(" "))
    return found


def section(name: str, wanted: str) -> list[str]:
    """Return one section of a header, its title line first."""
    found: list[str] = []
    for line in header(name):
        title = line.split(" ", 1)[0]
        if title == wanted or (found and title not in SECTIONS):
            found.append(line)
        elif found:
            break
    return found


def body(name: str) -> list[str]:
    """Return the lines behind header and includes."""
    own = lines(name)[1 + len(header(name)) :]
    return [line for line in own if not line.startswith("-- @include")]


def includes(name: str) -> list[str]:
    """Return the names of a script's includes, in order."""
    marked = (line for line in lines(name) if line.startswith("-- @include "))
    return [line.removeprefix("-- @include ").strip() for line in marked]


def code(text: str) -> str:
    """Return Lua without its comments."""
    return re.sub(r"--.*", "", text)


def outcomes(text: str) -> set[str]:
    """Return every outcome that stands in a Lua text: capitals in quotes that are no command."""
    text = code(text).replace("'('", "''")  # the one text with a bracket that is not closed
    return set(_OUTCOME.findall(_CALL.sub("", text)))


def declared(name: str) -> set[str]:
    """Return the outcomes that a header names."""
    returns, errors = section(name, "RETURNS"), section(name, "ERRORS")
    named = {m[1] for line in returns[1:] if (m := re.match(r" {2}([A-Z][A-Z_]+) ", line))}
    if returns[0].startswith("RETURNS OK,"):
        named.add("OK")
    return named | set(re.findall(r"\b[A-Z][A-Z_]+\b", errors[0].removeprefix("ERRORS")))


def capitals(module: Path) -> set[str]:
    """Return every word of capitals that a module compares with, or looks up in a table."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = list(node.keys)
        for part in parts:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                found |= set(re.findall(r"^[A-Z][A-Z_]+$", part.value))
    return found


# Headers.


def test_every_script_is_served_or_of_the_handshake() -> None:
    """The files are exactly those that Python loads or sends."""
    assert sorted(SCRIPTS) == sorted([*scripts.SERVING, *scripts.HANDSHAKE])


@every_script
def test_a_script_begins_with_its_engine(name: str) -> None:
    """`#!lua` and its flags: what may run while memory is full is decided here."""
    assert lines(name)[0] == "#!lua" + FLAGS.get(name, "")


@every_script
def test_a_header_has_its_sections(name: str) -> None:
    """What it does, then KEYS, ARGV, RETURNS and ERRORS, each once, in this order."""
    titles = [line.split(" ", 1)[0] for line in header(name)]
    assert [title for title in titles if title in SECTIONS] == SECTIONS
    assert re.match(r"[A-Z].+", header(name)[0])


@every_script
def test_outcomes_are_those_of_the_body(name: str) -> None:
    """RETURNS and ERRORS name what script and includes can answer, no more and no less."""
    assert declared(name) == outcomes(scripts.source(name))


@every_script
def test_keys_are_named_as_python_builds_them(name: str) -> None:
    """Every pattern in a header is one of service.keys'."""
    of_partition = (*keys.partition_keys(0), keys.events_key(0))
    built = {key.replace("{p00}", "{pNN}") for key in of_partition}
    built |= {key.replace("{p00}", "{pNN}").replace(":5", ":<id>") for key in keys.event_keys(0, 5)}
    named = set(re.findall(r"\{pNN\}:\S+", "\n".join(section(name, "KEYS"))))
    assert named
    assert named <= built


@every_script
def test_the_four_keys_of_an_event_come_in_pythons_order(name: str) -> None:
    """Where a header names an event's keys it names all four, in the order of EventKeys."""
    named = re.findall(r"\{pNN\}:(\w+):<id>", "\n".join(section(name, "KEYS")))
    assert named in ([], [*keys.EventKeys._fields])


@every_script
def test_keys_get_the_names_of_the_header(name: str) -> None:
    """The nth KEY of the header is bound to a variable of its name at the top of the body."""
    numbered = re.findall(
        r"^ {2}(\d) \{pNN\}:(\w+)", "\n".join(section(name, "KEYS")), re.MULTILINE
    )
    head = " ".join(code("\n".join(body(name))).split())
    match = re.search(r"local ([\w, ]+?) = ((?:KEYS\[\d+\](?:, )?)+)", head)
    assert match is not None
    bound = list(zip(re.findall(r"\d+", match[2]), match[1].split(", "), strict=True))
    assert bound == [(number, f"{key}_key") for number, key in numbered]


@every_script
def test_numbered_keys_stay_in_the_head(name: str) -> None:
    """Below the first paragraph there is no `KEYS[3]`."""
    text = code("\n".join(body(name))).strip("\n")
    _, _, below = text.partition("\n\n")
    paragraphs = below if text.startswith("local") else text
    assert not re.findall(r"KEYS\[\d+\]", paragraphs)


@every_include
def test_an_include_takes_no_numbered_key(name: str) -> None:
    """It is given names, or places that are counted."""
    text = (LUA / "include" / f"{name}.lua").read_text()
    assert not re.findall(r"(?:KEYS|ARGV)\[\d+\]", code(text))


@every_script
def test_numbered_arguments_are_counted_through(name: str) -> None:
    """ARGV's fixed arguments are numbered 1, 2, 3 ... in the header."""
    rows = (re.match(r" {2}((?:\d [a-z_]+(?:, |\b))+)", line) for line in section(name, "ARGV"))
    numbers = [int(number) for row in rows if row for number in re.findall(r"\d", row[1])]
    assert numbers == list(range(1, len(numbers) + 1))


# Includes.


def test_includes_exist_and_are_used() -> None:
    """No include is missing, none is left over, none includes another."""
    used = {include for name in SCRIPTS for include in includes(name)}
    assert used == set(INCLUDES)
    for name in INCLUDES:
        assert "@include" not in (LUA / "include" / f"{name}.lua").read_text()


@every_include
def test_an_include_says_what_it_is(name: str) -> None:
    """Its first line is a comment."""
    assert re.match(r"-- [A-Z]", (LUA / "include" / f"{name}.lua").read_text())


@every_script
def test_a_serving_script_is_fenced(name: str) -> None:
    """It includes the fence first and runs it before anything else; the handshake's do not."""
    fenced = includes(name)[:1] == ["fence"]
    assert fenced == (name in scripts.SERVING)
    if fenced:
        text = code("\n".join(body(name)))
        before, fence, _ = text.partition("fence(meta_key, now)")
        assert fence
        assert "redis." not in before
        assert scripts.source(name).count("@EPOCH@") == 1
    else:
        assert "@EPOCH@" not in scripts.source(name)


@every_script
def test_a_script_includes_nothing_in_vain(name: str) -> None:
    """It calls at least one function of each of its includes itself."""
    own = code("\n".join(body(name)))
    for include in includes(name):
        text = (LUA / "include" / f"{include}.lua").read_text()
        functions = re.findall(r"^local function (\w+)", text, re.MULTILINE)
        assert any(re.search(rf"\b{function}\(", own) for function in functions), include


# Python.


def test_python_knows_every_outcome() -> None:
    """Each is named in Python, or stands in UNSPELT with a reason."""
    returned = set().union(*(declared(name) for name in SCRIPTS))
    spelt = set().union(*(capitals(path) for path in SERVICE.glob("*.py")))
    assert returned - spelt == UNSPELT.keys()


@pytest.mark.parametrize("module", ["lanes", "partition", "loader", "redis_store"])
def test_python_waits_for_no_outcome_that_never_comes(module: str) -> None:
    """What the callers of scripts compare with is what some script returns."""
    returned = set().union(*(declared(name) for name in SCRIPTS))
    assert capitals(SERVICE / f"{module}.py") <= returned


@pytest.mark.parametrize("path", ["include/outbox.lua", "begin_epoch.lua"])
def test_an_entrys_fields_are_the_codecs(path: str) -> None:
    """Names and order; version; and an id of epoch and seq, never a clock."""
    calls = [c for c in _CALL.findall(code((LUA / path).read_text())) if "'XADD'" in c]
    written = {tuple(re.findall(r"'([a-z]+)'", call)) for call in calls}
    awaited = {(*outbox.FIELDS, outbox.AWAITED)} if "include" in path else set()
    assert written == {outbox.FIELDS} | awaited
    for call in calls:
        assert f"'v', '{outbox.VERSION}'" in call
        entry_id = call.split(",")[2].strip()
        assert re.fullmatch(r"(?i)epoch \.\. '-' \.\. (?:text\(last\)|seq)", entry_id)


def test_nothing_else_writes_the_outbox() -> None:
    """XADD stands in one place for all serving scripts, in one for the handshake."""
    found = [path.name for path in LUA.rglob("*.lua") if "XADD'" in path.read_text()]
    assert sorted(found) == ["begin_epoch.lua", "outbox.lua"]


def test_kinds_are_the_codecs() -> None:
    """The changes that scripts write are those that the codec reads."""
    text = "\n".join(code(path.read_text()) for path in LUA.glob("*.lua"))
    written = set(re.findall(r"changes\[#changes \+ 1\] = '([a-z_]+) '", text))
    written |= set(re.findall(r"kind = '([a-z_]+)'", text))
    written |= set(re.findall(r"change\('([a-z_]+)', ", text))
    written |= set(re.findall(r"'([a-z_]+) - - ", text))
    assert written == outbox.KINDS


def test_states_after_a_change_are_the_codecs() -> None:
    """What a user's hash says after each kind is what the record will say."""
    book, cancel = (code("\n".join(body(name))) for name in ("book", "cancel"))
    after = dict(re.findall(r"change\('([a-z_]+)', event, user, '([a-z_]+)', tail\)", cancel))
    states = re.findall(r"set_user\(event, user, '([a-z_]+)'", book)
    kinds = re.findall(r"kind = '([a-z_]+)'", book)
    assert after | dict(zip(kinds, states, strict=True)) == outbox.STATUS_AFTER


# Lua.


@pytest.mark.parametrize("path", sorted(LUA.rglob("*.lua")), ids=lambda path: path.stem)
def test_only_commands_whose_work_is_bounded(path: Path) -> None:
    """No walk through a list or a keyspace, no script in a script, no swallowed error."""
    text = code(path.read_text())
    commands = set(re.findall(r"redis\.call\('([A-Z]+)'", text))
    assert not commands & UNBOUNDED - ALLOWED.get(path.stem, frozenset())
    assert text.count("redis.pcall") == (path.stem in ("raise_watermark", "outbox"))  # and says why
    assert "math.random" not in text
    assert "os." not in text


@pytest.mark.parametrize("path", sorted(LUA.rglob("*.lua")), ids=lambda path: path.stem)
def test_no_global_is_made(path: Path) -> None:
    """Every function is local; Redis would refuse a global only when the line runs."""
    assert not re.findall(r"^\s*function ", path.read_text(), re.MULTILINE)


# The page beside the scripts.


def test_the_readme_names_all_there_is() -> None:
    """Every script, include, key and outcome, and no outcome that is gone."""
    page = (LUA / "README.md").read_text()
    known = set().union(*(declared(name) for name in SCRIPTS))
    for name in SCRIPTS:
        assert f"`{name}`" in page, f"lua/README.md does not name {name}"
    for include in INCLUDES:
        assert f"`include/{include}.lua`" in page
    for field in (*keys.PartitionKeys._fields, *(f"{f}:<id>" for f in keys.EventKeys._fields)):
        assert f"`{{pNN}}:{field}`" in page
    for kind in outbox.KINDS:
        assert f"`{kind}`" in page
    assert set(re.findall(r"`([A-Z][A-Z_]{2,})`", page)) | {"OK"} == known


def test_these_checks_would_notice() -> None:
    """Negative control: outcomes are found in code, not in commands or comments."""
    found = outcomes("redis.call('HSET', k, text(f(x)), 'OOPS') -- 'NOT'\nreturn { 'DONE', 'x' }")
    assert found == {"DONE"}
