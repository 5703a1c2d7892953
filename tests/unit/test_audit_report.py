"""What `onsale audit` and `onsale history` print, and the heads that are kept."""

import json
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import history_report, kept_heads
from service.audit_report import as_json, render
from service.errors import ConfigurationError
from service.history import Happening, Told
from service.lineage import Position
from service.outbox import Change
from service.violations import (
    RULES,
    AuditedEvent,
    AuditedPartition,
    AuditReport,
    Head,
    Violation,
    Violations,
)

HEAD = Head(0, 2, 12_000, bytes(range(32)))
PARTITION = AuditedPartition(HEAD, 2, 0)
EVENT = AuditedEvent(7, 0, 1_000, 11_990, 4_000, 999, 1_000, 20)
WRONG = Violation("hash", 0, 5, 7, "alice", "its hash does not follow")
LOST = Violation("bookings", 0, None, 7, "bob", "no change explains it")


def report(*violations: Violation, partition: AuditedPartition = PARTITION) -> AuditReport:
    """Return a report of one partition and one event."""
    found = Violations()
    for violation in violations:
        found.add(violation)
    return AuditReport([partition], [EVENT], found, 3, 1.25)


def test_dead_letters_are_told_and_not_judged() -> None:
    """How many, and who names them; the record holds all the same."""
    text = render(report(partition=AuditedPartition(HEAD, 2, 0, 5)))
    assert "letters: 5 changes that an operator has set aside" in text
    assert text.splitlines()[-1].startswith("holds: ")
    assert (
        as_json(report(partition=AuditedPartition(HEAD, 2, 0, 5)))["partitions"][0]["deadLetters"]
        == 5
    )


def test_a_person_reads_what_was_violated_where_and_what_it_means() -> None:
    """Partitions, events, violations, the meaning of each rule that stands there, the verdict."""
    assert render(report(WRONG, LOST)) == (
        "partition  epoch     seq  epochs  orphans  letters  hash\n"
        "        0      2  12,000       2        0        0  0001020304050607\n"
        "\n"
        "event  changes  users  tickets  booked   most  waiting  violations\n"
        "    7   11,990  4,000    1,000     999  1,000       20           2\n"
        "\n"
        "partition  seq  event  user   rule      violation\n"
        "        0    5      7  alice  hash      its hash does not follow\n"
        "        0    -      7  bob    bookings  no change explains it\n"
        "\n"
        f"hash: {RULES['hash']} (1).\n"
        f"bookings: {RULES['bookings']} (1).\n"
        "\n"
        "violated: 2 violations; 12,000 changes and 3 kept heads of 1 partition checked, 1 event"
        " replayed, in 1.2 s."
    )


def test_what_holds_says_so_last() -> None:
    """Orphans are told, and change nothing about it."""
    text = render(report(partition=AuditedPartition(HEAD, 2, 4)))
    assert text.splitlines()[-1].startswith("holds: the record proves")
    assert "orphans: 4 changes that Redis had made and that no lineage leads to" in text


def test_the_table_is_bounded_and_the_counts_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred are shown; the JSON has what was kept, and how many there were."""
    monkeypatch.setattr(Violations, "KEPT_MAX", 200)
    found = report(*[WRONG] * 250)
    lines = render(found).splitlines()
    assert sum("does not follow" in line for line in lines) == 100
    assert "... and 150 more violations: --json has all." in lines
    whole = json.loads(json.dumps(as_json(found)))
    assert (len(whole["violations"]), whole["violationsByRule"]) == (200, {"hash": 250})
    assert whole["events"][0]["violations"] == 250


def test_the_json_has_every_field() -> None:
    """In camel case, as everywhere; nothing is left out where it is empty."""
    assert as_json(report(LOST)) == {
        "verdict": "violated",
        "exitCode": 1,
        "seconds": 1.25,
        "keptHeads": 3,
        "partitions": [
            {
                "partition": 0,
                "epoch": 2,
                "seq": 12_000,
                "hash": HEAD.hash.hex(),
                "epochs": 2,
                "orphans": 0,
                "deadLetters": 0,
            }
        ],
        "events": [
            {
                "event": 7,
                "partition": 0,
                "totalTickets": 1_000,
                "changes": 11_990,
                "users": 4_000,
                "booked": 999,
                "bookedMost": 1_000,
                "waiting": 20,
                "violations": 1,
            }
        ],
        "violationsByRule": {"bookings": 1},
        "violations": [
            {
                "rule": "bookings",
                "partition": 0,
                "seq": None,
                "event": 7,
                "user": "bob",
                "says": "no change explains it",
            }
        ],
    }


def test_what_was_forged_moves_no_cursor() -> None:
    """A terminal gets no control characters, and no more than fits; JSON escapes by itself."""
    text = render(report(WRONG._replace(user_id="\x1b[2J", says="x" * 5_000)))
    assert "\x1b" not in text
    assert "'\\x1b[2J'" in text
    assert max(map(len, text.splitlines())) < 300


@given(
    st.lists(
        st.builds(
            Head,
            st.integers(0, 99),
            st.integers(1, 10**18 - 1),
            st.integers(1, 10**18 - 1),
            st.binary(min_size=32, max_size=32),
        ),
        min_size=1,
    )
)
def test_heads_come_back_as_they_were_printed(heads: Iterable[Head]) -> None:
    """Printed into one file, time after time."""
    text = "\n".join([kept_heads.as_lines(heads), "", kept_heads.as_lines(heads)])
    assert kept_heads.parse(text) == [*heads, *heads]


def test_a_partition_without_a_row_has_no_head() -> None:
    """There is nothing that it could vouch for."""
    assert kept_heads.as_lines([Head(0, 0, 0, b"")]) == "# partition epoch seq sha256"


@pytest.mark.parametrize(
    "line",
    ["0 1 8", "0 1 8 00", f"0 1 8 {'0' * 64} 9", f"-1 1 8 {'0' * 64}", f"0 1 8 {'G' * 64}", "x"],
)
def test_a_line_that_is_no_head_is_refused(line: str) -> None:
    """By its number; a proof that was damaged is none."""
    good = kept_heads.as_lines([HEAD])
    with pytest.raises(ConfigurationError, match="line 3 of the kept heads is no head"):
        kept_heads.parse(f"{good}\n{line}\n")


def test_a_history_that_was_forged_is_printed_all_the_same() -> None:
    """A time that no clock says, a kind that nobody knows, a user that could move a cursor."""
    change = Change(3, 1, 2**63 - 1, "eaten", 7, "\x1b[2J", None)
    told = Told(
        event_id=7,
        user_id=None,
        partition=0,
        until=Position(1, 3),
        name="N",
        capacity=5,
        sold=0,
        waiting=0,
        status=None,
        number=1,
        kinds=Counter(["eaten"]),
        shown=(Happening(change, "eaten"),),
    )
    assert history_report.render(told).splitlines() == [
        "time              epoch  seq  user",
        "beyond all times      1    3  '\\x1b[2J'  eaten",
        "",
        "event 7: 0 of 5 tickets booked and 0 waiting now; 1 change.",
    ]
    assert history_report.as_json(told)["changes"][0]["at"] == "beyond all times"
