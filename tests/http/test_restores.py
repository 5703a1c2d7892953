"""A store that comes back older than the other knows it to be, under a whole service."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import httpx
import pytest
import redis

from service.keys import partition_keys
from service.reconciler import reconcile
from tests.running import Running
from tests.servers import wait_until


@pytest.fixture
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service that sold two of three tickets, and one more after a copy was taken; stopped."""
    service = Running(tmp_path_factory.mktemp("restores") / "data")
    try:
        service.start()
        _post(service, "/initialize", {"name": "Event Name", "totalTickets": 3})
        for user in (1, 2):
            assert _post(service, "/book", {"eventId": 1, "userId": user}).status_code == 201
        service.stop()
        for store in ("valkey", "postgresql"):
            shutil.copytree(service.data / store, service.data / f"{store}.copy", symlinks=True)
        service.start()
        for user, status in ((3, 201), (4, 202)):
            assert _post(service, "/book", {"eventId": 1, "userId": user}).status_code == status
        service.stop()
        yield service
    finally:
        service.stop()


def test_an_older_valkey_is_rebuilt_from_the_record(stopped: Running) -> None:
    """The third ticket is not sold a second time, and the waiter keeps the place."""
    _restore(stopped, "valkey")
    stopped.start()
    assert _post(stopped, "/book", {"eventId": 1, "userId": 3}).status_code == 200
    waiting = _post(stopped, "/book", {"eventId": 1, "userId": 5})
    assert (waiting.status_code, waiting.json()["position"]) == (202, 2)


def test_an_older_postgresql_is_brought_forward(stopped: Running) -> None:
    """What was sold after the copy is on record again, and the sale goes on without a person."""
    _restore(stopped, "postgresql")
    stopped.start()
    assert "NOTHING IS SOLD" not in stopped.screen
    assert _post(stopped, "/book", {"eventId": 1, "userId": 3}).status_code == 200
    assert _post(stopped, "/book", {"eventId": 1, "userId": 4}).json()["position"] == 1
    opened = _post(stopped, "/initialize", {"name": "Another", "totalTickets": 1})
    assert (opened.status_code, opened.json()["event"]["id"]) == (201, 2)
    urls = stopped.urls
    report = asyncio.run(reconcile(urls["redis"], urls["postgresql"]))
    assert report.verdict == "clean"


def test_an_older_postgresql_whose_tail_is_gone_keeps_the_sale_closed(stopped: Running) -> None:
    """Every request gets 503 with the reason, the first screen says it too, and nothing is lost."""
    stopped.start()
    with redis.Redis.from_url(stopped.urls["redis"], decode_responses=True) as client:
        newest = client.hget(partition_keys(0).meta, "epoch")
        client.xtrim(partition_keys(0).outbox, minid=f"{newest}-1", approximate=False)
    stopped.stop()
    _restore(stopped, "postgresql")
    stopped.start()
    assert "NOTHING IS SOLD" in stopped.screen
    for answer in (
        _post(stopped, "/book", {"eventId": 1, "userId": 5}),
        _post(stopped, "/cancel", {"eventId": 1, "userId": 1}),
        httpx.get(f"{stopped.urls['http']}/status/1", trust_env=False),
        httpx.get(f"{stopped.urls['http']}/readyz", trust_env=False),
    ):
        assert answer.status_code == 503
        assert answer.json()["code"] == "closed"
        assert "PostgreSQL went back" in answer.json()["detail"]
        assert "partition 0: changes" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) > 0
    stopped.stop()
    shutil.rmtree(stopped.data / "postgresql")
    (stopped.data / "postgresql.newer").rename(stopped.data / "postgresql")
    stopped.start()
    wait_until(lambda: _post(stopped, "/book", {"eventId": 1, "userId": 3}).status_code == 200)
    assert _post(stopped, "/book", {"eventId": 1, "userId": 4}).json()["position"] == 1


def test_a_wiped_valkey_is_told_from_what_a_killed_worker_has_answered(stopped: Running) -> None:
    """Nobody lives who remembers the answers; the file does, until an operator has confirmed."""
    stopped.start()
    with redis.Redis.from_url(stopped.urls["redis"], decode_responses=True) as client:
        ends = partial(client.hmget, partition_keys(0).meta)
        wait_until(lambda: ends("epoch", "seq") == ends("recorded_epoch", "recorded"))
        os.kill(stopped.pid("writer"), signal.SIGSTOP)
        for user in (5, 6):
            assert _post(stopped, "/book", {"eventId": 1, "userId": user}).status_code == 202
        epoch, seq = map(int, client.hmget(partition_keys(0).meta, "epoch", "seq"))
        kept = stopped.data / "answered" / "api.json"
        wait_until(lambda: [epoch, seq] in json.loads(kept.read_text())["answered"]["0"])
        client.flushall()
    stopped.kill("api")
    refused = f"answers were lost: changes {epoch}-{seq - 1} to {epoch}-{seq} were answered"
    wait_until(lambda: refused in _post(stopped, "/book", {"eventId": 1, "userId": 7}).text)
    # Woken up it would record what had reached its socket before it was frozen: less would be lost.
    stopped.kill("writer")
    shown = _onsale(stopped, "confirm-loss")
    assert (shown.returncode, refused in shown.stdout) == (1, True)
    opened = _onsale(stopped, "confirm-loss", "--apply")
    assert opened.returncode == 0, opened.stdout
    wait_until(lambda: _post(stopped, "/book", {"eventId": 1, "userId": 4}).status_code == 202)
    assert _post(stopped, "/book", {"eventId": 1, "userId": 6}).json()["position"] == 2


def _onsale(service: Running, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside a running service."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env={**os.environ, "ONSALE_DATA_DIR": str(service.data)},
        capture_output=True,
        text=True,
        check=False,
    )


def _restore(service: Running, store: str) -> None:
    """Put the earlier copy in the place of a store's data."""
    (service.data / store).rename(service.data / f"{store}.newer")
    (service.data / f"{store}.copy").rename(service.data / store)


def _post(service: Running, path: str, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{service.urls['http']}{path}", json=body, timeout=10, trust_env=False)
