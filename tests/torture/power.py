"""Power that is lost: what a disk keeps of a server's files is what was synced, and no more.

A library that is preloaded (`preloads/power.c`) writes down what the server has synced; `cut` then
makes its directory what could be left of it after a power cut. A file ends where it ended when it
was last synced, or somewhere in what was written since; a name lasts only once its directory was
synced, whether it was made, changed or removed. Invariant: nothing that was synced is taken away.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random


class Power:
    """The power of one server that keeps its files in one directory."""

    def __init__(self, library: Path, directory: Path) -> None:
        """`directory`, on the file system of the server's, is for what has to be remembered."""
        directory.mkdir()
        self._library = library
        self._log = directory / "power.log"
        self._kept = directory / "kept"
        self._kept.mkdir()

    @property
    def prefix(self) -> Sequence[str]:
        """The command that starts the server on this power."""
        return (
            "env",
            f"LD_PRELOAD={self._library}",
            f"ONSALE_TEST_POWER_LOG={self._log}",
            f"ONSALE_TEST_POWER_KEPT={self._kept}",
        )

    def cut(self, data: Path, chance: Random) -> int:
        """Leave of `data` what was synced; return how many bytes that were written are gone.

        For a server that was killed, and has not been started since. What is left lasts.
        """
        sizes, names = self._read()
        for undo in reversed(names):
            undo()
        gone = 0
        torn = chance.random() < 0.5
        for path in _files(data):
            size = path.stat().st_size
            synced = min(size, sizes.get(path.stat().st_ino, 0))
            left = chance.randint(synced, size) if torn else synced
            os.truncate(path, left)
            gone += size - left
        self._remember(data)
        return gone

    def _remember(self, data: Path) -> None:
        shutil.rmtree(self._kept)
        self._kept.mkdir()
        found = ((path.stat().st_ino, path.stat().st_size) for path in _files(data))
        self._log.write_text("".join(f"sync {inode} {size}\n" for inode, size in found))

    def _read(self) -> tuple[dict[int, int], list[Callable[[], None]]]:
        """Return the synced size of each inode, and what undoes each name that would not last."""
        sizes: dict[int, int] = {}
        names: list[tuple[str, Callable[[], None]]] = []
        for line in self._log.read_text().splitlines():
            word, *words = line.split()
            if word == "sync":
                sizes[int(words[0])] = int(words[1])
            elif word == "short":
                inode, size = int(words[0]), int(words[1])
                sizes[inode] = min(sizes.get(inode, 0), size)
            elif word == "dir":
                names = [one for one in names if one[0] != words[0]]
            else:
                names.append((str(Path(words[-1]).parent), _undoing(word, words)))
        return sizes, [undo for _, undo in names]


def _undoing(word: str, words: Sequence[str]) -> Callable[[], None]:
    path = Path(words[-1])

    def unmake() -> None:
        path.unlink(missing_ok=True)

    def bring_back() -> None:
        if words[0] != "-":
            Path(words[0]).rename(path)

    def move_back() -> None:
        if path.exists():
            path.rename(words[1])
        bring_back()

    return {"made": unmake, "gone": bring_back, "moved": move_back}[word]


def _files(data: Path) -> list[Path]:
    return [path for path in sorted(data.rglob("*")) if path.is_file()]
