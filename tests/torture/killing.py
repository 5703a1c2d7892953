"""The ways in which PostgreSQL ends that is not asked first."""

import signal
from collections.abc import Callable

import psutil


def _all_at_once(first: psutil.Process) -> None:
    """Kill -9 of the first process, which would start others, then of all it has started."""
    children = first.children(recursive=True)
    for process in (first, *children):
        process.kill()


KILLS: dict[str, Callable[[psutil.Process], None]] = {
    "the first process": psutil.Process.kill,
    "all processes": _all_at_once,
    "immediate stop": lambda first: first.send_signal(signal.SIGQUIT),
}
"""Each takes the first of its processes."""
