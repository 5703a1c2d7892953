"""The file of answers: what a crowd was told, one JSON object a line. The codec and nothing else.

First line: `{"sale": {event, totalTickets, people, address}}`. Then a line for each request, in the
order of the answers: `operation` (look, book, poll, cancel), `user`, `status` (0: no answer came,
and what it did is not known), `sent` and `answered` in seconds of one monotonic clock, and those of
the answer's fields that KEPT lists. Last line: `{"end": {lines, people, gaveUp}}`; a file without
it was cut off.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from service.crowd import Answer, Operation

KEPT = (
    "seq",
    "state",
    "position",
    "reassigned",
    "durability",
    "remainingTickets",
    "waitingListCount",
    "code",
)
"""`state` is the body's `status`."""

BUFFER_BYTES = 1 << 20
"""The load never waits for the disk: some 6,000 lines go out in one write of the page cache."""


class UnreadableAnswersError(Exception):
    """A file that no load test could have written."""


@dataclass(frozen=True, slots=True)
class Sale:
    """Whose answers these are."""

    event: int
    tickets: int
    people: int
    address: str


@dataclass(frozen=True, slots=True)
class Told:
    """One line: what somebody asked, and was answered. Absent fields are None."""

    operation: Operation
    user: str
    status: int
    sent: float
    answered: float
    seq: int | None = None
    state: str | None = None
    position: int | None = None
    reassigned: bool | None = None
    durability: str | None = None
    remaining: int | None = None
    waiting: int | None = None
    code: str | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether the request may have had an effect that nobody was told of."""
        return self.status in (0, 500) or self.code == "outcome_unknown"


@dataclass(frozen=True, slots=True)
class Answers:
    """A whole file. The last three are what its last line says, None without one."""

    sale: Sale
    told: tuple[Told, ...]
    lines: int | None
    people: int | None
    gave_up: int | None


class AnswersFile:
    """Writes one file, through a buffer."""

    def __init__(self, path: Path, sale: Sale) -> None:
        """Begin the file; what was there is gone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: TextIO = path.open("w", buffering=BUFFER_BYTES, encoding="utf-8")
        self.lines = 0
        self._write(
            {
                "sale": {
                    "event": sale.event,
                    "totalTickets": sale.tickets,
                    "people": sale.people,
                    "address": sale.address,
                }
            }
        )

    def note(self, operation: Operation, user: str, answer: Answer) -> None:
        """Write one line."""
        body = {**answer.body, "state": answer.body.get("status")}
        line: dict[str, Any] = {
            "operation": operation,
            "user": user,
            "status": answer.status,
            "sent": round(answer.sent, 6),
            "answered": round(answer.answered, 6),
        }
        # In a problem `status` is the number once more.
        line |= {
            name: body[name]
            for name in KEPT
            if body.get(name) is not None and not (name == "state" and "code" in body)
        }
        self.lines += 1
        self._write(line)

    def end(self, *, people: int, gave_up: int) -> None:
        """Write the last line, and close."""
        self._write({"end": {"lines": self.lines, "people": people, "gaveUp": gave_up}})
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


def read_answers(path: Path) -> Answers:
    """Read a file. Raises UnreadableAnswersError and OSError."""
    sale: Sale | None = None
    told: list[Told] = []
    end: dict[str, Any] = {}
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                if "sale" in line:
                    sale = _sale(line["sale"])
                elif "end" in line:
                    end = line["end"]
                else:
                    told.append(_told(line))
            except (ValueError, KeyError, TypeError) as error:
                msg = f"{path}, line {number}: {error!r}"
                raise UnreadableAnswersError(msg) from None
    if sale is None:
        msg = f"{path} does not say whose answers these are"
        raise UnreadableAnswersError(msg)
    return Answers(sale, tuple(told), end.get("lines"), end.get("people"), end.get("gaveUp"))


def _sale(found: Mapping[str, Any]) -> Sale:
    return Sale(
        event=int(found["event"]),
        tickets=int(found["totalTickets"]),
        people=int(found["people"]),
        address=str(found["address"]),
    )


def _told(line: Mapping[str, Any]) -> Told:
    return Told(
        operation=line["operation"],
        user=str(line["user"]),
        status=int(line["status"]),
        sent=float(line["sent"]),
        answered=float(line["answered"]),
        seq=line.get("seq"),
        state=line.get("state"),
        position=line.get("position"),
        reassigned=line.get("reassigned"),
        durability=line.get("durability"),
        remaining=line.get("remainingTickets"),
        waiting=line.get("waitingListCount"),
        code=line.get("code"),
    )
