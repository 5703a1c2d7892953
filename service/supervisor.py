"""`onsale up`: starts everything that one machine needs, keeps it running, and ends it.

Owns the HTTP socket, which API workers inherit, so that a killed worker loses no connection that
waits to be accepted. Invariant: whatever is taken is given back in reverse order, on every way
out; after an orderly end nothing is left but data and logs.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from service import metrics, migrations, room
from service.embedded import EmbeddedPostgres, EmbeddedValkey, Store
from service.listener import bind, http_url, readiness
from service.own_stores import OwnPostgres, OwnRedis
from service.probes import NotReadyError, applied_migrations
from service.processes import Keeper, Role, log_tail, stop_leftovers, tool_environment
from service.resources import sql_directory
from service.rundir import RunDirectory, Service, make_sockets, remove_sockets
from service.settings import Settings
from service.welcome import welcome

START_SECONDS = 60.0
POLL_SECONDS = 0.05
QUICK_ENDS_MAX = 7
"""A store that ended so often, within some six seconds, will end again. PostgreSQL may need two
seconds until it can start where another was killed."""

LEFTOVER_S = 15.0
"""Seconds that a role left by an earlier start may take to end, at least."""

REFUSED_SETTING = 2
"""The exit code of a role that met a ConfigurationError."""

log = structlog.stdlib.get_logger("onsale.supervisor")


class StartError(Exception):
    """The service could not be started; the text is for the terminal."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is started. Tests give another one; nothing else varies."""

    stores: Callable[[Settings, RunDirectory, Path], Sequence[Store]]
    """Redis first, PostgreSQL second."""

    migrate: Callable[[str, RunDirectory], Awaitable[None]]
    workers: Callable[[Settings, Service, socket.socket], Sequence[Role]]
    """The writer, then the API workers."""


def up(settings: Settings, plan: Plan | None = None) -> int:
    """Serve until a signal; return the exit code.

    Raises StartError, AlreadyRunningError or ConfigurationError, all with a line for the terminal,
    when everything that was started has been stopped again.
    """
    return asyncio.run(Supervisor(settings, plan or DEFAULT_PLAN).serve())


class Supervisor:
    """One run of the service, from lock to unlock."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        """Prepare; nothing is taken or started before `serve`."""
        self._settings = settings
        self._plan = plan
        self._run = RunDirectory(settings.data_dir)
        self._taken = contextlib.AsyncExitStack()
        self._keepers: list[Keeper] = []
        self._stopping = asyncio.Event()
        self._killed = False

    async def serve(self) -> int:
        """Start, wait for a signal, stop."""
        self._catch_signals()
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            for task in (starting, stopping):
                task.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
            await self._taken.aclose()
        return 1 if self._killed else 0

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        # Under nohup a hang-up is ignored, and stays so. An interrupt is not: a shell without job
        # control starts `make run &` with it ignored, and whoever sends one means it.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._on_signal, signal.SIGHUP)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self._stopping.is_set():
            log.info("stopping; once more kills", signal=number.name)
            self._stopping.set()
            return
        self._killed = True
        for keeper in self._keepers:
            keeper.kill()

    async def _start(self) -> None:
        run, taken = self._run, self._taken
        run.acquire()
        taken.callback(run.release)
        await stop_leftovers(run, max(LEFTOVER_S, self._settings.api_stop_s))
        metrics.clear(self._settings.metrics_directory)
        taken.callback(metrics.clear, self._settings.metrics_directory)
        listener = bind(self._settings.host, self._settings.port)
        taken.callback(listener.close)
        sockets = make_sockets(run.data)
        taken.callback(remove_sockets, sockets)
        taken.push_async_callback(self._stop_all, listener)
        redis, postgresql = self._plan.stores(self._settings, run, sockets)
        log.info("starting", data=str(run.data))
        versions = await _both(self._start_store(redis), self._start_store(postgresql))
        await self._migrate(postgresql.url)
        service = Service(os.getpid(), http_url(listener), redis.url, postgresql.url)
        taken.callback(run.remove_service)
        run.write_service(service)
        for role in self._plan.workers(self._settings, service, listener):
            self._keep(role)
        closed = await self._wait_for_workers(listener)
        self._greet(service.http, versions, closed)

    def _greet(self, address: str, versions: Sequence[str], closed: str) -> None:
        remote = self._settings.allow_remote
        bounds = room.in_words(self._settings)
        text = welcome(address, self._run.data, versions, bounds, remote=remote, closed=closed)
        # A terminal that has gone is no reason to stop.
        with contextlib.suppress(OSError):
            sys.stdout.write(text)
            sys.stdout.flush()

    def _keep(self, role: Role) -> Keeper:
        keeper = Keeper(role, self._run)
        self._keepers.append(keeper)
        keeper.start()
        return keeper

    async def _start_store(self, store: Store) -> str:
        await store.prepare()
        keeper = self._keep(store.role) if store.role is not None else None
        deadline = time.monotonic() + START_SECONDS
        trouble = ""
        while True:
            try:
                return await store.probe()
            except NotReadyError as error:
                if keeper is None and str(error) != trouble:
                    trouble = str(error)
                    log.warning("waiting for a store", store=store.name, why=trouble)
                if error.recovering:
                    # A long recovery is no failure: it may take minutes after a crash.
                    deadline = time.monotonic() + START_SECONDS
                elif time.monotonic() > deadline or (
                    keeper is not None and keeper.quick_ends >= QUICK_ENDS_MAX
                ):
                    raise _not_up(store.name, keeper, str(error)) from None
            await asyncio.sleep(POLL_SECONDS)

    async def _migrate(self, url: str) -> None:
        try:
            await self._plan.migrate(url, self._run)
        except migrations.MigrationError as error:
            msg = f"the migration failed: {error}"
            raise StartError(msg) from None

    async def _wait_for_workers(self, listener: socket.socket) -> str:
        """Return why the sale is closed, empty when it is open.

        Stores that do not agree are no reason to end: the service answers 503 and says why, and an
        operator needs it up to look.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            found = await readiness(listener)
            if (found.ready or found.closed) and all(k.pid for k in self._keepers):
                return found.closed
            for keeper in self._keepers:
                if keeper.failed_for_good:
                    raise _not_up(keeper.role.name, keeper, "it refuses its settings")
            if time.monotonic() > deadline:
                keeper = next((k for k in self._keepers if k.pid is None), self._keepers[-1])
                raise _not_up(keeper.role.name, keeper, "/readyz does not answer 200")
            await asyncio.sleep(POLL_SECONDS)

    async def _stop_all(self, listener: socket.socket) -> None:
        """Stop API workers, then the writer, then the stores."""
        listener.close()
        api = [k for k in self._keepers if k.role.name.partition("-")[0] == "api"]
        writer = [k for k in self._keepers if k.role.name == "writer"]
        stores = [k for k in self._keepers if k not in api and k not in writer]
        for group in (api, writer, stores):
            ends = await asyncio.gather(*(k.stop() for k in group), return_exceptions=True)
            for keeper, end in zip(group, ends, strict=True):
                if end is not None:
                    log.error("role not stopped in order", role=keeper.role.name, why=str(end))
                elif keeper.role.name == "writer" and keeper.last_code:
                    # The next start goes on where it was; who wants to move a store must know.
                    log.warning("not all that Redis holds is on record", log=str(keeper.log_file))


async def _both(first: Awaitable[str], second: Awaitable[str]) -> Sequence[str]:
    """Await both; the first failure ends the other and is the one that is raised."""
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _not_up(name: str, keeper: Keeper | None, reason: str) -> StartError:
    if keeper is None:
        return StartError(f"{name} cannot be reached: {reason}")
    tail = log_tail(keeper.log_file)
    return StartError(f"{name} did not come up: {reason}; the end of {keeper.log_file}:\n{tail}")


def own_or_embedded(settings: Settings, run: RunDirectory, sockets: Path) -> Sequence[Store]:
    """Return the user's own stores where settings name them, else those from the wheels."""
    redis, postgresql = settings.own_redis_url, settings.postgresql_url
    return (
        OwnRedis(
            redis,
            settings.durability,
            settings.stated_redis_configuration,
            room_bytes=room.room_bytes(settings),
        )
        if redis
        else EmbeddedValkey(run, sockets),
        OwnPostgres(postgresql, settings.postgresql_setting)
        if postgresql
        else EmbeddedPostgres(run, sockets),
    )


async def migrate(url: str, run: RunDirectory) -> None:
    """Apply what is pending under `sql/`, and see that it is where the service connects to."""
    environment = tool_environment(run, "migrate")
    for line in (await migrations.migrate_up(url, sql_directory(), environment)).splitlines():
        log.info("migration", what=line)
    if missing := migrations.missing(await applied_migrations(url), sql_directory()):
        msg = (
            f"dbmate ended without an error, but {missing[0]} is not in the database that the"
            " service connects to: both must reach the same server, not a pool of several"
        )
        raise migrations.MigrationError(msg)


def worker_roles(settings: Settings, service: Service, listener: socket.socket) -> Sequence[Role]:
    """Return the writer and as many API workers as WEB_CONCURRENCY asks for."""
    script = Path(sys.executable).with_name("onsale")
    onsale = (str(script),) if os.access(script, os.X_OK) else (sys.executable, "-m", "service")
    environment = {
        "REDIS_URL": service.redis,
        "DATABASE_URL": service.postgresql,
        "HOST": settings.host,
        "PORT": str(listener.getsockname()[1]),
    }
    final = frozenset({REFUSED_SETTING})
    fd = listener.fileno()
    roles = [Role("writer", (*onsale, "writer"), environment, final_codes=final)]
    for number in range(1, settings.web_concurrency + 1):
        name = "api" if number == 1 else f"api-{number}"
        argv = (*onsale, "api", "--fd", str(fd))
        roles.append(
            Role(
                name,
                argv,
                environment,
                inherited_fds=(fd,),
                final_codes=final,
                stop_seconds=settings.api_stop_s,
            )
        )
    return roles


DEFAULT_PLAN = Plan(stores=own_or_embedded, migrate=migrate, workers=worker_roles)
