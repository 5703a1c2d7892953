"""Which sales there are, and where each finds its own place."""

import pytest

from tests.restores.conftest import template
from tests.torture.faults import FAULTS, seeds

__all__ = ["template"]


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark that says which fault a test does."""
    config.addinivalue_line("markers", "torture(name): one sale for each seed of this fault")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test one sale for each seed of its fault."""
    mark = metafunc.definition.get_closest_marker("torture")
    if mark is not None and "seed" in metafunc.fixturenames:
        (name,) = mark.args
        assert name in FAULTS
        metafunc.parametrize("seed", [*seeds(name)], ids="seed{}".format)
