"""Starts child processes, keeps them running, and stops what an earlier supervisor left.

A process is signalled only if it was started here, or if its pid file and creation time, or its
own environment, prove that it serves this data directory. Every child is the leader of a session
of its own, so that a Ctrl-C in the terminal reaches the supervisor alone.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import structlog

from service import environment
from service.rundir import RunDirectory

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
SETTLED_S = 10.0
"""After so long a life a role's next death counts as its first."""

LOG_BYTES_MAX = 16 << 20
"""A log beyond this is set aside when its role starts; the one set aside before is dropped."""

_MARK = "ONSALE_SUPERVISED_IN"
"""In the environment of children alone: a role that somebody runs by hand is no leftover."""

STOP_ORDER = ("api", "writer", "valkey", "postgresql")

log = structlog.stdlib.get_logger("onsale.processes")


def _nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True, slots=True)
class Role:
    """How one process is started and stopped.

    `environment` is added to the supervisor's own where the role `inherits` it; a store does not.
    `before_start` runs ahead of every start. `final_codes` are exit codes that no repeat will
    change, such as a refused setting.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    inherits: bool = True
    inherited_fds: tuple[int, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 15.0
    before_start: Callable[[], None] = _nothing
    final_codes: frozenset[int] = frozenset()


class Keeper:
    """Owns the process of one role: starts it, and again when it dies, until `stop`."""

    def __init__(self, role: Role, run: RunDirectory) -> None:
        """Prepare; nothing runs before `start`."""
        self.role = role
        self.log_file = run.log_file(role.name)
        self.last_code: int | None = None
        self.quick_ends = 0
        self._run = run
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The running process, or None between two lives."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def failed_for_good(self) -> bool:
        """Whether the last life ended in a way that no repeat will change."""
        return self.last_code in self.role.final_codes

    def start(self) -> None:
        """Begin to keep the role running."""
        self._task = asyncio.create_task(self._keep(), name=f"keeper of {self.role.name}")

    async def stop(self) -> None:
        """End the role, by force after its time limit; may be called twice."""
        self._stopping.set()
        self._send(self.role.stop_signal)
        if self._task is None:
            return
        done, _ = await asyncio.wait({self._task}, timeout=self.role.stop_seconds)
        if not done:
            log.warning(
                "role killed, it did not end", role=self.role.name, within_s=self.role.stop_seconds
            )
            self.kill()
        await self._task

    def kill(self) -> None:
        """End the role and its children at once, and for good."""
        self._stopping.set()
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    async def _keep(self) -> None:
        delay = BACKOFF_FIRST_S
        while not self._stopping.is_set():
            began = time.monotonic()
            end = await self._live()
            if self._stopping.is_set():
                return
            self.quick_ends += 1
            if time.monotonic() - began >= SETTLED_S:
                delay = BACKOFF_FIRST_S
                self.quick_ends = 0
            log.warning(
                "role down",
                role=self.role.name,
                why=end,
                again_in_s=round(delay, 1),
                log=str(self.log_file),
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(delay * 2, BACKOFF_MAX_S)

    async def _live(self) -> str:
        """Run the role once and say how it ended."""
        try:
            self.role.before_start()
            self._process = process = await self._spawn()
        except OSError as error:
            return f"could not be started: {error.strerror or error}"
        self._note_pid(process.pid)
        log.info("role up", role=self.role.name, pid=process.pid)
        if self._stopping.is_set():
            # The stop came while the process was being made and had nothing to signal.
            self._send(self.role.stop_signal)
        self.last_code = code = await process.wait()
        self._note_pid(None)
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"

    def _note_pid(self, pid: int | None) -> None:
        """Write or remove the pid file; a role is kept running without one, too.

        A start that finds no pid file knows what was left by its environment.
        """
        try:
            if pid is None:
                self._run.remove_pid(self.role.name)
            else:
                self._run.write_pid(self.role.name, pid)
        except OSError as error:
            log.warning("no pid file", role=self.role.name, why=error.strerror or str(error))

    async def _spawn(self) -> asyncio.subprocess.Process:
        _set_aside(self.log_file)
        with self.log_file.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *self.role.argv,
                env=role_environment(self._run, self.role),
                pass_fds=self.role.inherited_fds,
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
            )

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def role_environment(run: RunDirectory, role: Role) -> dict[str, str]:
    """Return a role's environment, marked so that a later supervisor recognises the process."""
    make = environment.inherited if role.inherits else environment.built
    return make({**role.environment, **_marks(run, role.name)})


def tool_environment(run: RunDirectory, name: str) -> dict[str, str]:
    """Return the environment of a command that a start runs to its end, marked as a role's is."""
    return environment.built(_marks(run, name))


def _marks(run: RunDirectory, role: str) -> dict[str, str]:
    return {"ONSALE_DATA_DIR": str(run.data), "ONSALE_ROLE": role, _MARK: str(run.data)}


async def run_to_end(argv: Sequence[str], env: Mapping[str, str] | None) -> tuple[int, str, str]:
    """Run a command and return exit code, stdout and stderr; cancelling this kills it."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=env,
        start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return (
        process.returncode or 0,
        out.decode(errors="replace"),
        err.decode(errors="replace"),
    )


async def stop_leftovers(run: RunDirectory, stop_seconds: float) -> None:
    """Stop what an earlier supervisor of this data directory left running; only under its lock.

    In the order of a shutdown, so that no API worker meets a store that has gone.
    """
    found = find_leftovers(run)
    for rank in range(-1, len(STOP_ORDER)):
        group = [(role, process) for role, process in found if _rank(role) == rank]
        for role, process in group:
            log.warning("stopping what an earlier start left", role=role, pid=process.pid)
            _signal(process, signal.SIGINT if role == "postgresql" else signal.SIGTERM)
        remaining = await _await_end([process for _, process in group], stop_seconds)
        for process in remaining:
            _signal(process, signal.SIGKILL)
        await _await_end(remaining, stop_seconds)
    run.clear()


def find_leftovers(run: RunDirectory) -> list[tuple[str, psutil.Process]]:
    """Return roles of this data directory that run, by pid file and by their environment."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: dict[int, tuple[str, psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marks = process.environ()
            if marks.get(_MARK) == str(run.data):
                found[process.pid] = (marks.get("ONSALE_ROLE", ""), process)
    for role, (pid, created) in run.read_pids().items():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            # The kernel counts in hundredths of a second since boot; a pid is not reused so fast.
            if abs(process.create_time() - created) < 1:
                found[pid] = (role, process)
    return [entry for pid, entry in found.items() if pid not in own and _lives(entry[1])]


def log_tail(path: Path, lines: int = 15) -> str:
    """Return the last lines of a log, or nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (16 << 10)))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


async def _await_end(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until all have ended or the time is over; return those that still run."""
    deadline = time.monotonic() + seconds
    # Not our children: no event tells of their end.
    while (living := [p for p in processes if _lives(p)]) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return living


def _lives(process: psutil.Process) -> bool:
    """Tell whether a process runs; a zombie that nobody collects does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _rank(role: str) -> int:
    """Return a role's place in STOP_ORDER; what is none (initdb, migrate) goes first."""
    name = role.partition("-")[0]
    return STOP_ORDER.index(name) if name in STOP_ORDER else -1


def _set_aside(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_name(f"{path.name}.1"))
