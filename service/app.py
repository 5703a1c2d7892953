"""All wiring: what a role is made of, and how it starts and stops.

The one place that turns exceptions into problem answers.
"""

import asyncio
import contextlib
import gc
import re
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from functools import partial

import structlog
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router

from service import documentation, ledger, room
from service.admission import Admission
from service.assurance import sound, still_sound
from service.bodies import problem_answer
from service.draining import Draining, Server
from service.engine import Engine
from service.errors import PROBLEMS, Problem
from service.exposition import Exposition
from service.handlers import Handlers
from service.handshakes import make_handshakes, urls_of
from service.hot_http1 import hot_http1
from service.hot_path import HotPath
from service.lanes import Bounds
from service.ledger import LedgerPool
from service.listener import allow_connections, bind, inherited
from service.metrics import Metrics, shared
from service.partition import Partition
from service.prefix import Prefix
from service.readiness import Readiness
from service.redis_store import RedisStore
from service.settings import Settings
from service.stopwatch import Stopwatch
from service.store_watch import StoreWatch
from service.suspension import Suspension
from service.vitals import look
from service.wakeups import Wakeups
from service.watermark import Watermarks
from service.welcome import onsale_version
from service.wire import Wire
from service.witness import Witness, prepare
from service.writer import Writer

log = structlog.stdlib.get_logger("onsale")

_KEEP_ALIVE_S = 75
_WRITER_DRAIN_S = 10
NOT_DRAINED = 3
_STOP = (signal.SIGTERM, signal.SIGINT)
_BACKLOG = 2048
_COLLECT_EVERY = 50_000


class Worker:
    """One API worker: an engine, and the connections behind it."""

    def __init__(self, settings: Settings, metrics: Metrics | None = None) -> None:
        """Wire it; nothing is connected before `start`."""
        redis_url, postgresql_url = urls_of(settings)
        metrics = metrics or Metrics()
        self._redis = RedisStore(redis_url)
        self._ledgers = LedgerPool(postgresql_url)
        self._witness = Witness(settings.answered_directory, settings.role or "api")
        handshakes = make_handshakes(
            settings, self._redis, "api", metrics, answered=self._witness.answered, bounded=True
        )
        self._wires = {number: Wire(redis_url) for number in handshakes}
        worker = secrets.token_hex(8)
        suspension = Suspension()
        self.partitions = [
            Partition(
                number,
                self._wires[number],
                self._redis,
                handshake,
                worker=worker,
                suspension=suspension,
            )
            for number, handshake in handshakes.items()
        ]
        bounds = Bounds(
            items_max=settings.batch_items_max,
            waiting_max=settings.waiting_room_max,
            deadline_s=settings.request_deadline_ms / 1000,
            unrecorded=room.unrecorded_bounds(settings),
        )
        watermarks = Watermarks(
            self._redis,
            Wakeups(redis_url, settings.partitions),
            settings.partitions,
            waiting_max=settings.waiting_room_max,
            metrics=metrics,
        )
        self.engine = Engine(
            self.partitions,
            self._ledgers,
            bounds,
            metrics,
            watermarks,
            settings.durability,
            self._witness.note,
            Admission(settings.standing_wait_ms_max / 1000, time.monotonic),
            suspension,
        )
        self._watch_ledgers = LedgerPool(postgresql_url, size=1, purpose="api watch")
        self._store_watch = StoreWatch(
            self._redis,
            self._watch_ledgers,
            suspension,
            metrics,
            durability=settings.durability,
            stated=settings.stated_redis_configuration,
        )
        self.readiness = Readiness(
            self.partitions,
            suspension,
            unrecorded_max=bounds.unrecorded.changes_max,
            needs_record=settings.durability == "recorded",
        )
        self.look = partial(
            look, self._redis, self._ledgers, settings.partitions, self.readiness.problems
        )

    async def __aenter__(self) -> Engine:
        """Begin to open all partitions, in the background. Raises ConfigurationError."""
        self._witness.open()
        self.engine.start()
        return self.engine

    async def __aexit__(self, *_: object) -> None:
        """End what runs and close all connections."""
        await self.engine.stop()
        await self._witness.close()
        for wire in self._wires.values():
            await wire.close()
        await self._redis.aclose()
        await self._ledgers.aclose()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Ask meanwhile whether bookings are taken, and whether the stores keep promises."""
        self._store_watch.start()
        self.readiness.start()
        try:
            yield
        finally:
            await self.readiness.stop()
            await self._store_watch.stop()
            await self._watch_ledgers.aclose()


def make_app(settings: Settings, metrics: Metrics) -> Starlette:
    """Return the API as an ASGI application; it connects when its lifespan starts."""
    worker = Worker(settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with worker, worker.watching():
            gc.collect()
            gc.freeze()
            yield
        metrics.flush()

    for code in PROBLEMS:
        metrics.problems.labels(code)

    root = settings.root_path

    async def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)  # registered for nothing else
        metrics.problems.labels(error.code).inc()
        return problem_answer(error, root=root)

    draining = Draining()
    app = Starlette(
        routes=[
            *Handlers(worker.engine, worker.readiness, draining).routes(),
            *documentation.routes(root),
            Exposition(metrics, worker.look, onsale_version()).route(),
        ],
        middleware=[
            Middleware(Stopwatch, durations=metrics.request_durations),
            *([Middleware(Prefix, root=root)] if root else []),
        ],
        exception_handlers={
            Problem: problem,
            HTTPException: partial(_http_exception, root),
            ClientDisconnect: _disconnected,
            Exception: partial(_failure, root),
        },
        lifespan=lifespan,
    )
    _exact_paths(app.router)
    app.state.hot = HotPath(worker.engine, metrics, root)
    app.state.draining = draining
    return app


def serve_api(settings: Settings, fd: int | None) -> None:
    """Serve the API until SIGTERM or SIGINT; on an inherited listening socket, or on one's own.

    Goes on serving for ONSALE_DRAIN_SECONDS behind the signal.

    Raises AddressError when the address cannot be had, ConfigurationError.
    """
    prepare(settings.answered_directory)
    metrics = shared(settings.metrics_directory, settings.role or "api")
    app = make_app(settings, metrics)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=hot_http1(
            lambda code: metrics.problems.labels(code).inc(), app.state.hot, app.state.draining
        ),
        ws="none",
        lifespan="on",
        access_log=settings.access_log,
        proxy_headers=False,
        server_header=False,
        log_config=None,
        log_level="info" if settings.access_log else "warning",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.in_flight_s,
        backlog=_BACKLOG,
    )
    allow_connections()
    listener = inherited(fd) if fd is not None else bind(settings.host, settings.port)
    log.info("bounds of what is not on record", bounds=room.in_words(settings))
    Server(config, app.state.draining, settings.drain_seconds).run(sockets=[listener])


def run_writer(settings: Settings) -> None:
    """Carry the outbox into the record until SIGTERM or SIGINT.

    Exit code NOT_DRAINED where not all that Redis holds could be brought on record by then.
    """
    spare_the_collector()
    if not uvloop.run(_write(settings)):
        sys.exit(NOT_DRAINED)


def spare_the_collector() -> None:
    """Have the cyclic collector pass by what the process has loaded, and look less often.

    A commit makes thousands of tuples, and no cycles: by itself the collector would walk through
    all modules every few commits.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY)


async def _write(settings: Settings) -> bool:
    redis = RedisStore(urls_of(settings)[0])
    metrics = shared(settings.metrics_directory, settings.role or "writer")
    writer = make_writer(settings, redis, metrics)
    task = asyncio.ensure_future(writer.run())
    loop = asyncio.get_running_loop()

    def drain() -> None:
        """Bring what Redis holds on record, within bounds; a second signal does not wait."""
        writer.drain()
        loop.call_later(_WRITER_DRAIN_S, task.cancel)
        for number in _STOP:
            loop.add_signal_handler(number, task.cancel)

    for number in _STOP:
        loop.add_signal_handler(number, drain)
    try:
        drained = await task
    except asyncio.CancelledError:
        drained = False
    if drained:
        log.info("all that Redis held is on record")
    else:
        log.warning("ended before all that Redis holds was on record")
    await redis.aclose()
    return drained


def make_writer(settings: Settings, redis: RedisStore, metrics: Metrics | None = None) -> Writer:
    """Return a writer of all partitions, on real stores and the real clock."""
    postgresql_url = urls_of(settings)[1]
    metrics = metrics or Metrics()
    # By itself PostgreSQL plans two of the writer's few statements anew for each commit: a commit
    # of 16 changes then takes 930 µs of its time, not 760.
    planned_once = partial(ledger.connect, plan_cache_mode="force_generic_plan")
    return Writer(
        redis,
        lambda: sound(planned_once(postgresql_url, purpose="writer")),
        make_handshakes(settings, redis, "writer", metrics),
        assure=still_sound,
        linger_s=settings.linger_ms_max / 1000,
        retained_bytes=settings.retained_bytes,
        clock=time.monotonic,
        metrics=metrics,
    )


def _exact_paths(router: Router) -> None:
    """`/book/` and `/book%0A` are not `/book`: answered 404, never by a redirect."""
    router.redirect_slashes = False
    for route in router.routes:
        assert isinstance(route, Route)  # there are no mounts
        # Starlette ends its patterns with `$`, which matches before a last newline too.
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")


async def _http_exception(root: str, _: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, no such method."""
    assert isinstance(error, HTTPException)  # registered for nothing else
    if error.status_code == 405:
        return problem_answer(Problem("method_not_allowed"), error.headers, root=root)
    return problem_answer(Problem("not_found"), root=root)


async def _disconnected(_: Request, __: Exception) -> Response:
    """Nobody is there to read it; and it is no failure."""
    return Response(status_code=400)


async def _failure(root: str, request: Request, error: Exception) -> Response:
    log.error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return problem_answer(Problem("internal_error"), root=root)
