"""`onsale demo`, on a service that runs and on one of its own."""

import os
import re
import signal
import socket
from pathlib import Path

from service.processes import find_leftovers
from service.rundir import RunDirectory
from tests.loadtests.commands import Crowds, demo, end


def test_the_demo_uses_the_service_that_runs(crowds: Crowds) -> None:
    """It says where the event is, that both stores agree, and sends no control character."""
    done = crowds.demo
    address = crowds.running.urls["http"]
    assert done.code == 0, done.out + done.err
    assert f"Found Onsale on {address}\n" in done.out
    assert re.search(rf"Look at it: {address}/status/\d+\n", done.out)
    assert re.search(r"outside the contract +0\n", done.out)
    assert "clean: Redis and the record agree; 30 users" in done.out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.out)
    assert done.err == ""


def left_behind(data: Path) -> list[str]:
    """Return what still runs on a data directory, or says so."""
    run = RunDirectory(data)
    return [role for role, _ in find_leftovers(run)] + [path.name for path in run.run.glob("*.*")]


def test_without_a_service_the_demo_brings_its_own(tmp_path: Path) -> None:
    """On a free port where PORT is taken; and takes it away again, data and logs apart."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = end(demo(tmp_path / "data", 10, PORT=str(port)))
    assert done.code == 0, done.out + done.err
    address = re.search(r"^Started Onsale on http://127.0.0.1:(\d+)$", done.out, re.MULTILINE)
    assert address is not None
    assert int(address[1]) != port
    assert "clean: Redis and the record agree; 10 users" in done.out
    assert "Stopped Onsale again." in done.out
    assert left_behind(tmp_path / "data") == []


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the sale stops the service that it has started, and exits 130."""
    process = demo(tmp_path / "data", 3000, PORT="0")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("Event "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert end(process).code == 130
    assert left_behind(tmp_path / "data") == []


def test_a_demo_that_cannot_start_says_why(tmp_path: Path) -> None:
    """What `onsale up` refuses is the demo's one line too."""
    run = RunDirectory(tmp_path)
    run.acquire()
    done = end(demo(tmp_path, 30, PORT="0"))
    run.release()
    assert done.code == 1
    assert done.err == (
        f"onsale: {tmp_path} is already served by process {os.getpid()}; stop that one first\n"
    )
