"""A backup as a directory: its manifest, and a file per table. Knows no store and no SQL.

Written under another name and renamed when all of it is on disk: a directory of a backup's name is
a whole one. It holds who bought what: nobody but its owner reads it. Rows are those of PostgreSQL's
COPY in its text format, a line each, in gzip files.
"""

import contextlib
import fcntl
import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from service.lineage import Position

FORMAT = 1
MANIFEST = "manifest.json"
_MANIFEST_BYTES_MAX = 1 << 20
_CHUNK = 1 << 18

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
_Count = Annotated[int, Field(ge=0)]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{64})?$")]

OnBytes = Callable[[int], None]
"""Told how many bytes more of the files are done."""


class BackupRefusedError(Exception):
    """What cannot be made, or cannot be trusted; names the directory's file where it is one."""


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class BackedUpPartition(_Model):
    """Where a partition stood: P, the hash of that journal row, and the highest epoch it knew."""

    partition: _Count
    epoch: _Count
    seq: _Count
    head: _Sha256
    highest_epoch: _Count

    @property
    def last(self) -> Position:
        """P."""
        return Position(self.epoch, self.seq)


class BackedUpTable(_Model):
    """One table and its file. `bytes` and `sha256` are of the file as it lies there."""

    table: _Name
    columns: list[_Name]
    rows: _Count
    bytes: _Count
    sha256: _Sha256

    @property
    def file(self) -> str:
        """The file's name in the directory."""
        return f"{self.table}.gz"


class Manifest(_Model):
    """What a backup says of itself. `schema_` holds the migrations that its tables had seen.

    `sequences` holds the last number that each identity column, `table.column`, had drawn.
    """

    format: Literal[1]
    onsale: str
    schema_: list[str] = Field(alias="schema")
    began: datetime
    ended: datetime
    partitions: list[BackedUpPartition]
    sequences: dict[str, _Count]
    tables: list[BackedUpTable]

    @property
    def size(self) -> int:
        """All files together, in bytes."""
        return sum(table.bytes for table in self.tables)


class TableWriter:
    """The file of one table, while it is written."""

    def __init__(self, path: Path) -> None:
        """Make the file."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._sha256 = hashlib.sha256()
        self._size = 0
        # As fast as it goes: a journal is mostly hashes, which nothing makes smaller.
        self._gzip = zlib.compressobj(1, wbits=31)

    def write(self, rows: bytes) -> None:
        """Add some rows, or a part of one."""
        self._put(self._gzip.compress(rows))

    def finish(self, table: str, columns: list[str], rows: int) -> BackedUpTable:
        """Put all of it on disk, and describe it."""
        self._put(self._gzip.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return BackedUpTable(
            table=table,
            columns=columns,
            rows=rows,
            bytes=self._size,
            sha256=self._sha256.hexdigest(),
        )

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._file.close()

    def _put(self, packed: bytes) -> None:
        self._file.write(packed)
        self._sha256.update(packed)
        self._size += len(packed)


class NewBackup:
    """A backup that is not whole yet: `<directory>.partial`."""

    def __init__(self, directory: Path, partial: Path) -> None:
        """Made by `new_backup`."""
        self._directory = directory
        self._partial = partial

    @contextlib.contextmanager
    def table(self, name: str) -> Iterator[TableWriter]:
        """Write one table's file."""
        writer = TableWriter(self._partial / f"{name}.gz")
        try:
            yield writer
        finally:
            writer.close()

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest, and give the directory its name once all of it is on disk."""
        path = self._partial / MANIFEST
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(manifest.model_dump_json(by_alias=True, indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync(self._partial)
        self._partial.rename(self._directory)
        _sync(self._directory.parent)


@contextlib.contextmanager
def new_backup(directory: Path) -> Iterator[NewBackup]:
    """Begin a backup; nothing of it is left unless it was published.

    What a killed one has left under the name is removed. Raises BackupRefusedError where the
    directory exists, or somebody else is writing it.
    """
    directory = directory.expanduser().absolute()
    partial = directory.with_name(f"{directory.name}.partial")
    if directory.exists():
        msg = f"{directory} exists; a backup wants a directory of its own"
        raise BackupRefusedError(msg)
    with contextlib.ExitStack() as stack:
        try:
            partial.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"another backup writes {partial} at the moment"
            raise BackupRefusedError(msg) from None
        except OSError as error:
            msg = f"{partial} cannot be made: {error.strerror}"
            raise BackupRefusedError(msg) from None
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        partial.chmod(0o700)
        for left in partial.iterdir():
            left.unlink()
        yield NewBackup(directory, partial)


def read_manifest(directory: Path) -> Manifest:
    """Read what a backup says of itself. Raises BackupRefusedError."""
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(_MANIFEST_BYTES_MAX)
    except OSError as error:
        msg = f"{directory} is no backup: {MANIFEST}: {error.strerror}"
        raise BackupRefusedError(msg) from None
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        msg = f"{MANIFEST} cannot be used: {where + ': ' if where else ''}{first['msg']}"
        raise BackupRefusedError(msg) from None
    numbers = [partition.partition for partition in manifest.partitions]
    if numbers != [*range(len(numbers))] or len({t.table for t in manifest.tables}) != len(
        manifest.tables
    ):
        msg = f"{MANIFEST} cannot be used: its partitions or tables are not a list of each once"
        raise BackupRefusedError(msg)
    return manifest


def verify(directory: Path, manifest: Manifest, on_bytes: OnBytes) -> None:
    """Hold every file against the manifest. Raises BackupRefusedError, which names the file."""
    for table in manifest.tables:
        sha256, size, rows = hashlib.sha256(), 0, 0
        unpack = zlib.decompressobj(wbits=31)
        try:
            with (directory / table.file).open("rb") as file:
                while chunk := file.read(_CHUNK):
                    sha256.update(chunk)
                    size += len(chunk)
                    rows += unpack.decompress(chunk).count(b"\n")
                    on_bytes(len(chunk))
        except OSError as error:
            msg = f"{table.file}: {error.strerror}"
            raise BackupRefusedError(msg) from None
        except zlib.error:
            msg = f"{table.file} is not what was backed up: it cannot be unpacked"
            raise BackupRefusedError(msg) from None
        if size != table.bytes:
            msg = f"{table.file} is not what was backed up: {size:,} bytes, not {table.bytes:,}"
            raise BackupRefusedError(msg)
        if sha256.hexdigest() != table.sha256:
            msg = f"{table.file} is not what was backed up: it has another SHA-256"
            raise BackupRefusedError(msg)
        if rows != table.rows:
            msg = f"{table.file} has {rows:,} rows, {MANIFEST} says {table.rows:,}"
            raise BackupRefusedError(msg)


def chunks(directory: Path, table: BackedUpTable) -> Iterator[bytes]:
    """Yield a table's rows, so many bytes at a time. Raises BackupRefusedError."""
    try:
        with gzip.open(directory / table.file) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{table.file} cannot be read: {error}"
        raise BackupRefusedError(msg) from None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
