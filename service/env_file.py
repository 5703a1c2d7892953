"""Reads `.env`, the file of settings in the current directory.

What cannot be read whole is refused, with the line: a setting that is passed over is not in force,
and no message says so later.
"""

import codecs
import os
import stat
from io import StringIO
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from service.errors import ConfigurationError

BYTES_MAX = 1 << 20
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}


def read(path: Path) -> dict[str, str | None]:
    """Return the variables in the file; none where there is no file.

    Raises ConfigurationError. Never waits: a FIFO has no end before another process has written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror}") from None
    try:
        kind = os.fstat(descriptor)
        if os.path.samestat(kind, Path(os.devnull).stat()) or (path / "pyvenv.cfg").exists():
            # The usual ways to have none: /dev/null in its place, and a virtual environment there.
            return {}
        if not stat.S_ISREG(kind.st_mode):
            raise _refusal(path, f"is {_KINDS.get(stat.S_IFMT(kind.st_mode), 'a device')}, no file")
        content = os.read(descriptor, BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    return _variables(path, content)


def _variables(path: Path, content: bytes) -> dict[str, str | None]:
    if len(content) > BYTES_MAX:
        raise _refusal(path, f"is larger than {BYTES_MAX} bytes")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _refusal(path, "is UTF-16; write it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(path, f"is not UTF-8 in line {_line(content, error.start)}") from None
    if (at := content.find(b"\0")) >= 0:
        raise _refusal(path, f"has a NUL byte in line {_line(content, at)}")
    for found in parse_stream(StringIO(text)):
        if found.error:
            raise _refusal(path, f"has no NAME=value in line {found.original.line}")
    return dotenv_values(stream=StringIO(text))


def _line(content: bytes, at: int) -> int:
    return content.count(b"\n", 0, at) + 1


def _refusal(path: Path, why: str) -> ConfigurationError:
    return ConfigurationError(f"{path} {why}")
