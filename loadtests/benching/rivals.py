"""Two small services that book, as one does with some thought for truth and little for speed.

Not tuned and not naive: each request is validated, decided atomically and answered when its store
says so. `postgresql`: one statement of one transaction. `evalsha`: one call of a short script.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from redis.asyncio import BlockingConnectionPool, Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from loadtests.benching.noops import application, json_answer

DATABASE = "bench_baseline"
POOL = 10
"""Connections of `postgresql` and `evalsha` to their store: more made neither faster."""


class _Booking(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    eventId: int
    userId: str


_booking = TypeAdapter(_Booking)


_SCHEMA = """
    CREATE TABLE events (id bigint PRIMARY KEY, available integer NOT NULL CHECK (available >= 0));
    CREATE TABLE bookings (event_id bigint, user_id text, PRIMARY KEY (event_id, user_id));
    CREATE TABLE journal (
        partition integer NOT NULL, seq bigint NOT NULL, epoch bigint NOT NULL,
        at timestamptz NOT NULL, kind text NOT NULL, event_id bigint, user_id text COLLATE "C",
        details text, hash bytea NOT NULL, PRIMARY KEY (partition, seq)
    );
    INSERT INTO events VALUES (1, 10000000);
"""

# One statement is one transaction and one round trip, so that the event's row, which all want, is
# locked for no longer than the commit takes. Who books twice at once meets the primary key: then
# nothing at all was done.
_BOOK = """
    WITH taken AS (
        UPDATE events SET available = available - 1 WHERE id = $1 AND available > 0
        AND NOT EXISTS (SELECT FROM bookings WHERE event_id = $1 AND user_id = $2) RETURNING id
    )
    INSERT INTO bookings SELECT id, $2 FROM taken RETURNING event_id
"""
_IS_BOOKED = "SELECT FROM bookings WHERE event_id = $1 AND user_id = $2"


async def make_database(url: str) -> str:
    """Make the database of `postgresql` beside the service's; return its URL."""
    own = url.replace("/onsale?", f"/{DATABASE}?")
    service = await asyncpg.connect(url)
    await service.execute(f"CREATE DATABASE {DATABASE}")
    await service.close()
    connection = await asyncpg.connect(own)
    await connection.execute(_SCHEMA)
    await connection.close()
    return own


def postgresql() -> ASGIApp:
    """Book in PostgreSQL alone: validated, conditional, unique, committed before the answer."""
    pools: list[asyncpg.Pool[asyncpg.Record]] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        url = os.environ["BENCH_DATABASE_URL"]
        async with asyncpg.create_pool(url, min_size=POOL, max_size=POOL) as pool:
            pools.append(pool)
            yield

    async def book(request: Request) -> Response:
        try:
            asked = _booking.validate_json(await request.body())
        except ValidationError:
            return json_answer(422, b"{}")
        about = asked.eventId, asked.userId
        async with pools[0].acquire() as connection:
            with contextlib.suppress(asyncpg.UniqueViolationError):
                if await connection.fetchval(_BOOK, *about):
                    return json_answer(201)
            known = await connection.fetchrow(_IS_BOOKED, *about)
        return json_answer(409 if known is None else 200)

    return application(book, lifespan)


# A counter, who has booked, and a stream of what happened: the least that is a booking at all.
_SCRIPT = """#!lua
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 'ALREADY_BOOKED' end
if tonumber(redis.call('GET', KEYS[1])) < 1 then return 'SOLD_OUT' end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', '100000', '*', 'kind', 'booked', 'user', ARGV[1])
redis.call('DECR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], '1')
return 'BOOKED'
"""
EVALSHA_KEYS = ("{bench}:available", "{bench}:users", "{bench}:outbox")
_STATUS_OF = {b"BOOKED": 201, b"ALREADY_BOOKED": 200, b"SOLD_OUT": 409}


def evalsha() -> ASGIApp:
    """Book with one EVALSHA for each request, through redis-py: a short script of its own."""
    loaded: list[tuple[Any, str]] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        pool = BlockingConnectionPool.from_url(os.environ["BENCH_REDIS_URL"], max_connections=POOL)
        client: Any = Redis.from_pool(pool)
        await client.set(EVALSHA_KEYS[0], 10_000_000)
        loaded.append((client, await client.script_load(_SCRIPT)))
        yield
        await client.aclose()

    async def book(request: Request) -> Response:
        try:
            asked = _booking.validate_json(await request.body())
        except ValidationError:
            return json_answer(422, b"{}")
        client, sha = loaded[0]
        outcome = await client.evalsha(sha, len(EVALSHA_KEYS), *EVALSHA_KEYS, asked.userId)
        return json_answer(_STATUS_OF[outcome])

    return application(book, lifespan)
