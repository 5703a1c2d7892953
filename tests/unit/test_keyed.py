"""What is kept of changes under an Idempotency-Key, and how the header is read."""

import pytest
from starlette.requests import Request

from service.errors import Problem
from service.idempotency import keyed_by
from service.keyed import KEPT_MAX, Keyed, digest_of, kept, keyed_of, keys_in

D = "0123456789abcdef"


def request(*values: str) -> Request:
    """Make a request with these headers."""
    headers = [(b"idempotency-key", value.encode("latin-1")) for value in values]
    return Request({"type": "http", "headers": headers})


@pytest.mark.parametrize(
    "value", ["a", "A.b_c:d-9", "x" * 64, '"a"', f'"{"x" * 64}"', " a ", "-", "0"]
)
def test_a_key_is_read_bare_or_in_quotes(value: str) -> None:
    """Both forms are one key."""
    key, _, digest = keyed_by(request(value), "cancel").partition("/")
    assert key == value.strip().strip('"')
    assert digest == digest_of("cancel")


def test_a_request_without_the_header_has_no_key() -> None:
    """The header is optional."""
    assert keyed_by(request(), "cancel") == ""


@pytest.mark.parametrize(
    "value",
    [
        *("", '""', '"', "x" * 65, f'"{"x" * 65}"', "a b", "a/b", "a,b", '"a', 'a"', '""a""'),
        *("ä", "a\tb", "a;b=c", "'a'", '"a";b', "a\x00", "\u00b2"),
    ],
)
def test_what_cannot_be_a_key_is_refused(value: str) -> None:
    """422, and the header is named."""
    with pytest.raises(Problem) as caught:
        keyed_by(request(value), "cancel")
    assert caught.value.code == "invalid_request"
    assert [error["header"] for error in caught.value.errors] == ["Idempotency-Key"]


def test_two_headers_must_say_the_same() -> None:
    """One that was doubled on the way is one; two that differ are refused."""
    assert keyed_by(request("a", '"a"'), "cancel") == keyed_by(request("a"), "cancel")
    with pytest.raises(Problem) as caught:
        keyed_by(request("a", "b"), "cancel")
    assert caught.value.code == "invalid_request"


def test_a_digest_tells_operation_and_fields_apart() -> None:
    """And is always the same for the same."""
    digests = [digest_of("book", quantity=1), digest_of("book", quantity=2), digest_of("cancel")]
    assert len(set(digests)) == 3
    assert digests == [digest_of("book", quantity=1), digest_of("book", quantity=2), *digests[2:]]
    assert all(len(digest) == 16 for digest in digests)


def test_the_last_eight_are_kept() -> None:
    """Oldest first; the ninth drops the oldest."""
    held = ""
    for seq in range(1, 12):
        held = kept(held, Keyed(f"k{seq}", D, "booked"), seq)
    assert list(keys_in(held).values()) == list(range(12 - KEPT_MAX, 12))
    assert held.startswith(f"k4/{D}/booked/4 k5/")


def test_details_are_read_as_scripts_write_them() -> None:
    """A cancellation may say that its ticket went on; then that is its outcome."""
    plain = f'{{"key":"a","digest":"{D}"}}'
    passed_on = f'{{"key":"a","digest":"{D}","reassigned":true}}'
    assert keyed_of("booked", plain) == Keyed("a", D, "booked")
    assert keyed_of("cancelled", plain) == Keyed("a", D, "cancelled")
    assert keyed_of("cancelled", passed_on) == Keyed("a", D, "reassigned")
    assert keyed_of("left", passed_on) is None
    assert keyed_of("promoted", plain) is None


@pytest.mark.parametrize(
    "details",
    [
        "",
        "{}",
        '{"key":"a"}',
        f'{{"digest":"{D}","key":"a"}}',
        f'{{"key":"a b","digest":"{D}"}}',
        f'{{"key":"a", "digest":"{D}"}}',
        f'{{"key":"a","digest":"{D}","reassigned":false}}',
    ],
)
def test_other_details_are_nobodys(details: str) -> None:
    """There is one way of writing them, so that the chain covers what is read."""
    assert keyed_of("cancelled", details) is None
