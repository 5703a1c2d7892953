"""The Lua scripts as texts: includes resolved, partition and epoch set in, their digests.

Knows nothing of tickets. It never loads a script by itself: only the handshake may, since a
script's absence after a restart is what tells that Redis may have lost data.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha1
from pathlib import Path

from service.resources import lua_directory

SERVING = (
    "book",
    "cancel",
    "read",
    "open_event",
    "load_event",
    "raise_watermark",
    "forget_callers",
    "probe",
)
"""Scripts that carry partition and epoch, and check the epoch; the handshake loads them."""

HANDSHAKE = ("close", "resume", "empty", "begin_epoch", "stay_closed")
"""Scripts of the handshake itself, sent as a text each time."""

_INCLUDE = "-- @include "
_EPOCH = "@EPOCH@"
_PARTITION = "@PARTITION@"


@dataclass(frozen=True, slots=True)
class Script:
    """One serving script of one partition's epoch."""

    name: str
    text: str
    sha: str


@lru_cache(maxsize=64)
def source(name: str) -> str:
    """Return a script's text with its includes in place, the epoch still to be set.

    Raises FileNotFoundError for a script or an include that does not exist.
    """
    directory = lua_directory()
    lines: list[str] = []
    for line in (directory / f"{name}.lua").read_text().splitlines():
        lines.append(line)
        if line.startswith(_INCLUDE):
            include = directory / "include" / f"{line.removeprefix(_INCLUDE).strip()}.lua"
            lines.extend(include.read_text().splitlines())
    return "\n".join(lines) + "\n"


def without_shebang(text: str) -> str:
    """Return a script for a server that does not know `#!lua` (fakeredis)."""
    return text.split("\n", 1)[1] if text.startswith("#!") else text


@lru_cache(maxsize=256)
def serving_scripts(partition: int, epoch: int) -> dict[str, Script]:
    """Return all serving scripts of a partition's epoch by name."""
    scripts = {}
    for name in SERVING:
        text = source(name).replace(_EPOCH, str(epoch)).replace(_PARTITION, str(partition))
        scripts[name] = Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())
    return scripts


def script_files() -> list[Path]:
    """Return the files of all scripts, without their includes, in order."""
    return sorted(lua_directory().glob("*.lua"))
