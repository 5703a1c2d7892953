"""`make loadtest` in small, against a whole service; and what its verifier says to a forgery."""

import json
import re
import sys
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import asyncpg
import pytest
from redis.asyncio import Redis

from loadtests.verify import verify
from service.keys import event_keys
from tests.conftest import Client, Record
from tests.loadtests.commands import PEOPLE, Crowds, end, locust, verifier


def test_the_load_test_ends_by_itself_and_holds(crowds: Crowds) -> None:
    """All come and leave, nothing is outside the contract, and the verifier finds all of it so."""
    assert crowds.locust.code == 0, crowds.locust.err
    assert re.search(rf"looked +{PEOPLE}\n", crowds.locust.out)
    assert re.search(r"outside +0\n", crowds.locust.out)
    answers = crowds.answers
    assert (answers.people, answers.gave_up, answers.lines) == (PEOPLE, 0, len(answers.told))
    assert {one.operation for one in answers.told} == {"look", "book", "poll", "cancel"}
    assert {one.durability for one in answers.told if one.status == 201} == {"recorded"}
    assert "<html" in (crowds.out / "report.html").read_text()
    verified = verifier(crowds.running.data, crowds.out / "answers")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert verified.stdout.endswith("Every check holds.\n")


Sabotage = Callable[[Client, Record, int], Awaitable[object]]


async def _booking_on_record(_: Client, record: Record, event: int) -> object:
    return await record.execute(
        "INSERT INTO bookings VALUES ($1, 'by-hand', 'booked', 1, 999999999, now())", event
    )


async def _counter_on_record(_: Client, record: Record, event: int) -> object:
    return await record.execute("UPDATE events SET sold = sold - 1 WHERE id = $1", event)


async def _capacity_on_record(_: Client, record: Record, event: int) -> object:
    return await record.execute("UPDATE events SET capacity = capacity + 1 WHERE id = $1", event)


async def _row_in_the_journal(_: Client, record: Record, event: int) -> object:
    return await record.execute(
        "INSERT INTO journal SELECT partition, seq + 1, epoch, now(), 'booked', $1, 'by-hand',"
        " NULL, '' FROM cursors",
        event,
    )


async def _kind_in_the_journal(_: Client, record: Record, event: int) -> object:
    return await record.execute(
        "UPDATE journal SET kind = 'booked' WHERE kind = 'waiting' AND event_id = $1", event
    )


async def _time_in_the_journal(_: Client, record: Record, event: int) -> object:
    return await record.execute(
        "UPDATE journal SET at = at + interval '1 hour' WHERE kind = 'promoted' AND event_id = $1",
        event,
    )


async def _available_in_redis(redis: Client, _: Record, event: int) -> object:
    return await redis.hincrby(event_keys(0, event).event, "available", 1)


async def _capacity_in_redis(redis: Client, _: Record, event: int) -> object:
    return await redis.hincrby(event_keys(0, event).event, "capacity", 1)


async def _user_in_redis(redis: Client, _: Record, event: int) -> object:
    return await redis.hset(event_keys(0, event).users, "by-hand", "booked 5 1 0")


async def remember(redis: Client, record: Record, event: int) -> Callable[[], Awaitable[None]]:
    """Return what puts an event back, whatever a hand does to it meanwhile."""
    held = await redis.hgetall(event_keys(0, event).event)
    rows = await record.fetch("SELECT id, sold, capacity FROM events WHERE id = $1", event)
    journal = await record.fetch("SELECT seq, kind, at FROM journal WHERE event_id = $1", event)

    async def restore() -> None:
        await redis.hset(event_keys(0, event).event, mapping=held)
        await redis.hdel(event_keys(0, event).users, "by-hand")
        await record.execute("DELETE FROM bookings WHERE user_id = 'by-hand'")
        await record.execute("DELETE FROM journal WHERE user_id = 'by-hand'")
        await record.executemany(
            "UPDATE journal SET kind = $2, at = $3 WHERE seq = $1", [tuple(row) for row in journal]
        )
        await record.executemany(
            "UPDATE events SET sold = $2, capacity = $3 WHERE id = $1", [tuple(row) for row in rows]
        )

    return restore


TABLE_BOOKINGS = "the table bookings is the replayed journal"
TABLE_EVENTS = "the table events is the replayed journal"
STATUS = "GET /status is the replayed journal"


@pytest.mark.parametrize(
    ("by_hand", "broken"),
    [
        (_booking_on_record, TABLE_BOOKINGS),
        (_counter_on_record, TABLE_EVENTS),
        (_capacity_on_record, TABLE_EVENTS),
        (_row_in_the_journal, "nothing on record that nobody asked for"),
        (_kind_in_the_journal, "never more sold than there are tickets"),
        (_time_in_the_journal, "the journal has no gap, and its hashes hold"),
        (_available_in_redis, STATUS),
        (_capacity_in_redis, STATUS),
        (_user_in_redis, "Redis and PostgreSQL agree (onsale reconcile)"),
    ],
)
async def test_a_ticket_by_hand_is_found(
    crowds: Crowds, by_hand: Sabotage, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a hand adds a ticket, the check for it breaks; once it is taken back, all hold."""
    monkeypatch.setenv("ONSALE_DATA_DIR", str(crowds.running.data))
    event = crowds.answers.sale.event
    redis: Client = Redis.from_url(crowds.running.urls["redis"], decode_responses=True)
    record = await asyncpg.connect(crowds.running.urls["postgresql"])
    restore = await remember(redis, record, event)
    try:
        await by_hand(redis, record, event)
        found, _ = await verify(crowds.answers, patience_s=20)
    finally:
        await restore()
        checks, unknown = await verify(crowds.answers, patience_s=20)
        await record.close()
        await redis.aclose()
    assert broken in {check.name for check in found if check.wrong}
    assert (unknown, [check.name for check in checks if check.wrong]) == ("", [])


def test_a_line_by_hand_makes_the_verifier_exit_1(crowds: Crowds, tmp_path: Path) -> None:
    """An answer that nobody was given breaks its check, by name, and the exit code says so."""
    lines = (crowds.out / "answers").read_text().splitlines()
    by_hand = {"operation": "book", "user": "by-hand", "status": 201, "seq": 1, "state": "booked"}
    lines.insert(-1, json.dumps({**by_hand, "sent": 1.0, "answered": 2.0}))
    forged = tmp_path / "answers"
    forged.write_text("\n".join(lines))
    verified = verifier(crowds.running.data, forged)
    assert verified.returncode == 1
    assert "BROKEN: every 201 is on record, once\n  by-hand: 201 with seq 1" in verified.stdout


@pytest.mark.parametrize("missing", ["service", "answers"])
def test_where_nothing_can_be_seen_the_verifier_exits_2(
    crowds: Crowds, tmp_path: Path, missing: str
) -> None:
    """Without stores, and with a file that is none, one line says that it cannot tell."""
    data = tmp_path if missing == "service" else crowds.running.data
    answers = crowds.out / ("answers" if missing == "service" else "report.html")
    verified = verifier(data, answers)
    assert verified.returncode == 2
    assert verified.stdout == ""
    assert verified.stderr.startswith("verify: cannot tell: ")
    assert len(verified.stderr.splitlines()) == 1


def test_without_a_service_the_load_test_says_so(tmp_path: Path) -> None:
    """One line, before anybody comes, and no file of answers."""
    done = end(locust(tmp_path, tmp_path))
    assert done.code == 2
    assert done.err.startswith(f"loadtest: no service runs on {tmp_path}")
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "answers").exists()


class OutsideTheContract(BaseHTTPRequestHandler):
    """Opens an event and is ready, and answers all else with a 200 that says nothing."""

    def do_GET(self) -> None:
        """Answer."""
        self._answer(200, b"{}")

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["content-length"]))
        opens = self.path == "/initialize"
        self._answer(201 if opens else 200, b'{"event": {"id": 1}}' if opens else b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_what_is_outside_the_contract_makes_locust_exit_1(tmp_path: Path) -> None:
    """Whatever its status, and although Locust is told to exit with 0 on errors."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OutsideTheContract) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        more = ("--host", host, "--people", "5", "--exit-code-on-error", "0")
        done = end(locust(tmp_path, tmp_path, *more))
        server.shutdown()
    assert done.code == 1
    assert re.search(r"looked +0\n", done.out)
    assert re.search(r"outside +[1-9]", done.out)


def test_locust_patches_nothing_here() -> None:
    """No test imports Locust: its patches of the standard library would reach all others."""
    assert "gevent.monkey" not in sys.modules
