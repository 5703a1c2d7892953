"""Files of the bundled stores that cannot be read: Valkey's are set aside, PostgreSQL's told."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.running import Running

Damage = Callable[[Path], None]


def _zeros_at_the_end(directory: Path) -> None:
    (file,) = directory.glob("*.incr.aof")
    file.write_bytes(file.read_bytes() + bytes(595))


def _an_empty_manifest(directory: Path) -> None:
    (file,) = directory.glob("*.manifest")
    file.write_bytes(b"")


def _no_base(directory: Path) -> None:
    (file,) = directory.glob("*.base.*")
    file.unlink()


DAMAGES: tuple[Damage, ...] = (
    _zeros_at_the_end,
    _an_empty_manifest,
    _no_base,
)


def test_a_broken_append_only_file_is_set_aside(data_dir: Path) -> None:
    """Each kind, one start after the other: what was on record is sold on, and nothing deleted."""
    up = Running(data_dir)
    directory = data_dir / "valkey" / "appendonlydir"
    event_id = 0
    for number, damage in enumerate((None, *DAMAGES)):
        if damage:
            damage(directory)
        up.start()
        try:
            with httpx.Client(base_url=up.urls["http"], trust_env=False, timeout=60) as client:
                if not damage:
                    event = {"name": "Event Name", "totalTickets": 9}
                    event_id = client.post("/initialize", json=event).json()["event"]["id"]
                body = {"eventId": event_id, "userId": number}
                assert client.post("/book", json=body).status_code == 201
                left = client.get(f"/status/{event_id}").json()["remainingTickets"]
                assert left == 8 - number
        finally:
            up.stop()
        kept = list(directory.parent.glob("appendonlydir.broken-*"))
        assert len(kept) == number
        assert all(any(path.iterdir()) for path in kept)


def test_a_broken_record_is_told_and_left_alone(data_dir: Path) -> None:
    """With the end of its log, long before the time that a start may take."""
    up = Running(data_dir)
    up.start()
    up.stop()
    control = data_dir / "postgresql" / "global" / "pg_control"
    control.write_bytes(b"")
    environment = up.environment(0)
    ended = subprocess.run(
        [sys.executable, "-m", "service", "up"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )
    assert ended.returncode == 1
    assert "postgresql did not come up" in ended.stderr
    assert "pg_control" in ended.stderr
    assert control.read_bytes() == b""
