"""Counting together: several processes, one sum, and nothing lost with a process."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.metrics import Metrics

_COUNTING = """
import sys
from pathlib import Path
from service import logs, metrics
logs.configure()
counted = metrics.shared(Path(sys.argv[1]), sys.argv[2])
counted.problems.labels("overloaded").inc(int(sys.argv[3]))
counted.batch_items.labels("book").observe(3)
counted.waiting_room.labels("book").set(int(sys.argv[3]))
print("counted", flush=True)
sys.stdin.read()
"""

_RECONCILING = """
import sys
from pathlib import Path
from service import metrics
metrics.note_reconcile(Path(sys.argv[1]), exit_code=1, drifts=3)
"""


def counting(directory: Path, role: str, count: int) -> "subprocess.Popen[str]":
    """Start a process that counts so many, and then waits for its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _COUNTING, str(directory), role, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "counted\n"
    return process


def end(*processes: "subprocess.Popen[str]") -> None:
    """Kill -9: what was counted must be there all the same."""
    for process in processes:
        process.kill()
        process.communicate()


def shown(counted: Metrics) -> dict[str, float]:
    """Return every sample by `name{labels}`."""
    families = text_string_to_metric_families(generate_latest(counted.registry()).decode())
    return {
        sample.name + "".join(f"{{{v}}}" for v in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def test_processes_are_counted_together(tmp_path: Path) -> None:
    """The sum is that of all, of the killed ones too."""
    processes = [counting(tmp_path, "api", 3), counting(tmp_path, "api-2", 4)]
    found = shown(Metrics(tmp_path))
    end(*processes)
    assert found["onsale_waiting_room_requests{book}"] == 7
    found = shown(Metrics(tmp_path))
    assert found["onsale_problems_total{overloaded}"] == 7
    assert found["onsale_batch_items_count{book}"] == 2


def test_a_counter_goes_on_where_a_killed_process_left_it(tmp_path: Path) -> None:
    """The next process of a role takes its slot over; no file is left behind for good."""
    for count in (3, 4, 5):
        end(counting(tmp_path, "api", count))
    assert shown(Metrics(tmp_path))["onsale_problems_total{overloaded}"] == 12
    assert len(list(tmp_path.glob("counter_*.db"))) == 1


def test_two_living_processes_of_one_role_have_two_slots(tmp_path: Path) -> None:
    """Neither writes over the other."""
    processes = [counting(tmp_path, "api", 3), counting(tmp_path, "api", 4)]
    found = shown(Metrics(tmp_path))
    end(*processes)
    assert found["onsale_problems_total{overloaded}"] == 7
    assert len(list(tmp_path.glob("counter_*.db"))) == 2


def test_a_new_start_counts_from_zero_and_leaves_the_living_alone(tmp_path: Path) -> None:
    """`clear` removes what nobody counts in."""
    end(counting(tmp_path, "api", 3))
    living = counting(tmp_path, "writer", 4)
    metrics.clear(tmp_path)
    found = shown(Metrics(tmp_path))
    end(living)
    assert found["onsale_problems_total{overloaded}"] == 4


def test_a_garbled_file_costs_its_numbers_and_no_start(tmp_path: Path) -> None:
    """A power cut may leave anything in a mapped file."""
    end(counting(tmp_path, "api", 3))
    (file,) = tmp_path.glob("counter_*.db")
    content = bytearray(file.read_bytes())
    content[8:12] = b"\xff\xff\xff\x7f"
    file.write_bytes(content)
    end(counting(tmp_path, "api", 4))
    assert shown(Metrics(tmp_path))["onsale_problems_total{overloaded}"] == 4


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x10\x00\x00" + bytes(8192), b"\xff" * 64, b"x"], ids=repr
)
def test_a_file_that_cannot_be_read_costs_no_scrape(tmp_path: Path, content: bytes) -> None:
    """Whatever is in it: the others' numbers are shown, and a start mends it."""
    end(counting(tmp_path, "api", 3))
    (tmp_path / "counter_api.7.db").write_bytes(content)
    assert shown(Metrics(tmp_path))["onsale_problems_total{overloaded}"] == 3
    (tmp_path / "counter_api.db").write_bytes(content)
    end(counting(tmp_path, "api", 4))
    assert shown(Metrics(tmp_path))["onsale_problems_total{overloaded}"] == 4


def test_a_directory_that_has_gone_costs_no_scrape(tmp_path: Path) -> None:
    """There is nothing to show, and nothing fails."""
    assert shown(Metrics(tmp_path / "gone")) == {}


def test_what_waited_in_a_process_that_has_gone_waits_no_more(tmp_path: Path) -> None:
    """A waiting room is empty without its process; what was counted stays counted."""
    living = counting(tmp_path, "api", 3)
    end(counting(tmp_path, "api-2", 4))
    found = shown(Metrics(tmp_path))
    end(living)
    assert found["onsale_waiting_room_requests{book}"] == 3
    assert found["onsale_problems_total{overloaded}"] == 7


def test_clearing_touches_nothing_of_others(tmp_path: Path) -> None:
    """Neither other files nor locks of others; and a lock that cannot be opened fails nothing."""
    end(counting(tmp_path, "api", 3))
    kept = [".s.PGSQL.5432.lock", "poetry.lock", "my_poetry.db", "counter.db"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / "counter_odd.db").touch()
    (tmp_path / "odd.lock").mkdir()
    metrics.clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "counter_odd.db", "odd.lock"}


def test_the_room_on_disk_is_taken_before_anything_is_counted(tmp_path: Path) -> None:
    """A page of a mapped file that has no room on a full disk would kill the process."""
    end(counting(tmp_path, "api", 1))
    for file in tmp_path.glob("*.db"):
        assert file.stat().st_blocks * 512 >= file.stat().st_size > 0


def test_a_directory_that_cannot_be_made_costs_only_the_sum(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process starts, and counts alone."""
    (tmp_path / "file").touch()
    end(counting(tmp_path / "file" / "metrics", "api", 1))
    assert "metrics of this process alone" in "".join(capfd.readouterr())


def test_a_reconcile_is_shown_once_there_was_one(tmp_path: Path) -> None:
    """Before it there is no zero that would look like `clean`."""
    end(counting(tmp_path, "api", 1))
    assert not [name for name in shown(Metrics(tmp_path)) if "reconcile" in name]
    subprocess.run([sys.executable, "-c", _RECONCILING, str(tmp_path)], check=True)
    found = shown(Metrics(tmp_path))
    assert found["onsale_reconcile_exit_code"] == 1
    assert found["onsale_reconcile_drifts"] == 3
    assert found["onsale_reconcile_timestamp_seconds"] > 1_700_000_000
