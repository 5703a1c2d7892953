"""H, the third witness: how far this host's workers have answered, in a small file for each.

Two stores that went back together agree with each other, and a Redis that was wiped leaves no trace
of what it had answered beyond the record: only whoever answered can tell. What a worker has
answered is noted in memory and written once a second, and at once when stores are compared. A slot
is one living process's; its file stays when that ends, and speaks for it until another goes on from
there. A file is never overwritten by less, and one that cannot be read is never passed over.
"""

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog

from service.errors import ConfigurationError, UnreadableWitnessError
from service.lineage import Position
from service.slots import take_slot

log = structlog.stdlib.get_logger("onsale.witness")

_WRITE_EVERY_S = 1.0
_VERSION = 1

AnsweredOf = Callable[[int], Awaitable[list[Position]]]
"""Returns every H of a partition."""

Answered = Mapping[int, tuple[Position, ...]]
"""By partition: positions of which none is of an older epoch and a smaller seq than another."""


def prepare(directory: Path) -> None:
    """Make the directory. Raises ConfigurationError where it cannot be made or written."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(None, "it may not be written by this user")
    except OSError as error:
        msg = (
            f"{directory} cannot be used: {error.strerror}; what is answered is kept there"
            " (ONSALE_DATA_DIR)"
        )
        raise ConfigurationError(msg) from None


async def answered_on_host(directory: Path, partition: int) -> list[Position]:
    """Return every H of a partition that was written on this host, of unused slots too.

    Raises UnreadableWitnessError, naming the file.
    """
    return await asyncio.to_thread(_read_all, directory, partition)


class Witness:
    """What one worker has answered."""

    def __init__(self, directory: Path, role: str) -> None:
        """Name the directory and the slot to ask for; nothing is taken before `open`."""
        self._directory = directory
        self._role = role
        self._path: Path | None = None
        self._lock: int | None = None
        self._answered: dict[int, tuple[Position, ...]] = {}
        self._written: Answered = {}
        self._writing = threading.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._trouble = ""

    def note(self, partition: int, at: Position) -> None:
        """Take note that a change is about to be answered, or that one stood."""
        held = self._answered.get(partition, ())
        if len(held) == 1 and held[0].epoch == at.epoch:  # nearly always, of every answer
            if at.seq > held[0].seq:
                self._answered[partition] = (at,)
            return
        if any(at.epoch <= other.epoch and at.seq <= other.seq for other in held):
            return
        rest = (other for other in held if other.epoch > at.epoch or other.seq > at.seq)
        self._answered[partition] = (*rest, at)

    def open(self) -> None:
        """Take a slot, go on from what is kept there, and begin to write.

        Raises ConfigurationError.
        """
        prepare(self._directory)
        try:
            slot, self._lock = take_slot(self._directory, self._role, fit=self._is_readable)
        except OSError as error:
            msg = f"{self._directory} cannot be used: {error.strerror or error}"
            raise ConfigurationError(msg) from None
        self._path = self._directory / f"{slot}.json"
        self._written = _read(self._path)
        for partition, positions in self._written.items():
            for at in positions:
                self.note(partition, at)
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Write what is not written yet, and give the slot up."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self.write()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def write(self) -> None:
        """Bring the file up to what was noted; a disk that is full is said, and tried again."""
        try:
            await asyncio.to_thread(self._write)
        except OSError as error:
            if (why := error.strerror or str(error)) != self._trouble:
                log.error("what was answered is not kept", file=str(self._path), why=why)  # noqa: TRY400  # the reason is the whole story
            self._trouble = why
        else:
            self._trouble = ""

    async def answered(self, partition: int) -> list[Position]:
        """Return every H of this host, this worker's own as it is now, written first.

        Raises UnreadableWitnessError, naming the file.
        """
        await self.write()
        own = self._answered.get(partition, ())
        return [*own, *await answered_on_host(self._directory, partition)]

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY_S)
            await self.write()

    def _is_readable(self, slot: str) -> bool:
        """Whether a slot can be gone on from: what cannot be read is left for somebody to see."""
        try:
            _read(self._directory / f"{slot}.json")
        except UnreadableWitnessError:
            return False
        return True

    def _write(self) -> None:
        """One at a time, in a thread; what is noted meanwhile is written the next time."""
        with self._writing:
            answered = dict(self._answered)
            if self._path is None or answered == self._written:
                return
            _replace(self._path, _encoded(answered))
            self._written = answered


def _encoded(answered: Answered) -> str:
    by_partition = {str(partition): [*map(list, held)] for partition, held in answered.items()}
    return json.dumps({"version": _VERSION, "answered": by_partition}) + "\n"


def _replace(path: Path, text: str) -> None:
    """Put a file in the place of another so that a power cut leaves one of the two, whole."""
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_all(directory: Path, partition: int) -> list[Position]:
    found: list[Position] = []
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise UnreadableWitnessError(directory, error.strerror or str(error)) from None
    for path in paths:
        found += _read(path).get(partition, ())
    return found


def _read(path: Path) -> Answered:
    """Return what a file says; nothing where there is none. Raises UnreadableWitnessError."""
    try:
        said = json.loads(path.read_text())
        if said["version"] != _VERSION:
            raise UnreadableWitnessError(path, f"its version {said['version']!r} is not known")
        return {
            int(partition): tuple(_position(*pair) for pair in pairs)
            for partition, pairs in said["answered"].items()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnreadableWitnessError(path, error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UnreadableWitnessError(path, "it is not what a worker writes") from None


def _position(epoch: object, seq: object) -> Position:
    if type(epoch) is not int or type(seq) is not int or epoch < 1 or seq < 1:
        msg = f"{epoch!r}-{seq!r} is no position"
        raise ValueError(msg)
    return Position(epoch, seq)
