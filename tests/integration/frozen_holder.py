"""A process that holds the handshake's lock and freezes itself before one step; see the tests.

    python -m tests.integration.frozen_holder REDIS_URL DATABASE_URL STEP

Prints what became of the handshake once somebody has woken it.
"""

import asyncio
import os
import signal
import sys
from typing import Any

from service import handshake as handshakes
from service.handshakes import make_handshakes
from service.redis_store import RedisStore
from service.settings import Settings

IDLE_S = 1
"""In place of the fifteen seconds after which PostgreSQL ends the session of a frozen holder."""


async def hold(redis_url: str, database_url: str, step: str) -> None:
    """Run one handshake, frozen before `step`; the signal reaches this very process."""
    handshakes._SESSION_IDLE_S = IDLE_S
    store = RedisStore(redis_url)
    run_step = getattr(store, step)

    async def freeze(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGSTOP)
        return await run_step(*arguments)

    setattr(store, step, freeze)
    settings = Settings(redis_url=redis_url, database_url=database_url)
    try:
        result = await make_handshakes(settings, store, "frozen")[0].run()
        sys.stdout.write(f"{result}\n")
    except handshakes.HandshakeImpossible as error:
        sys.stdout.write(f"impossible: {error}\n")
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(hold(*sys.argv[1:]))
