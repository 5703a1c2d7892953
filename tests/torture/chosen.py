"""How pytest finds the sales of a run: by the mark that says which fault a test does."""

from collections.abc import Sequence

import pytest

from tests.torture import faults

LIMIT_S = 400


def fault_of(item: pytest.Item) -> str:
    """Return the fault that a test does, empty for none."""
    mark = item.get_closest_marker("torture")
    return str(mark.args[0]) if mark else ""


def is_control(item: pytest.Item) -> bool:
    """Whether a test is a fault's negative control; they have no seed."""
    return "seed" not in getattr(item, "fixturenames", ())


def seeds_for(definition: pytest.Item, otherwise: Sequence[int] = ()) -> Sequence[int]:
    """Return a seed for each sale; `otherwise` where this run was given no counts."""
    if not faults.ASKED_FOR and otherwise:
        return otherwise
    return [*faults.seeds(fault_of(definition))]


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    says = "torture(name): one sale for each seed of this fault, or its negative control"
    config.addinivalue_line("markers", says)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a run was not asked for, and give a sale more time than a test has.

    Where no counts were given nothing is left out: `make test` takes a point of each restore.
    """
    chosen = faults.chosen() if faults.ASKED_FOR else {*faults.FAULTS}
    out = []
    for item in items:
        name = fault_of(item)
        if not name:
            continue
        left_out = is_control(item) and not faults.WITH_CONTROLS and faults.ASKED_FOR
        if name not in chosen or left_out:
            out.append(item)
        elif item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S))
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
