"""One service, and two crowds that are at it at the same time."""

from collections.abc import Iterator

import pytest

from tests.loadtests.commands import Crowds, demo, end, locust
from tests.running import Running


@pytest.fixture(scope="session")
def crowds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowds]:
    """Send both to a service of their own, and wait until they have gone; it stays up."""
    out = tmp_path_factory.mktemp("crowds")
    service = Running(out / "data")
    try:
        service.start()
        first, second = locust(service.data, out), demo(service.data, 30)
        yield Crowds(service, out, end(first), end(second))
    finally:
        service.stop()
