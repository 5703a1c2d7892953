"""Suspension: why one worker takes no calls for now, and how much it has promised meanwhile.

One for all partitions of a worker, since what a store is set to holds for all of them. While there
is a reason, calls are refused before they reach a store, and no answer names a level. Asks nothing
and decides nothing: `store_watch` suspends and resumes.
"""

from collections.abc import Mapping


class Suspension:
    """Findings about the stores, and the answers that relied on them.

    `why`: the reason for which calls are refused, empty while none is. `away`: the reason for
    which the worker is not ready, though calls are taken. `answered` counts the answers that named
    a level, `recorded` those of them that named this one.
    """

    __slots__ = ("_because", "answered", "away", "recorded", "why")

    def __init__(self) -> None:
        """Begin without findings: the handshake has looked."""
        self._because: dict[str, str] = {}
        self.why = ""
        self.away = ""
        self.answered = 0
        self.recorded = 0

    @property
    def because(self) -> Mapping[str, str]:
        """Findings by store."""
        return self._because

    def suspend(self, store: str, why: str) -> None:
        """Refuse calls from here on."""
        self._because[store] = why
        self.why = "; ".join(self._because.values())

    def resume(self, store: str) -> None:
        """Take calls again, as far as this store is concerned."""
        self._because.pop(store, None)
        self.why = "; ".join(self._because.values())
