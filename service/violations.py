"""What an audit of the record holds against it: the rules, each violation, the whole. Pure.

A violation is named by its journal row where there is one, and by event and user where there are.
Two verdicts: `holds` and `violated`. What cannot be read has none: the audit cannot tell.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Verdict = Literal["holds", "violated"]

EXIT_CODES: Mapping[Verdict, int] = {"holds": 0, "violated": 1}

RULES: Mapping[str, str] = {
    "gap": "the seqs of a partition are not 1, 2, 3 and so on: rows were removed or added",
    "hash": "this row, or the hash of the one before, is not what it was when it was written:"
    " edited by hand",
    "cursor": "journal and cursor do not end at the same row with the same hash",
    "kept_head": "a head that was kept is not in the chain: the journal was written anew since, or"
    " went back",
    "epoch": "the journal and the table epochs disagree about where an epoch begins or ends",
    "dead_letter": "journal and dead_letters disagree about what of a frozen event was set aside",
    "unreadable": "a row that no script could have written",
    "oversold": "more tickets sold than there are",
    "unlawful": "a change that the state before it does not allow",
    "out_of_order": "somebody was overtaken",
    "bookings": "a row of the table bookings is not what the journal comes to",
    "events": "a row of the table events is not what the journal comes to",
}
"""Every rule, and what its violation means to an operator."""


class Violation(NamedTuple):
    """One violation. `seq` is that of the journal row; None where there is no row to name."""

    rule: str
    partition: int
    seq: int | None
    event_id: int | None
    user_id: str | None
    says: str


class Violations:
    """All violations: the first of them whole, the rest counted.

    A journal that is all wrong has a violation per row; what is kept of them is bounded.
    """

    KEPT_MAX = 10_000

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self.kept: list[Violation] = []
        self.by_rule: Counter[str] = Counter()
        self.by_event: Counter[int] = Counter()

    def add(self, violation: Violation) -> None:
        """Take one more."""
        self.by_rule[violation.rule] += 1
        if violation.event_id is not None:
            self.by_event[violation.event_id] += 1
        if len(self.kept) < self.KEPT_MAX:
            self.kept.append(violation)

    @property
    def number(self) -> int:
        """How many there are, those included that were not kept."""
        return self.by_rule.total()


class Head(NamedTuple):
    """The end of a partition's journal at some time: the hash vouches for every row up to it."""

    partition: int
    epoch: int
    seq: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class AuditedPartition:
    """One partition. `head` is its last row, seq 0 before the first.

    `orphans` and `dead_letters` are told, not judged; `epochs` counts those that have changes or
    will have.
    """

    head: Head
    epochs: int
    orphans: int
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class AuditedEvent:
    """One event as the journal has it. `most_sold` is the most that were sold at any step."""

    event_id: int
    partition: int
    capacity: int
    changes: int
    users: int
    sold: int
    most_sold: int
    waiting: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What one run of `onsale audit` found. `seconds` it took, `kept_heads` it was given."""

    partitions: Sequence[AuditedPartition]
    events: Sequence[AuditedEvent]
    violations: Violations = field(default_factory=Violations)
    kept_heads: int = 0
    seconds: float = 0.0

    @property
    def changes(self) -> int:
        """How many changes are on record, of all partitions."""
        return sum(partition.head.seq for partition in self.partitions)

    @property
    def verdict(self) -> Verdict:
        """What all of it comes to."""
        return "violated" if self.violations.number else "holds"

    @property
    def exit_code(self) -> int:
        """0 holds, 1 violated; 2 is for what could not be read."""
        return EXIT_CODES[self.verdict]
