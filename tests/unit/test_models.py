"""The domain of what may be asked, at its edges."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.models import (
    ID_MAX,
    BookRequest,
    CancelRequest,
    InitializeRequest,
    Request,
    parse_event_id,
    parse_user_id,
)

USER_ID_CHARACTERS = "ABCXYZabcxyz0189._~@:+|=-"


def read(model: type[Request], **fields: Any) -> Any:
    """Read a body of these fields."""
    return model.model_validate_json(json.dumps(fields))


def refused(model: type[Request], **fields: Any) -> list[str]:
    """Return the fields for which a body is refused."""
    with pytest.raises(ValidationError) as caught:
        read(model, **fields)
    return [str(e["loc"][0]) for e in caught.value.errors()]


@pytest.mark.parametrize("event_id", [1, 2, 2**31, 2**53 - 1])
def test_event_ids_are_positive_integers_below_2_to_the_53(event_id: int) -> None:
    """What is taken in a body is taken in a path."""
    assert read(BookRequest, eventId=event_id, userId=1).eventId == event_id
    assert parse_event_id(str(event_id)) == event_id


@given(st.integers())
def test_no_other_integer_is_an_event_id(number: int) -> None:
    """Body and path agree on every integer."""
    if 1 <= number <= ID_MAX:
        assert parse_event_id(str(number)) == number
    else:
        assert parse_event_id(str(number)) is None
        assert refused(CancelRequest, eventId=number, userId=1) == ["eventId"]


@given(st.text())
def test_no_other_text_is_an_event_id(text: str) -> None:
    """A path names an event in one way only: what is parsed prints as it was."""
    parsed = parse_event_id(text)
    assert parsed is None or str(parsed) == text


@given(st.integers(0, ID_MAX))
def test_a_users_number_is_its_digits(number: int) -> None:
    """1 and "1" are one user, in a body and in a path."""
    assert read(BookRequest, eventId=1, userId=number).userId == str(number)
    assert read(BookRequest, eventId=1, userId=str(number)).userId == str(number)
    assert parse_user_id(str(number)) == str(number)


@given(st.text(USER_ID_CHARACTERS, min_size=1, max_size=64).filter(lambda t: t not in (".", "..")))
def test_a_users_text_is_kept(text: str) -> None:
    """1 to 64 of the listed characters come through unchanged."""
    assert read(CancelRequest, eventId=1, userId=text).userId == text
    assert parse_user_id(text) == text


@given(st.text(max_size=70))
def test_no_other_text_is_a_user_id(text: str) -> None:
    """Body and path agree on every text, and what they take is printable ASCII without a brace."""
    taken = parse_user_id(text)
    if taken is None:
        assert refused(BookRequest, eventId=1, userId=text) == ["userId"]
    else:
        assert taken == text == read(BookRequest, eventId=1, userId=text).userId
        assert taken.isascii()
        assert taken.isprintable()
        assert not set(taken) & set("{}/\\ \"'%?#")


@pytest.mark.parametrize("user_id", [-1, 2**53, 1.0, 1.5, True, False, None, [], {}, "", "a" * 65])
def test_what_is_no_user_id_is_refused(user_id: object) -> None:
    """A user id is a non-negative integer or a text, and nothing that becomes one."""
    assert refused(BookRequest, eventId=1, userId=user_id) == ["userId"]


@pytest.mark.parametrize("quantity", [0, 2, -1, 1.0, True, False, None, "1", [1]])
def test_the_quantity_is_one(quantity: object) -> None:
    """The integer 1 and nothing equal to it."""
    assert refused(BookRequest, eventId=1, userId=1, quantity=quantity) == ["quantity"]
    assert read(BookRequest, eventId=1, userId=1, quantity=1).quantity == 1
    assert read(BookRequest, eventId=1, userId=1).quantity == 1


@given(st.text(min_size=1, max_size=200))
def test_a_name_is_any_text_that_postgresql_can_hold(name: str) -> None:
    """1 to 200 characters, without U+0000."""
    if "\x00" in name:
        assert refused(InitializeRequest, name=name, totalTickets=1) == ["name"]
    else:
        assert read(InitializeRequest, name=name, totalTickets=1).name == name


def test_a_names_length_is_in_characters() -> None:
    """Not in bytes, and not in UTF-16 units."""
    assert read(InitializeRequest, name="🎟" * 200, totalTickets=1).name == "🎟" * 200
    assert refused(InitializeRequest, name="🎟" * 201, totalTickets=1) == ["name"]
    assert refused(InitializeRequest, name="", totalTickets=1) == ["name"]


@given(st.integers())
def test_tickets_are_one_to_ten_million(tickets: int) -> None:
    """Every other number is refused."""
    if 1 <= tickets <= 10_000_000:
        assert read(InitializeRequest, name="a", totalTickets=tickets).totalTickets == tickets
    else:
        assert refused(InitializeRequest, name="a", totalTickets=tickets) == ["totalTickets"]


@pytest.mark.parametrize("model", [BookRequest, CancelRequest, InitializeRequest])
def test_all_mistakes_are_found_at_once(model: type[Request]) -> None:
    """Missing and unknown fields are told together."""
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    assert set(refused(model, vip=1, x=2)) == required | {"vip", "x"}


def test_a_request_does_not_change() -> None:
    """What was validated stays as it was."""
    asked = read(BookRequest, eventId=1, userId=1)
    with pytest.raises(ValidationError):
        asked.eventId = 0
