"""Columns as texts: what PostgreSQL takes apart is what was put together, row by row."""

import pytest

from service.columns import numbers, words
from service.errors import RefusedChangeError


def test_numbers_are_an_array_with_nulls() -> None:
    """As PostgreSQL writes one."""
    assert numbers([1, None, 2**63 - 1]) == "{1,NULL,9223372036854775807}"
    assert numbers([]) == "{}"


def test_words_are_lines() -> None:
    """An empty one keeps its place."""
    assert words(["a", "", "c"]) == "a\n\nc"
    assert words([]) == words([""]) == ""


@pytest.mark.parametrize("values", [["a\nb"], ["a", "b\n"], ["\n"]])
def test_a_text_of_several_lines_is_refused(values: list[str]) -> None:
    """It would move every row behind it."""
    with pytest.raises(RefusedChangeError, match="several lines"):
        words(values)
