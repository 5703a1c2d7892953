"""`onsale audit` and `onsale history` as an operator runs them: exit codes, streams, files."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Record, Stores
from tests.integration.records import put_on_record
from tests.journals import Sale

AUDIT = ("-m", "service", "audit")
HISTORY = ("-m", "service", "history")


@pytest.fixture
def environment(stores: Stores, tmp_path: Path) -> dict[str, str]:
    """The settings of an operator who has the record alone: there is no Redis."""
    return {
        **os.environ,
        "REDIS_URL": "",
        "DATABASE_URL": stores.postgresql_url,
        "ONSALE_DATA_DIR": str(tmp_path / "data"),
    }


def onsale(
    environment: dict[str, str], command: tuple[str, ...], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        (sys.executable, *command, *arguments),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("sale")
class TestAudit:
    """The record is that of the fixture `sale`."""

    def test_a_record_that_holds_is_exit_code_0(self, environment: dict[str, str]) -> None:
        """The verdict comes last; nothing goes to stderr."""
        ended = onsale(environment, AUDIT)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.splitlines()[-1].startswith("holds: ")
        assert "11 changes of 1 partition checked, 1 event replayed" in ended.stdout

    async def test_a_violation_is_exit_code_1(
        self, environment: dict[str, str], record: Record
    ) -> None:
        """It names the row, in the table and in the JSON."""
        await record.execute("UPDATE journal SET user_id = 'z' WHERE seq = 4")
        ended = onsale(environment, AUDIT)
        assert (ended.returncode, ended.stderr) == (1, "")
        assert ended.stdout.splitlines()[-1].startswith("violated: 5 violations; ")
        ended = onsale(environment, AUDIT, "--json")
        assert ended.returncode == 1
        found = json.loads(ended.stdout)
        assert (found["verdict"], found["exitCode"]) == ("violated", 1)
        assert found["violations"][0] == {
            "rule": "hash",
            "partition": 0,
            "seq": 4,
            "event": 1,
            "user": "z",
            "says": "its hash does not follow from it and the row before",
        }

    async def test_a_head_is_printed_and_read_back(
        self, environment: dict[str, str], record: Record, tmp_path: Path
    ) -> None:
        """The output is the file, more may be added, and it proves what came before it."""
        printed = onsale(environment, AUDIT, "--head")
        row = await record.fetchrow("SELECT epoch, seq, hash FROM journal ORDER BY seq DESC")
        assert row is not None
        line = f"0 {row['epoch']} {row['seq']} {row['hash'].hex()}"
        assert printed.stdout.splitlines() == ["# partition epoch seq sha256", line]
        assert (printed.returncode, printed.stderr) == (0, "")
        kept = tmp_path / "heads"
        kept.write_text(printed.stdout + printed.stdout)
        ended = onsale(environment, AUDIT, "--since-head", str(kept))
        assert ended.returncode == 0
        assert "11 changes and 2 kept heads of 1 partition checked" in ended.stdout
        await record.execute("DELETE FROM journal WHERE seq = 11")
        await record.execute(
            "UPDATE cursors SET seq = 10, head = (SELECT hash FROM journal WHERE seq = 10)"
        )
        ended = onsale(environment, AUDIT, "--since-head", str(kept))
        assert ended.returncode == 1
        assert "the journal does not have the row of the kept head 3-11" in ended.stdout

    async def test_no_head_is_printed_of_a_record_that_does_not_hold(
        self, environment: dict[str, str], record: Record
    ) -> None:
        """So that no such head is kept: what is wrong goes to stderr."""
        await record.execute("UPDATE events SET sold = 1")
        ended = onsale(environment, AUDIT, "--head")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "events says sold 1; the journal comes to 2" in ended.stderr

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (b"0 1 8 abc\n", "line 1 of the kept heads is no head: '0 1 8 abc'"),
            (b"# partition epoch seq sha256\n", "there is no head among the kept heads"),
            (b"\xff\xfe", "line 1 of the kept heads is no head"),
        ],
    )
    def test_a_file_without_heads_is_exit_code_2(
        self, environment: dict[str, str], tmp_path: Path, text: bytes, says: str
    ) -> None:
        """Never taken for a proof, and never for a violation."""
        (tmp_path / "heads").write_bytes(text)
        ended = onsale(environment, AUDIT, "--since-head", str(tmp_path / "heads"))
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith(f"onsale: {says}")
        assert len(ended.stderr.splitlines()) == 1
        assert onsale(environment, AUDIT, "--since-head", "/nowhere").returncode == 2

    @pytest.mark.parametrize(
        ("changed", "arguments", "says"),
        [
            ({}, ("98", "99"), "the record has no event 98, 99"),
            (
                {"DATABASE_URL": "postgresql://onsale:hush@127.0.0.1:1/onsale"},
                (),
                "cannot tell: PostgreSQL: ",
            ),
            ({"DATABASE_URL": ""}, (), "no service runs on "),
            ({"PORT": "x"}, (), "PORT: "),
        ],
    )
    def test_what_keeps_it_from_looking_is_one_line_and_exit_code_2(
        self,
        environment: dict[str, str],
        changed: dict[str, str],
        arguments: tuple[str, ...],
        says: str,
    ) -> None:
        """Never taken for a violation; without a traceback and without a password."""
        ended = onsale({**environment, **changed}, AUDIT, *arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith(f"onsale: {says}")
        assert len(ended.stderr.splitlines()) == 1
        assert "hush" not in ended.stderr

    def test_a_failure_of_its_own_is_no_violation(self, environment: dict[str, str]) -> None:
        """Python ends a traceback with 1; here that would say that the record does not hold."""
        broken = "import service.audit_report as r, service.cli as c; r.audit = None; c.main()"
        ended = onsale(environment, ("-c", broken), "audit")
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1].startswith("onsale: cannot tell: ")

    def test_a_bar_is_drawn_on_a_terminal(self, environment: dict[str, str]) -> None:
        """On stderr, and taken away at the end; stdout stays what it is."""
        ours, theirs = pty.openpty()
        ended = subprocess.run(
            (sys.executable, *AUDIT, "--json"),
            env={**environment, "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=True,
        )
        os.close(theirs)
        drawn = os.read(ours, 65_536).decode()
        os.close(ours)
        assert "replaying" in drawn
        assert json.loads(ended.stdout)["verdict"] == "holds"


class TestHistory:
    """What happened, to a user and at an event."""

    @pytest.mark.usefixtures("sale")
    def test_a_user_is_told_in_words(self, environment: dict[str, str]) -> None:
        """Each change with its time, epoch and seq; and how things stand."""
        ended = onsale(environment, HISTORY, "1", "c")
        assert (ended.returncode, ended.stderr) == (0, "")
        *told, summary = ended.stdout.splitlines()
        assert told == [
            "time                      epoch  seq  user",
            "2026-11-22T09:33:17.005Z      1    5  c     joined the waiting list at place 1",
            "2026-11-22T09:33:17.008Z      3    8  c     left the waiting list",
            "2026-11-22T09:33:17.011Z      3   11  c     joined the waiting list at place 1",
            "",
        ]
        assert summary == (
            "event 1, user c: waiting now; 3 changes: 2 joined the waiting list, 1 left the"
            " waiting list."
        )

    @pytest.mark.usefixtures("sale")
    def test_an_event_is_told_whole(self, environment: dict[str, str]) -> None:
        """From its opening on; epochs are no part of it."""
        ended = onsale(environment, HISTORY, "1")
        assert ended.returncode == 0
        said = [line.split(maxsplit=4) for line in ended.stdout.splitlines()[1:-2]]
        assert [(int(seq), user, says) for _, _, seq, user, says in said] == [
            (2, "-", "opened with 2 tickets: First night"),
            (3, "a", "booked a ticket"),
            (4, "b", "booked a ticket"),
            (5, "c", "joined the waiting list at place 1"),
            (6, "d", "joined the waiting list at place 2"),
            (8, "c", "left the waiting list"),
            (9, "b", "cancelled, gave the ticket back"),
            (10, "d", "promoted: has a ticket"),
            (11, "c", "joined the waiting list at place 1"),
        ]
        assert ended.stdout.splitlines()[-1] == (
            "event 1: 2 of 2 tickets booked and 1 waiting now; 9 changes: 2 booked at once, 3"
            " joined the waiting list, 1 promoted, 1 cancelled, 1 left the waiting list."
        )

    @pytest.mark.usefixtures("sale")
    def test_a_long_history_shows_its_first_change_and_the_newest(
        self, environment: dict[str, str]
    ) -> None:
        """How many lie between is said; the summary counts all."""
        ended = onsale(environment, HISTORY, "1", "--limit", "3")
        lines = ended.stdout.splitlines()
        assert [line.split()[2] for line in lines[1:5]] == ["2", "changes", "10", "11"]
        assert lines[2] == "... 6 changes not shown: --limit shows more"
        assert "9 changes: 2 booked at once" in lines[-1]

    @pytest.mark.usefixtures("sale")
    def test_the_json_has_all_of_it(self, environment: dict[str, str]) -> None:
        """With the same words, and numbers for machines."""
        ended = onsale(environment, HISTORY, "1", "d", "--json")
        assert json.loads(ended.stdout) == {
            "event": 1,
            "user": "d",
            "name": "First night",
            "totalTickets": 2,
            "partition": 0,
            "until": {"epoch": 3, "seq": 11},
            "changes": [
                {
                    "seq": 6,
                    "epoch": 1,
                    "at": "2026-11-22T09:33:17.006Z",
                    "kind": "waiting",
                    "user": "d",
                    "position": 2,
                    "says": "joined the waiting list at place 2",
                },
                {
                    "seq": 10,
                    "epoch": 3,
                    "at": "2026-11-22T09:33:17.010Z",
                    "kind": "promoted",
                    "user": "d",
                    "position": None,
                    "says": "promoted: has a ticket",
                },
            ],
            "leftOut": 0,
            "summary": {
                "changes": 2,
                "booked": 0,
                "waiting": 1,
                "promoted": 1,
                "cancelled": 0,
                "left": 0,
                "setAside": 0,
                "status": "booked",
                "nowBooked": 2,
                "nowWaiting": 1,
            },
        }

    async def test_an_event_is_looked_for_in_its_partition(
        self, environment: dict[str, str], stores: Stores
    ) -> None:
        """Event 3 of two partitions is of partition 1."""
        sale = Sale(1, 2)
        sale.open(3, 1)
        await put_on_record(stores, sale)
        ended = onsale(environment, HISTORY, "3")
        assert ended.returncode == 0
        assert "opened with 1 ticket: First night" in ended.stdout

    @pytest.mark.usefixtures("sale")
    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (("7",), 1, "event 7 has no history: no change on record is about it"),
            (("1", "nobody"), 1, "event 1 has no history of user nobody"),
            (("0",), 2, ""),
            (("1", "--limit", "1"), 2, ""),
        ],
    )
    def test_where_there_is_no_history_one_line_says_so(
        self, environment: dict[str, str], arguments: tuple[str, ...], code: int, says: str
    ) -> None:
        """With an exit code of its own."""
        ended = onsale(environment, HISTORY, *arguments)
        assert (ended.returncode, ended.stdout) == (code, "")
        assert says in ended.stderr

    def test_a_record_that_is_away_is_exit_code_2(self, environment: dict[str, str]) -> None:
        """It cannot tell whether there is a history."""
        away = {**environment, "DATABASE_URL": "postgresql://onsale:hush@127.0.0.1:1/onsale"}
        ended = onsale(away, HISTORY, "1")
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("onsale: cannot tell: PostgreSQL: ")
