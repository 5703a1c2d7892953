"""What `onsale reconcile` prints: verdict first for machines, last for people."""

import json
from dataclasses import replace

import pytest

from service.findings import KINDS, Drift, EventFinding, PartitionFinding, Report, Verdict
from service.reconcile_report import as_json, render

CLEAN = EventFinding(event_id=1, seq=12_000, users=1_204, booked=1_000, waiting=204, in_flight=3)
GONE = replace(CLEAN, event_id=2, absent=True)
DRIFTING = replace(
    CLEAN,
    event_id=3,
    drifts=[
        Drift(3, "alice", "missing_on_record", "booked at seq 7", None),
        Drift(3, None, "counter", "available '1'", "0 available (capacity 9, sold 9)"),
    ],
)
FROZEN = replace(CLEAN, event_id=5, frozen=3)
UNSETTLED = replace(CLEAN, event_id=4, unsettled=["bob"])


def report(*events: EventFinding, reason: str = "") -> Report:
    """Return a report of one partition."""
    return Report([PartitionFinding(0, 2, 11_990, 12_000, events, reason)], 1.25)


@pytest.mark.parametrize(
    ("found", "verdict", "exit_code"),
    [
        (report(), "clean", 0),
        (report(CLEAN, GONE), "clean", 0),
        (report(CLEAN, DRIFTING), "drift", 1),
        (report(CLEAN, FROZEN), "frozen", 1),
        (report(FROZEN, UNSETTLED), "frozen", 1),
        (report(FROZEN, DRIFTING), "drift", 1),
        (report(CLEAN, UNSETTLED), "cannot_tell", 2),
        (report(CLEAN, reason="it stays closed"), "cannot_tell", 2),
        (report(DRIFTING, UNSETTLED, reason="it stays closed"), "drift", 1),
    ],
)
def test_a_drift_wins_and_the_unknown_is_never_clean(
    found: Report, verdict: Verdict, exit_code: int
) -> None:
    """The exit code says the verdict, and both outputs do."""
    assert (found.verdict, found.exit_code) == (verdict, exit_code)
    assert as_json(found)["verdict"] == verdict
    assert as_json(found)["exitCode"] == exit_code
    assert render(found).splitlines()[-1].startswith(verdict.replace("_", " ") + ": ")


def test_a_frozen_event_is_named_as_frozen() -> None:
    """With the number of its dead letters, and the command that says why."""
    text = render(report(CLEAN, FROZEN))
    assert "event 5 is frozen: 3 changes of it could not go on record" in text
    assert text.splitlines()[-1].startswith("frozen: 1 event, the others agree; ")
    assert as_json(report(FROZEN))["events"][0]["deadLetters"] == 3


def test_a_person_reads_who_and_what_and_what_it_means() -> None:
    """Seqs, events, drifts with both sides, the meaning of each word that stands there."""
    text = render(report(CLEAN, GONE, DRIFTING))
    assert text == (
        "partition  epoch  Redis at seq  record at  in flight\n"
        "        0      2        12,000     11,990         10\n"
        "\n"
        "event  at seq  users  booked  waiting  in flight  verdict\n"
        "    3  12,000  1,204   1,000      204          3  drift\n"
        "    1  12,000  1,204   1,000      204          3  clean\n"
        "    2  12,000  1,204   1,000      204          3  not in Redis\n"
        "\n"
        "event  user   drift              Redis says       the record says\n"
        "    3  alice  missing_on_record  booked at seq 7  nothing\n"
        "    3  -      counter            available '1'    0 available (capacity 9, sold 9)\n"
        "\n"
        "missing_on_record: Redis has it, the record lacks it.\n"
        "counter: a counter in Redis is not what the record comes to.\n"
        "\n"
        "not in Redis: nothing to compare; the event comes back from the record when it is asked"
        " for.\n"
        "in flight: changes that Redis had made and the writer had not put on record yet; they"
        " were taken into account.\n"
        "\n"
        "drift: 2 in 1 event; 2,408 users of 2 events compared in 1.2 s."
    )


def test_what_cannot_be_told_says_why() -> None:
    """The partition's reason, and who never stood still."""
    text = render(report(UNSETTLED, reason="it stays closed: told so"))
    assert "partition 0 cannot be compared: it stays closed: told so." in text
    assert "event 4: 1 user changed in every pass" in text
    assert "bob" in text


def test_the_table_is_bounded_and_the_json_is_whole() -> None:
    """A hundred drifts and a hundred events are shown; how many more there are is said."""
    drifts = [Drift(1, f"u{number}", "differs", "a", "b") for number in range(250)]
    events = [replace(CLEAN, event_id=number, drifts=drifts[:1]) for number in range(2, 132)]
    found = report(replace(CLEAN, drifts=drifts), *events)
    lines = render(found).splitlines()
    assert len(lines) < 220
    assert "... and 280 more drifts: --json has all." in lines
    assert "... and 31 more events: --json has all." in lines
    whole = json.loads(json.dumps(as_json(found)))
    assert (len(whole["drifts"]), len(whole["events"])) == (380, 131)


def test_the_json_has_every_field() -> None:
    """In camel case, as everywhere; nothing is left out where it is empty."""
    found = as_json(report(DRIFTING))
    assert found["partitions"] == [
        {
            "partition": 0,
            "epoch": 2,
            "recorded": 11_990,
            "last": 12_000,
            "inFlight": 10,
            "reason": None,
        }
    ]
    assert found["events"] == [
        {
            "event": 3,
            "verdict": "drift",
            "seq": 12_000,
            "users": 1_204,
            "booked": 1_000,
            "waiting": 204,
            "inFlight": 3,
            "absent": False,
            "deadLetters": 0,
            "unsettled": [],
        }
    ]
    assert found["drifts"][0] == {
        "event": 3,
        "user": "alice",
        "kind": "missing_on_record",
        "redis": "booked at seq 7",
        "record": None,
    }


def test_every_kind_has_its_meaning() -> None:
    """What is printed under a table of drifts."""
    for kind, says in KINDS.items():
        text = render(report(replace(CLEAN, drifts=[Drift(1, "a", kind, None, None)])))
        assert f"\n{kind}: {says}.\n" in text
