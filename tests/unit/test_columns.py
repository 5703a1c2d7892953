"""Columns as texts: what PostgreSQL takes apart is what was put together, row by row."""

import pytest

from service.columns import numbers, one_or_numbers, one_or_words, start_or_numbers, words
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


def test_what_is_alike_in_all_rows_is_one_value() -> None:
    """Beside a column without rows, which other columns fill up; NULL and an empty text alike."""
    assert one_or_numbers([7, 7]) == (7, "{}")
    assert one_or_numbers([None, None]) == (None, "{}")
    assert one_or_words(["booked", "booked"]) == ("booked", "")
    assert one_or_words(["", ""]) == (None, "")


def test_what_differs_in_any_row_is_a_column() -> None:
    """With nothing that would stand for its NULLs."""
    assert one_or_numbers([7, 7, None]) == (None, "{7,7,NULL}")
    assert one_or_numbers([7, 8]) == (None, "{7,8}")
    assert one_or_words(["a", "", "a"]) == (None, "a\n\na")
    assert one_or_numbers([]) == start_or_numbers([]) == (None, "{}")


def test_one_text_for_all_may_not_have_several_lines_either() -> None:
    """What a column refuses, one value does."""
    with pytest.raises(RefusedChangeError, match="several lines"):
        one_or_words(["a\nb", "a\nb"])


def test_numbers_that_count_up_are_what_comes_before_the_first() -> None:
    """The place of a row, from 1, is added to it."""
    assert start_or_numbers([5, 6, 7]) == (4, "{}")
    assert start_or_numbers((1,)) == (0, "{}")


@pytest.mark.parametrize("values", [[1, 5, 3, 4], [2, 1], [1, 3], [4, 4]])
def test_numbers_that_do_not_count_up_are_a_column(values: list[int]) -> None:
    """Even where both ends are as far apart as if they did."""
    assert start_or_numbers(values) == (None, numbers(values))
