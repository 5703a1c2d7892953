"""A deployment for each point, and which points there are.

ONSALE_TEST_POINTS says how many random points each scenario has; ONSALE_TEST_SEED takes one of them
alone. What a point does follows from its seed; when the processes do their part does not.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import Deployment
from tests.servers import Servers

POINTS = int(os.environ.get("ONSALE_TEST_POINTS", "1"))
SEED = os.environ.get("ONSALE_TEST_SEED")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that asks for a seed one for each point."""
    if "seed" in metafunc.fixturenames:
        seeds = [int(SEED)] if SEED else range(POINTS)
        metafunc.parametrize("seed", seeds, ids="seed{}".format)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a migrated, empty PostgreSQL that was stopped."""
    data = tmp_path_factory.mktemp("template") / "data"
    servers = Servers(data)
    try:
        servers.start()
        servers.migrate(servers.postgresql_url)
    finally:
        servers.stop()
    return data / "postgresql"


@pytest.fixture
def deployment(tmp_path: Path, template: Path, seed: int) -> Iterator[Deployment]:
    """A service that sells."""
    print(f"once more: make restores SEED={seed}")  # noqa: T201  # shown where a test fails
    running = Deployment(tmp_path, template)
    try:
        running.start()
        yield running
    finally:
        running.stop()
