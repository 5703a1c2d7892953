"""`Prefer` as clients send it, well and badly."""

import pytest
from starlette.datastructures import Headers

from service.preferences import preferred


def headers(*values: str) -> Headers:
    """Return a request's headers with so many `Prefer`."""
    return Headers(raw=[(b"prefer", value.encode("latin-1")) for value in values])


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (["durability=recorded"], "recorded"),
        (["DURABILITY=recorded"], "recorded"),
        (['Durability="recorded"'], "recorded"),
        (['durability="re\\corded"'], "recorded"),
        (["durability = recorded"], "recorded"),
        (["  durability=recorded  "], "recorded"),
        (["durability=recorded; wait=5"], "recorded"),
        (['durability=recorded;a="x, durability=fsync";b'], "recorded"),
        (["respond-async, durability=recorded, wait=10"], "recorded"),
        (["respond-async", "durability=recorded"], "recorded"),
        (['foo="a, durability=fsync", durability=recorded'], "recorded"),
        (['foo="a\\", durability=fsync", durability=recorded'], "recorded"),
        (["foo; durability=fsync, durability=recorded"], "recorded"),
        ([",, ,durability=recorded,"], "recorded"),
        (["b@d, durability=recorded"], "recorded"),
        (["durability=fsync, durability=recorded"], "fsync"),
        (["durability=fsync", "durability=recorded"], "fsync"),
        (["durability, durability=recorded"], ""),
        (["durability="], ""),
        (['durability=""'], ""),
        (["durability"], ""),
        (["durability=Recorded"], "Recorded"),
        (["durability=gold"], "gold"),
        (["durability recorded"], ""),
        (["durabilityy=recorded"], ""),
        (["x-durability=recorded"], ""),
        (["wait=5"], ""),
        ([""], ""),
        (["é"], ""),
        (['"'], ""),
        ([], ""),
        (["x" * 1_000 + ", durability=recorded"], ""),
    ],
)
def test_a_preference_is_read_or_ignored(sent: list[str], value: str) -> None:
    """RFC 7240: names without case, the first of several, parameters and strangers left aside."""
    assert preferred(headers(*sent), "durability") == value
