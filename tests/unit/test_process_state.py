"""The check that names a test which leaves process-wide state behind, and what it would miss."""

import asyncio
import contextlib
import gc
import locale
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from service import assurance, keys, logs
from tests import process_state
from tests.process_state import left_as_found

log = structlog.stdlib.get_logger("onsale.test")

logging.getLogger(logs.QUIETER[0])  # there before a test looks

Undo = Callable[[], object]


def _environment() -> Undo:
    os.environ["ONSALE_TEST_LEFT_BEHIND"] = "1"
    return lambda: os.environ.pop("ONSALE_TEST_LEFT_BEHIND")


def _structlog() -> Undo:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.BoundLogger)
    return lambda: structlog.configure(**before)


def _cached_logger() -> Undo:
    """Use a logger for the first time while another class is configured, as the simulation did."""
    before, used = structlog.get_config(), assurance.log
    assurance.log = structlog.stdlib.get_logger("onsale.test")
    structlog.configure(wrapper_class=structlog.BoundLogger)
    assurance.log.bind()
    structlog.configure(**before)
    return lambda: setattr(assurance, "log", used)


def _log_level() -> Undo:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    return lambda: root.setLevel(before)


def _library_logger() -> Undo:
    logger = logging.getLogger(logs.QUIETER[0])
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    return lambda: logger.setLevel(before)


def _handler() -> Undo:
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    return lambda: root.removeHandler(handler)


def _signal() -> Undo:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    return lambda: signal.signal(signal.SIGUSR1, before)


def _policy() -> Undo:
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    return lambda: asyncio.set_event_loop_policy(before)


def _module_global() -> Undo:
    patch = pytest.MonkeyPatch()
    patch.setattr(keys, "partition_keys", lambda _: None)
    return patch.undo


def _directory() -> Undo:
    before = os.getcwd()  # noqa: PTH109  # as the check does
    os.chdir("/")
    return lambda: os.chdir(before)


def _umask() -> Undo:
    before = os.umask(0o007)
    return lambda: os.umask(before)


def _path() -> Undo:
    sys.path.append("/left-behind")
    return lambda: sys.path.remove("/left-behind")


def _locale() -> Undo:
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_CTYPE, "C" if before != "C" else "C.UTF-8")
    return lambda: locale.setlocale(locale.LC_ALL, before)


def _socket_time_out() -> Undo:
    socket.setdefaulttimeout(5)
    return lambda: socket.setdefaulttimeout(None)


def _garbage_collection() -> Undo:
    gc.disable()
    return gc.enable


def _thread() -> Undo:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left-behind")
    thread.start()

    def undo() -> None:
        end.set()
        thread.join()

    return undo


def _process() -> Undo:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    return process.communicate


@pytest.fixture
def undone() -> Iterator[list[Undo]]:
    """Call what is put into it, once the test has seen the state that it left."""
    with contextlib.ExitStack() as stack:
        found: list[Undo] = []
        yield found
        for undo in found:
            stack.callback(undo)


@pytest.mark.parametrize(
    ("leave", "named"),
    [
        (_environment, "ONSALE_TEST_LEFT_BEHIND"),
        (_structlog, "structlog wrapper_class"),
        (_cached_logger, "bound logger of service.assurance"),
        (_log_level, "logging level"),
        (_library_logger, "logger httpx"),
        (_handler, "logging handlers"),
        (_signal, "SIGUSR1"),
        (_policy, "event loop policy"),
        (_module_global, "service.keys.partition_keys"),
        (_directory, "working directory"),
        (_umask, "umask"),
        (_path, "sys.path"),
        (_locale, "locale"),
        (_socket_time_out, "default time-out of sockets"),
        (_garbage_collection, "garbage collection"),
        (_thread, "left-behind still run"),
        (_process, "child processes"),
    ],
)
def test_what_is_left_behind_is_named(
    leave: Callable[[], Undo], named: str, undone: list[Undo]
) -> None:
    """Each kind of state, left by a test and seen at its end."""
    with pytest.raises(AssertionError, match=named), left_as_found("a test"):
        undone.append(leave())


def test_what_is_put_back_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test may change what it restores, and may use a logger for the first time."""
    with left_as_found("a test"), monkeypatch.context() as patch:
        patch.setenv("ONSALE_TEST_LEFT_BEHIND", "1")
        patch.setattr(keys, "partition_keys", lambda _: None)
        log.debug("first use")


def test_every_test_is_checked(request: pytest.FixtureRequest) -> None:
    """Both checks are in effect where a test asks for nothing."""
    checks: set[Any] = {"state_of_the_test", "state_of_the_module"}
    assert checks <= set(request.fixturenames)


def test_a_process_that_ends_or_serves_the_run_is_not_named() -> None:
    """One that was killed and is not collected yet, and one of a fixture of the session."""
    with left_as_found("a test"):
        killed = subprocess.Popen(["sleep", "60"])
        killed.kill()
    killed.wait()
    lasting = None
    try:
        with left_as_found("a test"), process_state.for_the_run():
            lasting = subprocess.Popen(["sleep", "60"])
    finally:
        assert lasting is not None
        lasting.kill()
        lasting.wait()
        process_state.FOR_THE_RUN.discard(str(lasting.pid))
