"""A whole service in a directory of its own, as `onsale up` runs it, and what it has on record."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil
from redis.asyncio import Redis

from loadtests.benching.processes import ChildEndedError, child, environment, until
from loadtests.benching.trees import HERE, Tree
from service.embedded import EmbeddedValkey
from service.health import ask
from service.keys import partition_keys
from service.probes import NotReadyError
from service.rundir import RunDirectory, Service, make_sockets, remove_sockets

DRAIN_S = 300
"""How long the writer may take to put on record what is left: then the bench gives up."""

_QUIET_S = 0.15
_POLL_S = 0.01


class Onsale:
    """A running service. Everything that is booked here is held against its record."""

    def __init__(
        self, directory: Path, tree: Tree, service: Service, roots: dict[str, list[int]]
    ) -> None:
        """`roots`: the processes by what they are, for the CPU time of each with its children."""
        self._tree = tree
        self.directory = directory
        self.service = service
        self.roots = roots
        self.address = service.http
        self.opened: list[int] = []

    async def connect(self) -> None:
        """Connect to both stores."""
        # redis-py types every text as text or bytes; with decode_responses it is text.
        # With a time-out of its own it would swallow a cancellation now and then.
        self.redis: Any = Redis.from_url(
            self.service.redis, decode_responses=True, socket_timeout=None
        )
        self.postgresql = await asyncpg.connect(self.service.postgresql)

    async def close(self) -> None:
        """Hang up."""
        await self.redis.aclose()
        await self.postgresql.close()

    async def last(self) -> int:
        """Return R, the seq of the last change in Redis."""
        return int(await self.redis.hget(partition_keys(0).meta, "seq"))

    async def recorded(self) -> int:
        """Return P, the seq of the last change on record."""
        return int(await self.postgresql.fetchval("SELECT seq FROM cursors WHERE partition = 0"))

    async def settle(self) -> int:
        """Wait until nothing happens any more and all is on record; return the last seq."""
        async with asyncio.timeout(DRAIN_S):
            while True:
                last = await self.last()
                if await self.recorded() == last:
                    await asyncio.sleep(_QUIET_S)
                    if await self.last() == last:
                        return last
                else:
                    await asyncio.sleep(_POLL_S)

    async def drain(self) -> None:
        """Wait until what Redis holds now is on record."""
        last = await self.last()
        async with asyncio.timeout(DRAIN_S):
            while await self.recorded() < last:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(_POLL_S)

    async def changes_after(self, seq: int) -> Counter[str]:
        """Return how many changes of each kind stand on record behind a seq."""
        rows = await self.postgresql.fetch(
            "SELECT kind, count(*) AS many FROM journal WHERE partition = 0 AND seq > $1"
            " GROUP BY kind",
            seq,
        )
        return Counter({row["kind"]: row["many"] for row in rows})

    async def open(self, tickets: int) -> int:
        """Open an event over HTTP and return its id."""
        where = urlsplit(self.address)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        body = json.dumps({"name": "Bench", "totalTickets": tickets})
        writer.write(
            f"POST /initialize HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        answer = await reader.read()
        writer.close()
        event = int(json.loads(answer.partition(b"\r\n\r\n")[2])["event"]["id"])
        self.opened.append(event)
        return event

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run an operator's command; return its exit code and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *self._tree.command(*arguments),
            cwd=self.directory,
            env=environment(
                ONSALE_DATA_DIR=str(self.directory),
                REDIS_URL=self.service.redis,
                DATABASE_URL=self.service.postgresql,
                **self._tree.environment(),
            ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace")


@contextlib.asynccontextmanager
async def running(directory: Path, tree: Tree = HERE, **settings: str) -> AsyncIterator[Onsale]:
    """Run a tree's service on a directory until the block is left. Raises ChildEndedError."""
    directory.mkdir(parents=True)  # noqa: ASYNC240  # before anything is measured
    settings = {"ONSALE_DATA_DIR": str(directory), "PORT": "0", **settings, **tree.environment()}
    log = directory / "up.log"
    with child(tree.command("up"), log, **settings) as process:

        async def ready() -> bool:
            service = _published(directory)
            return service is not None and (await ask(service.http, "/readyz")).healthy

        await until(process, log, ready)
        service = _published(directory)
        assert service is not None
        onsale = Onsale(directory, tree, service, _roots(process.pid, tree))
        await onsale.connect()
        try:
            yield onsale
        finally:
            await onsale.close()


def _published(directory: Path) -> Service | None:
    """Return the addresses that a service has published, by whatever release."""
    try:
        told = json.loads((directory / "run" / "service.json").read_text())
        return Service(told["pid"], told["http"], told["redis"], told["postgresql"])
    except (OSError, ValueError, KeyError):
        return None


def _roots(pid: int, tree: Tree) -> dict[str, list[int]]:
    """Return the children of `onsale up` by role, as it has named them in their environment.

    Raises ChildEndedError where the API or the writer does not run this tree's files.
    """
    roots: dict[str, list[int]] = {}
    for process in psutil.Process(pid).children():
        environment = process.environ()
        role = environment.get("ONSALE_ROLE", "?").partition("-")[0]
        roots.setdefault(role, []).append(process.pid)
        if role in {"api", "writer"} and not environment.items() >= tree.environment().items():
            msg = f"the {role} does not run the files of {tree.path}"
            raise ChildEndedError(msg)
    return roots


@contextlib.asynccontextmanager
async def valkey(directory: Path, *options: str) -> AsyncIterator[tuple[str, int]]:
    """Run a Valkey like the embedded one but for these options; yield its URL and pid."""
    run = RunDirectory(directory)
    run.acquire()
    sockets = make_sockets(run.data)
    try:
        server = EmbeddedValkey(run, sockets)
        assert server.role is not None
        await server.prepare()

        async def ready() -> bool:
            with contextlib.suppress(NotReadyError):
                return bool(await server.probe())
            return False

        log = directory / "valkey.log"
        with child([*server.role.argv, *options], log) as process:
            await until(process, log, ready)
            yield server.url, process.pid
    finally:
        remove_sockets(sockets)
        run.release()
