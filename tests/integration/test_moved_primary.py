"""A primary that moves to another server: its name leads there, and connections to the old stay."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from redis.asyncio import Redis

from service.app import Worker
from service.errors import Problem
from service.keys import partition_keys
from service.settings import Settings
from tests.conftest import Client, Stores
from tests.integration.conftest import eventually, writing
from tests.proxy import proxied
from tests.servers import Servers, free_port

META = partition_keys(0).meta


@contextlib.asynccontextmanager
async def valkey_on(directory: Path) -> AsyncIterator[tuple[Servers, int, Client]]:
    """A Valkey that listens on TCP as well, for its replica."""
    port = free_port()
    servers = Servers(
        directory,
        redis_options=(
            *("--bind", "127.0.0.1", "--port", str(port)),
            *("--repl-diskless-sync-delay", "0"),
        ),
    )
    await servers.valkey.prepare()
    await asyncio.to_thread(servers.start_valkey)
    client = Redis.from_url(servers.redis_url, decode_responses=True)
    try:
        yield servers, port, client
    finally:
        await client.aclose()
        await asyncio.to_thread(servers.stop)


def path_of(url: str) -> str:
    """Return the path of a Unix socket's URL."""
    return unquote(url.removeprefix("unix://").partition("?")[0])


@pytest.mark.timeout(200)
async def test_a_name_that_moved_to_the_new_primary_is_looked_up_again(
    stores: Stores, tmp_path: Path
) -> None:
    """By the worker, the watch, the handshake and the writer; the sale goes on where it was."""
    async with (
        valkey_on(tmp_path / "old") as (old, old_port, old_client),
        valkey_on(tmp_path / "new") as (new, new_port, new_client),
        proxied(old.redis_url) as (proxy, url),
    ):
        settings = Settings(redis_url=url, database_url=stores.postgresql_url)
        worker = Worker(settings)
        async with worker as engine, worker.watching(), writing(settings):
            event = await engine.initialize("Event Name", 5)
            assert (await engine.book(event.event_id, "before")).status == "booked"

            async def is_recorded() -> bool:
                seq, recorded = await new_client.hmget(META, "seq", "recorded")
                return seq is not None and seq == recorded

            await new_client.replicaof("127.0.0.1", old_port)
            await eventually(is_recorded)
            await new_client.replicaof("NO", "ONE")
            await old_client.replicaof("127.0.0.1", new_port)
            proxy.lead_to(path_of(new.redis_url))

            async def is_booked() -> bool:
                try:
                    return (await engine.book(event.event_id, "after")).status == "booked"
                except Problem:
                    return False

            await eventually(is_booked)
            await eventually(is_recorded)
            assert await new_client.hget(META, "epoch") == "2"
            assert (await engine.user(event.event_id, "before")).status == "booked"

            async def is_ready() -> bool:
                return not worker.readiness.problems()

            await eventually(is_ready)
