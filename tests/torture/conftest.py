"""Which sales there are, and where each begins."""

import pytest

from tests.restores.conftest import template
from tests.torture.chosen import pytest_collection_modifyitems, pytest_configure, seeds_for

__all__ = ["pytest_collection_modifyitems", "pytest_configure", "template"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test one sale for each seed of its fault."""
    if "seed" in metafunc.fixturenames:
        seeds = seeds_for(metafunc.definition)
        metafunc.parametrize("seed", seeds, ids="seed{}".format)
