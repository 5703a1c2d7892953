"""Settings that are changed under a running service: seen, refused with the reason, and mended.

Each case changes one thing in a store that is in use, by an operator's hands.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

import asyncpg
import pytest

from tests.http.watched import Watched, watched
from tests.servers import wait_until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service for all cases of this module."""
    with watched(tmp_path_factory.mktemp("watched")) as running:
        yield running


Case = Callable[[Watched], AbstractContextManager[None]]


def configured(name: str, value: str) -> Case:
    """Set one of Redis's settings meanwhile."""

    @contextlib.contextmanager
    def case(service: Watched) -> Iterator[None]:
        usual = service.valkey.config_get(name)[name]
        service.valkey.config_set(name, value)
        yield
        service.valkey.config_set(name, usual)

    return case


def altered(wrong: str, right: str) -> Case:
    """Have PostgreSQL do one statement, and another afterwards."""

    @contextlib.contextmanager
    def case(service: Watched) -> Iterator[None]:
        execute(service, wrong)
        yield
        execute(service, right)

    return case


def execute(service: Watched, statement: str) -> None:
    """Do a statement, and have PostgreSQL read its configuration again."""

    async def run() -> None:
        connection = await asyncpg.connect(service.servers.postgresql_url)
        await connection.execute(statement)
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()

    asyncio.run(run())


CASES: Mapping[str, tuple[Case, str]] = {
    "everysec": (configured("appendfsync", "everysec"), "appendfsync 'everysec'"),
    "no_aof": (configured("appendonly", "no"), "appendonly 'no'"),
    "on_rewrite": (
        configured("no-appendfsync-on-rewrite", "yes"),
        "no-appendfsync-on-rewrite 'yes'",
    ),
    "evicting": (configured("maxmemory-policy", "allkeys-lru"), "maxmemory-policy 'allkeys-lru'"),
    "pg_fsync": (
        altered("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM RESET fsync"),
        "PostgreSQL has fsync 'off'",
    ),
    "commit_system": (
        altered(
            "ALTER SYSTEM SET synchronous_commit = off", "ALTER SYSTEM RESET synchronous_commit"
        ),
        "PostgreSQL has synchronous_commit 'off'",
    ),
    "commit_role": (
        altered(
            "ALTER ROLE onsale SET synchronous_commit = 0",
            "ALTER ROLE onsale RESET synchronous_commit",
        ),
        "PostgreSQL has synchronous_commit 'off' for the next session",
    ),
    "commit_database": (
        altered(
            "ALTER DATABASE onsale SET synchronous_commit = off",
            "ALTER DATABASE onsale RESET synchronous_commit",
        ),
        "PostgreSQL has synchronous_commit 'off' for the next session",
    ),
}


class Booking:
    """Somebody who books all the time, at both levels in turn."""

    def __init__(self, service: Watched) -> None:
        self._service = service
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._book_on)
        self.answers: list[tuple[int, dict[str, Any]]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _book_on(self) -> None:
        while not self._done.wait(0.01):
            for prefer in ("", "recorded"):
                answer = self._service.book(prefer)
                self.answers.append((answer.status_code, answer.json()))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", CASES)
def test_a_setting_that_is_changed_is_seen(service: Watched, name: str) -> None:
    """Refused with the reason, and no answer claims a level until the setting is right again."""
    case, why = CASES[name]
    service.turns_ready()
    unverified = service.metric("onsale_unverified_answers_total")
    with Booking(service) as booking:
        wait_until(lambda: len(booking.answers) > 6, what="bookings are taken")
        with case(service):
            problem = service.turns_unready()
            assert (problem["status"], problem["code"]) == (503, "unavailable")
            assert why in problem["detail"]
            seen = len(booking.answers)
            wait_until(lambda: len(booking.answers) > seen + 6, what="bookings are answered")
            # The first may have been on its way when the setting was seen.
            later = booking.answers[seen + 1 : seen + 6]
            assert {status for status, _ in later} == {503}
            assert all(why in answer["detail"] for _, answer in later)
            assert service.metric('onsale_open{partition="0"}') == 0
            assert service.metric('onsale_refused{code="unavailable"') == 1
            assert service.metric("onsale_unverified_answers_total") > unverified
        service.turns_ready()
    assert service.metric('onsale_open{partition="0"}') == 1
    assert '"unverified_answers": ' in service.api.log.read_text()


@pytest.mark.timeout(200)
def test_a_writer_stops_telling(service: Watched) -> None:
    """What it commits while PostgreSQL syncs nothing is not told as recorded."""
    service.turns_ready()
    before = service.writer.said("cannot write now")
    with altered("ALTER SYSTEM SET fsync = off", "ALTER SYSTEM RESET fsync")(service):
        wait_until(
            lambda: service.writer.said("cannot write now") > before, what="the writer stands"
        )
    service.turns_ready()
    assert service.book("recorded").json()["durability"] == "recorded"
