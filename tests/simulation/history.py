"""What clients asked and were told: the history that is held against the record."""

from dataclasses import dataclass, field

from service.lineage import Position
from service.results import Booking, Cancellation, EventState, OpenedEvent, UserState

Given = Booking | Cancellation | EventState | UserState | OpenedEvent


@dataclass(slots=True)
class Attempt:
    """One request. `result` is None where no answer came, a text for a problem's code."""

    worker: str
    invoked: int
    ended: int = 0
    result: Given | str | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether it may have had an effect of which nobody was told."""
        return self.result is None or self.result == "outcome_unknown"


@dataclass(slots=True)
class Operation:
    """What somebody wants done once; it is asked for until the answer is plain."""

    kind: str
    event_id: int
    user: str
    key: str = ""
    awaited: bool = False
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def answer(self) -> Given | str | None:
        """What it came to, None as long as that is open."""
        return self.attempts[-1].result if self.attempts else None

    @property
    def named(self) -> Position | None:
        """The change that the answer names."""
        answer = self.answer
        return answer.at if isinstance(answer, Booking | Cancellation) else None

    @property
    def is_fresh(self) -> bool:
        """Whether the last request itself made the change that its answer names."""
        answer = self.answer
        return isinstance(answer, Booking | Cancellation) and answer.is_fresh
