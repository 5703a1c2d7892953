"""One suite, two backends: fakeredis for speed, and the real Valkey, which decides."""

import pytest

from tests.lua.harness import Backend, Partition


@pytest.fixture(params=["fakeredis", "valkey"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """A server without keys and without scripts."""
    if request.param == "fakeredis":
        return Backend.fake()
    return Backend.valkey(request.getfixturevalue("empty_valkey"))


@pytest.fixture
def partition(backend: Backend) -> Partition:
    """A partition that serves in epoch 1; its last change is `epoch_began`, seq 1."""
    return Partition(backend).open()
