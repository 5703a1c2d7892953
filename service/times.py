"""Times of Redis's clock, as PostgreSQL stores them. Data, never an order: that is seq."""

from datetime import UTC, datetime, timedelta

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


def from_microseconds(at: int) -> datetime:
    """Return a time of Redis's clock as PostgreSQL stores it, to the microsecond."""
    return _EPOCH_START + timedelta(microseconds=at)


def to_microseconds(at: datetime) -> int:
    """Return a stored time as Redis's clock counts it."""
    return (at - _EPOCH_START) // timedelta(microseconds=1)
