"""A deployment for each point, and which points there are.

ONSALE_TEST_POINTS says how many random points each scenario has; ONSALE_TEST_SEED takes one of them
alone. What a point does follows from its seed; when the processes do their part does not. Each
point's verdict is noted for the fault suite's report, where one is written.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.deployment import Deployment
from tests.servers import Servers
from tests.torture import scores
from tests.torture.chosen import (
    fault_of,
    pytest_collection_modifyitems,
    pytest_configure,
    seeds_for,
)
from tests.torture.scores import Score

__all__ = ["pytest_collection_modifyitems", "pytest_configure"]

POINTS = int(os.environ.get("ONSALE_TEST_POINTS", "1"))
SEED = os.environ.get("ONSALE_TEST_SEED")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test that asks for a seed one for each point."""
    if "seed" in metafunc.fixturenames:
        points = [int(SEED)] if SEED else [*range(POINTS)]
        seeds = seeds_for(metafunc.definition, points)
        metafunc.parametrize("seed", seeds, ids="seed{}".format)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what came of a point."""
    report = yield
    if report.when == "call" and (fault := fault_of(item)):
        wrong = [report.longreprtext.splitlines()[-1]] if report.failed else []
        asked = item.funcargs  # type: ignore[attr-defined]  # a test of a function has them
        answered = asked["deployment"].answered
        scores.note(Score(fault, asked["seed"], 1, answered, wrong))
    return report


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
