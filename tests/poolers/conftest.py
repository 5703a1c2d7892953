"""A PgBouncer before this test's record, in the mode that a test asks for."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from service.embedded import _ordinary_user_prefix
from tests.conftest import Stores
from tests.servers import free_port, wait_until

Pooler = Callable[..., str]
"""Starts one, `(mode, **settings)`; returns the URL that leads through it."""


def _serves(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def pooler(stores: Stores, tmp_path: Path) -> Iterator[Pooler]:
    """Start poolers; stop them in the end."""
    program = os.environ.get("ONSALE_TEST_PGBOUNCER") or "/usr/sbin/pgbouncer"
    parts = urlsplit(stores.postgresql_url)
    host, database = parse_qs(parts.query)["host"][0], parts.path.lstrip("/")
    running: list[subprocess.Popen[bytes]] = []

    def start(mode: str, **settings: object) -> str:
        port = free_port()
        path = tmp_path / f"{port}.ini"
        users = tmp_path / "users.txt"
        users.write_text('"onsale" ""\n')
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "auth_file": users,
            "pool_mode": mode,
            # Go's driver, and so the migrations', sends it with each connection.
            "ignore_startup_parameters": "extra_float_digits",
            **settings,
        }
        path.write_text(
            f"[databases]\n{database} = host={host} user=onsale\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        command = (*_ordinary_user_prefix(), program, "-q", str(path))
        running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        wait_until(lambda: _serves(port), what=f"{program} in {mode} mode")
        return f"postgresql://onsale@127.0.0.1:{port}/{database}"

    yield start
    for process in running:
        process.terminate()
        process.wait()
