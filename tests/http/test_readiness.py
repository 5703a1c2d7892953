"""Readiness means that bookings are taken: whatever refuses them shows, and so does its end.

Each fault is put on a service that is ready, one after the other.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import redis

from tests.http.watched import META, OUTBOX, Watched, watched
from tests.servers import wait_until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service for all faults of this module."""
    with watched(tmp_path_factory.mktemp("watched")) as running:
        yield running


Fault = Callable[[Watched], AbstractContextManager[None]]


def configured(name: str, value: str) -> Fault:
    """Set one of Redis's settings meanwhile."""

    @contextlib.contextmanager
    def fault(service: Watched) -> Iterator[None]:
        usual = service.valkey.config_get(name)[name]
        service.valkey.config_set(name, value)
        yield
        service.valkey.config_set(name, usual)

    return fault


@contextlib.contextmanager
def replica(service: Watched) -> Iterator[None]:
    """Make it a replica of a primary that is not there."""
    service.valkey.replicaof("127.0.0.1", 1)
    yield
    service.valkey.replicaof("NO", "ONE")


@contextlib.contextmanager
def paused(service: Watched) -> Iterator[None]:
    """Have Redis hold every command that may write."""
    service.valkey.client_pause(600_000, all=False)
    yield
    service.valkey.client_unpause()


@contextlib.contextmanager
def busy(service: Watched) -> Iterator[None]:
    """Have Redis run a script that does not end."""
    endless = threading.Thread(target=_run_endless, args=(service.servers.redis_url,))
    usual = service.valkey.config_get("busy-reply-threshold")["busy-reply-threshold"]
    service.valkey.config_set("busy-reply-threshold", "100")
    endless.start()
    yield
    while endless.is_alive():
        with contextlib.suppress(redis.RedisError):  # it may not have begun, or ended
            service.valkey.script_kill()
        endless.join(0.1)
    service.valkey.config_set("busy-reply-threshold", usual)


def _run_endless(url: str) -> None:
    with redis.Redis.from_url(url) as client, contextlib.suppress(redis.RedisError):
        client.eval("while true do end", 0)


@contextlib.contextmanager
def snapshot_failed(service: Watched) -> Iterator[None]:
    """Have Redis refuse writes since it could not write its snapshot."""
    taken = service.servers.run.data / "valkey" / service.valkey.config_get()["dbfilename"]
    taken.mkdir()
    service.valkey.config_set("save", "3600 1000000")
    service.valkey.bgsave()
    yield
    service.valkey.config_set("save", "")
    taken.rmdir()


@contextlib.contextmanager
def frozen(service: Watched) -> Iterator[None]:
    """Stop Redis's process."""
    os.kill(service.servers.pid("valkey"), signal.SIGSTOP)
    yield
    os.kill(service.servers.pid("valkey"), signal.SIGCONT)


FAULTS = [
    pytest.param(replica, "replica", id="replica"),
    pytest.param(configured("min-replicas-to-write", "1"), "min-replicas-to-write", id="replicas"),
    pytest.param(configured("maxmemory", "1mb"), "no memory left", id="memory"),
    pytest.param(snapshot_failed, "cannot write to its disk", id="disk"),
    pytest.param(busy, "busy with a script", id="busy"),
    pytest.param(paused, "cannot be reached", id="paused"),
    pytest.param(frozen, "cannot be reached", id="frozen"),
]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("fault", "why"), FAULTS)
def test_what_refuses_bookings_shows(service: Watched, fault: Fault, why: str) -> None:
    """`/readyz` says why, the metrics count it, a booking is refused; and then all is as before."""
    service.turns_ready()
    with fault(service):
        problem = service.turns_unready()
        assert (problem["status"], problem["code"]) == (503, "unavailable")
        assert why in problem["detail"]
        refused = service.book()
        assert refused.status_code == 503
        assert refused.json()["code"] in {"unavailable", "outcome_unknown"}
        assert service.metric('onsale_open{partition="0"}') == 0
        assert service.metric('onsale_refused{code="unavailable"') == 1
    service.turns_ready()
    assert service.metric('onsale_open{partition="0"}') == 1
    assert service.metric("onsale_refused{") == 0


def test_a_command_says_why(service: Watched) -> None:
    """`onsale health` prints the reason, and exits with 1."""
    service.turns_ready()
    with configured("min-replicas-to-write", "1")(service):
        service.turns_unready()
        found = subprocess.run(
            [sys.executable, "-m", "service", "health", "--url", service.url],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (found.returncode, found.stdout) == (1, "")
    assert "Redis has fewer replicas than min-replicas-to-write." in found.stderr
    service.turns_ready()


@pytest.mark.timeout(200)
def test_a_stray_entry_heals_without_a_request(service: Watched) -> None:
    """An id beyond the next change's would refuse every booking: the probe finds it."""
    service.turns_ready()
    epoch = int(service.valkey.hget(META, "epoch"))
    service.valkey.xadd(OUTBOX, {"a": "b"})
    wait_until(lambda: int(service.valkey.hget(META, "epoch")) > epoch, what="an epoch begins")
    service.turns_ready()


@pytest.mark.timeout(200)
def test_where_all_wait_for_the_record_it_has_to_move(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """At `recorded` a writer that does not write, and a record that is away, are not ready."""
    settings = {"ONSALE_DURABILITY": "recorded"}
    with watched(tmp_path_factory.mktemp("recorded"), settings) as service:
        service.turns_ready()
        os.kill(service.writer.pid, signal.SIGSTOP)
        assert service.book().json()["status"] == "pending"
        assert service.turns_unready()["code"] == "record_behind"
        os.kill(service.writer.pid, signal.SIGCONT)
        service.turns_ready()
        service.servers.kill("postgresql")
        problem = service.turns_unready()
        assert problem["detail"] == "The record cannot be reached."
        assert service.metric('onsale_open{partition="0"}') == 0
        service.servers.start_postgres()
        service.turns_ready()
