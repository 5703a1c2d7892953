"""What the service is compared with: one process each, under the same uvicorn.

uvloop, httptools, no access log, no proxy headers, gc frozen, as the service has them. The protocol
is uvicorn's own, without the bounds and clocks of `service/http1.py`: what those cost is in the
ratio.

    python -m loadtests.benching.baselines NAME
"""

import contextlib
import gc
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from loadtests.benching.noops import raw, starlette
from loadtests.benching.processes import child, python, until
from loadtests.benching.rivals import evalsha, postgresql
from service.health import ask
from service.listener import allow_connections, bind, http_url

APPLICATIONS = {"starlette": starlette, "raw": raw, "postgresql": postgresql, "evalsha": evalsha}


@dataclass(frozen=True, slots=True)
class Baseline:
    """A running one: its address and its process."""

    address: str
    pid: int


@contextlib.asynccontextmanager
async def running(name: str, directory: Path, **settings: str) -> AsyncIterator[Baseline]:
    """Run one until the block is left. Raises ChildEndedError."""
    log = directory / f"{name}.log"
    argv = python("-m", "loadtests.benching.baselines", name)
    with child(argv, log, **settings) as process:

        async def ready() -> bool:
            address = log.read_text().partition("\n")[0]
            return bool(address) and (await ask(address, "/livez")).healthy

        await until(process, log, ready)
        yield Baseline(log.read_text().partition("\n")[0], process.pid)


def serve(name: str) -> None:
    """Serve on a free port until a signal; print the address first."""
    config = uvicorn.Config(
        APPLICATIONS[name](),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off" if name == "raw" else "on",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        backlog=2048,
        timeout_graceful_shutdown=5,
    )
    allow_connections()
    listener = bind("127.0.0.1", 0)
    print(http_url(listener), flush=True)
    config.load()
    gc.collect()
    gc.freeze()
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(sys.argv[1])
