"""How many connections a process may hold."""

import resource

import pytest
from structlog.testing import capture_logs

from service.listener import allow_connections


@pytest.mark.parametrize(
    ("hard", "warns"), [(3_000, True), (20_000, False), (resource.RLIM_INFINITY, False)]
)
def test_the_soft_limit_is_raised_and_a_low_hard_one_is_told(
    monkeypatch: pytest.MonkeyPatch, hard: int, *, warns: bool
) -> None:
    """As far as the system lets it; an operator reads what it lacks for ten thousand."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_024, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: found.append(limits))
    with capture_logs() as lines:
        allow_connections()
    assert found == [(hard, hard)]
    assert [line["event"] for line in lines] == ["few connections can be held"] * warns
