"""Process-wide state that a test can leave behind, as one flat mapping from name to value.

A test that leaves some of it changes what later tests of the same process see. The two fixtures in
`conftest.py` compare snapshots around each test and each module, and name the one that differs. A
snapshot takes some 0.2 ms, most of it for the globals of `service`.
"""

import asyncio
import gc
import locale
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from structlog._config import BoundLoggerLazyProxy

_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Not SIGALRM: pytest-timeout sets its handler anew for each test."""

_PYTEST = b"PYTEST_CURRENT_TEST"
"""Pytest sets this variable for each phase of each test."""

_CHILDREN = Path(f"/proc/self/task/{threading.get_native_id()}/children")

FOR_THE_RUN: set[str] = set()
"""Child processes that a fixture of the session started while a module's tests ran."""

Snapshot = Mapping[str, Any]


def snapshot() -> Snapshot:
    """Return the state that a test must leave as it found it."""
    return {
        **dict(_environment()),
        **dict(_logging()),
        **dict(_globals()),
        **{f"handler of {number.name}": signal.getsignal(number) for number in _SIGNALS},
        "event loop policy": asyncio.get_event_loop_policy(),
        "working directory": os.getcwd(),  # noqa: PTH109  # a Path costs 5 µs more
        "umask": _umask(),
        "sys.path": tuple(sys.path),
        "sys.excepthook": sys.excepthook,
        "recursion limit": sys.getrecursionlimit(),
        "garbage collection": gc.isenabled(),
        "locale": locale.setlocale(locale.LC_ALL),
        "default time-out of sockets": socket.getdefaulttimeout(),
        "threads": frozenset(
            # The thread pools of a closed loop and of a library end by themselves.
            thread.name
            for thread in threading.enumerate()
            if not thread.daemon and not thread.name.startswith(("asyncio_", "AnyIO", "ThreadPool"))
        ),
        "child processes": _children(),
    }


@contextmanager
def for_the_run() -> Iterator[None]:
    """Take the child processes that are started in it for ones of the whole run."""
    before = _children()
    yield
    FOR_THE_RUN.update(_children() - before)


def _children() -> frozenset[str]:
    return frozenset(_CHILDREN.read_text().split())


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Return a line for each part of the state that differs; empty when nothing was left behind.

    Modules and loggers that came meanwhile were imported, which is no change; a thread or a child
    process that has ended meanwhile is none either.
    """
    found = []
    for name, was in before.items():
        now = after.get(name, _ABSENT)
        if name in {"threads", "child processes"}:
            left = now - was - FOR_THE_RUN
            if name == "child processes":
                left = _still_running(left)
            if left:
                found.append(f"{name}: {', '.join(sorted(left))} still run")
        elif isinstance(was, _Held) and isinstance(now, _Held):
            found += [f"{name}.{changed} was replaced" for changed in sorted(was.differing(now))]
        elif now is not was and now != was:
            found.append(f"{name}: was {_short(was)}, is {_short(now)}")
    found += [
        f"{name}: was absent, is {_short(after[name])}"
        for name in after.keys() - before.keys()
        if not name.startswith(_MAY_COME)
    ]
    return found


@contextmanager
def left_as_found(what: str) -> Iterator[None]:
    """Hold that the state afterwards is the state before. Raises AssertionError that names both."""
    before = snapshot()
    yield
    left = differences(before, snapshot())
    assert not left, f"{what} leaves behind: {'; '.join(left)}"


_ENDS_S = 3.0
_ABSENT = object()
_GLOBAL, _LOGGER, _BOUND = "global ", "logger ", "bound logger of "
_MAY_COME = (_GLOBAL, _LOGGER, _BOUND)


def _still_running(pids: frozenset[str]) -> frozenset[str]:
    """Return those that have not ended a while later: a killed one may take a moment to end."""
    until = time.monotonic() + _ENDS_S
    while (left := frozenset(filter(_runs, pids))) and time.monotonic() < until:
        time.sleep(0.01)
    return left


def _runs(pid: str) -> bool:
    """Whether a process is there and has not ended, collected by its parent or not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def _short(value: object) -> str:
    return "absent" if value is _ABSENT else f"{value!r:.80}"


def _environment() -> Iterator[tuple[str, Any]]:
    for name, value in os.environ._data.items():  # type: ignore[attr-defined]  # undecoded: 1 µs
        if name != _PYTEST:
            yield f"environment variable {os.fsdecode(name)}", value


def _logging() -> Iterator[tuple[str, Any]]:
    for name, value in structlog.get_config().items():
        yield f"structlog {name}", value
    root = logging.getLogger()
    yield "logging level", root.level
    yield "logging handlers", tuple(root.handlers)
    yield "logging disabled up to", logging.root.manager.disable
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            settings = (logger.level, logger.propagate, logger.disabled, tuple(logger.handlers))
            yield _LOGGER + name, settings


def _globals() -> Iterator[tuple[str, Any]]:
    """Yield the globals of the package, and the class that each cached logger is bound to.

    structlog keeps the first bound logger for ever, whatever is configured afterwards.
    """
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("service."):
            continue
        found = vars(module)
        yield _GLOBAL + module_name, _Held(found)
        proxy = found.get("log")
        if isinstance(proxy, BoundLoggerLazyProxy):
            bind = vars(proxy).get("bind")
            closure = getattr(bind, "__closure__", None)
            bound = {type(cell.cell_contents) for cell in closure or ()}
            yield _BOUND + module_name, bound or {structlog.get_config()["wrapper_class"]}


class _Held:
    """A module's globals by identity."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._held = dict(names)

    def differing(self, other: "_Held") -> set[str]:
        """Return the names that hold other objects, or none, in one of the two."""
        mine, others = self._held, other._held
        if mine == others:  # compares what is identical by identity: a tenth of the time
            return set()
        return {
            name
            for name in mine.keys() | others.keys()
            if mine.get(name, _ABSENT) is not others.get(name, _ABSENT)
        }


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
