"""The composition without an engine: its command lines, environment and order, on real stores.

Valkey runs with compose's own command line, PostgreSQL with the user, password and database that
compose gives its image, both by TCP and behind passwords. The roles get the image's environment and
compose's, and nothing else; only addresses are replaced.
"""

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import redis

from service import embedded
from tests.packaging.container_files import (
    PASSWORDS,
    ROOT,
    composition,
    image_environment,
    image_health_check,
    seconds,
)
from tests.servers import wait_until

SERVICES: dict[str, dict[str, Any]] = composition()["services"]
HOST = "127.0.0.1"


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


class Composition:
    """The services of compose.yaml as processes, on ports of their own."""

    def __init__(self, directory: Path) -> None:
        """Settle ports and places; nothing runs before `up`."""
        self._directory = directory
        self._ports = {name: free_port() for name in ("valkey", "postgresql", "api")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.order = list(
            TopologicalSorter(
                {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
            ).static_order()
        )
        self.url = f"http://{HOST}:{self._ports['api']}"
        made = SERVICES["postgresql"]["environment"]
        self.postgresql = {
            "host": HOST,
            "port": self._ports["postgresql"],
            "user": made["POSTGRES_USER"],
            "password": made["POSTGRES_PASSWORD"],
            "database": made["POSTGRES_DB"],
        }

    @property
    def environment(self) -> dict[str, str]:
        """What a role gets: the image's, compose's, and where things are on this machine."""
        told = {name: str(value) for name, value in SERVICES["api"]["environment"].items()}
        here = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "ONSALE_DATA_DIR": str(self._directory / "data"),
            "ONSALE_METRICS_DIR": str(self._directory / "metrics"),
            "REDIS_URL": told["REDIS_URL"].replace(
                "valkey:6379", f"{HOST}:{self._ports['valkey']}"
            ),
            "DB_HOST": f"{HOST}:{self._ports['postgresql']}",
            "HOST": HOST,
            "PORT": str(self._ports["api"]),
            # The image's ten seconds, of which nothing is learnt here.
            "ONSALE_DRAIN_SECONDS": "1",
        }
        return image_environment() | told | here

    def up(self, names: Sequence[str]) -> None:
        """Start services in the order that compose gives them, each when what it needs is there."""
        for name in (name for name in self.order if name in names):
            if name == "valkey":
                self._start_valkey()
            elif name == "postgresql":
                self._start_postgresql()
            else:
                self._start(name, self._onsale(SERVICES[name]["command"]), self.environment)
            if name == "migrate":
                assert self._processes.pop(name).wait(timeout=30) == 0

    def down(self) -> dict[str, int]:
        """Stop what runs, in the reverse order, each in its time; return the exit codes."""
        codes = {}
        for name in reversed([name for name in self.order if name in self._processes]):
            process = self._processes.pop(name)
            process.send_signal(signal.SIGINT if name == "postgresql" else signal.SIGTERM)
            codes[name] = process.wait(timeout=seconds(SERVICES[name]["stop_grace_period"]))
        return codes

    def is_healthy(self) -> bool:
        """Run the image's health check, as the engine does."""
        ended = subprocess.run(
            self._onsale(image_health_check()[1][1:]),
            env=self.environment,
            cwd=self._directory,
            capture_output=True,
            check=False,
        )
        assert ended.returncode in (0, 1), ended.stderr
        return ended.returncode == 0

    def log(self, name: str) -> str:
        """Return what a service has said."""
        return (self._directory / f"{name}.log").read_text()

    def _onsale(self, command: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "service", *command]

    def _start(self, name: str, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                argv,
                env=environment,
                cwd=self._directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _start_valkey(self) -> None:
        name, *options = shlex.split(SERVICES["valkey"]["command"])
        assert name == "valkey-server"
        here = ("--dir", str(self._directory), "--bind", HOST, "--port", str(self._ports["valkey"]))
        self._start("valkey", [str(embedded._valkey_binary()), *options, *here], {})
        with redis.Redis(HOST, self._ports["valkey"], password=PASSWORDS["VALKEY_PASSWORD"]) as c:
            wait_until(lambda: pings(c), what="Valkey answers")

    def _start_postgresql(self) -> None:
        """Do what the official image's entry point does at a first start, and at every start."""
        data, bin_ = self._directory / "postgresql", embedded._postgres_bin()
        fresh, prefix = not data.exists(), embedded._ordinary_user_prefix()
        if fresh:
            secret = self._directory / "password"
            secret.write_text(f"{self.postgresql['password']}\n")
            user = f"--username={self.postgresql['user']}"
            initdb = [
                *prefix,
                str(bin_ / "initdb"),
                user,
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
            ]
            subprocess.run([*initdb, "-D", str(data)], check=True, capture_output=True)
        argv = [
            *prefix,
            str(bin_ / "postgres"),
            "-D",
            str(data),
            "-p",
            str(self.postgresql["port"]),
        ]
        self._start("postgresql", [*argv, "-k", "", "-h", HOST], {})
        wait_until(lambda: asyncio.run(self._postgresql_answers(fresh)), what="PostgreSQL answers")

    async def _postgresql_answers(self, fresh: bool) -> bool:
        database = "postgres" if fresh else self.postgresql["database"]
        try:
            connection = await asyncpg.connect(**{**self.postgresql, "database": database})
        except (OSError, asyncpg.PostgresError):
            return False
        if fresh:
            await connection.execute(f'CREATE DATABASE "{self.postgresql["database"]}"')
        await connection.close()
        return True


def pings(client: redis.Redis) -> bool:
    """Whether Valkey serves."""
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Composition]:
    """A composition that is stopped at the end, whatever happens."""
    found = Composition(tmp_path)
    try:
        yield found
    finally:
        found.down()


def book(compose: Composition, user: int) -> tuple[int, str]:
    """Book a ticket of the first event."""
    body = {"eventId": 1, "userId": user}
    answer = httpx.post(f"{compose.url}/book", json=body, timeout=10, trust_env=False)
    return answer.status_code, answer.json()["status"]


def lives(compose: Composition) -> bool:
    """Whether the API answers at all."""
    try:
        return httpx.get(f"{compose.url}/livez", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def recorded(compose: Composition) -> float:
    """Return how many bookings the writer has put on record, as the API shows it."""
    shown = httpx.get(f"{compose.url}/metrics", trust_env=False).text
    found = re.search(
        r'^onsale_recorded_changes_total\{kind="booked"\} (\S+)$', shown, re.MULTILINE
    )
    return float(found[1]) if found else 0


async def bookings(compose: Composition) -> list[str]:
    """Return who has a booking on record."""
    connection = await asyncpg.connect(**compose.postgresql)
    rows = await connection.fetch("SELECT user_id FROM bookings WHERE status = 'booked'")
    await connection.close()
    return [row["user_id"] for row in rows]


def test_the_roles_sell_on_stores_behind_passwords(compose: Composition) -> None:
    """In compose's order: healthy, a ticket booked and on record; stopped, each in its time.

    Started again, the booking is there, and no password got into a log.
    """
    compose.up(list(SERVICES))
    wait_until(compose.is_healthy, what="the API is healthy")
    opened = httpx.post(
        f"{compose.url}/initialize",
        json={"name": "First night", "totalTickets": 1},
        timeout=10,
        trust_env=False,
    )
    assert opened.status_code == 201
    assert book(compose, 1) == (201, "booked")
    wait_until(lambda: asyncio.run(bookings(compose)) == ["1"], what="it is on record")
    wait_until(lambda: recorded(compose) == 1, what="the API shows the writer's numbers")
    began = time.monotonic()
    ended = compose.down()
    # uvicorn ends itself by the signal that it got, when all is answered.
    assert ended.pop("api") in (0, -signal.SIGTERM)
    assert ended == {"writer": 0, "postgresql": 0, "valkey": 0}
    assert time.monotonic() - began < 20

    compose.up([name for name in SERVICES if name != "migrate"])
    wait_until(compose.is_healthy, what="the API is healthy again")
    assert book(compose, 1) == (200, "booked")
    assert book(compose, 2) == (202, "waiting")
    for name in SERVICES:
        assert not any(password in compose.log(name) for password in PASSWORDS.values())


def test_without_its_stores_a_role_waits_and_is_not_healthy(compose: Composition) -> None:
    """Compose's order holds at its own start alone: after a reboot a role may well be first."""
    compose.up(["api", "writer"])
    wait_until(lambda: lives(compose), what="the API lives")
    assert not compose.is_healthy()
    compose.up(["valkey", "postgresql", "migrate"])
    wait_until(compose.is_healthy, what="the API is healthy")
