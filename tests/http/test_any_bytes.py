"""Whatever bytes come as a body, the answer is one of the known refusals, never a failure."""

import json
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from service.bodies import problem_answer, read_body
from service.errors import Problem
from service.models import BookRequest, CancelRequest, InitializeRequest
from service.models import Request as RequestModel
from tests.examples import examples
from tests.http.conftest import Service

REFUSALS = {"invalid_json", "invalid_request", "body_too_large", "unsupported_media_type"}
MODELS = (BookRequest, CancelRequest, InitializeRequest)
FIELDS = ("eventId", "userId", "quantity", "name", "totalTickets", "id", "")
SEEDS = (
    b'{"eventId":1,"userId":1}',
    b'{"eventId":9007199254740991,"userId":"azAZ09._~@:+|=-","quantity":1}',
    b'{"name":"\\u00e9\\ud83d\\ude00\\n","totalTickets":10000000}',
    '{"name":"é日本🎟","totalTickets":1e0}'.encode(),
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([0, 1, -1, 2**53 - 1, 2**53, 2**63, 10**20, 10**400, "1", "a", "\x00"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner),
    max_leaves=8,
)
documents = st.dictionaries(st.sampled_from(FIELDS), values) | values
bodies = st.binary() | documents.map(lambda value: json.dumps(value).encode())


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid body with some of its bytes replaced, dropped or doubled."""
    body = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(body)


async def parse(model: type[RequestModel], body: bytes, media_type: str) -> RequestModel | str:
    """Read a body as a handler does; return what it holds, or the refusal's code."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", media_type.encode("latin-1"))]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    try:
        return await read_body(request, model)
    except Problem as problem:
        problem_answer(problem)  # can be encoded
        return problem.code


@settings(max_examples=examples(2_000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=st.sampled_from(MODELS), body=bodies | mutated())
async def test_any_body_is_taken_or_refused(model: type[RequestModel], body: bytes) -> None:
    """Reading a body ends in a valid request or in one of its refusals; nothing else is raised."""
    result = await parse(model, body, "application/json")
    if isinstance(result, str):
        assert result in REFUSALS
        return
    # What was taken stays within the domain of both stores.
    taken = result.model_dump()
    for field, value in taken.items():
        if isinstance(value, int):
            assert field in ("eventId", "totalTickets", "quantity")
            assert 1 <= value < 2**53
        else:
            assert 1 <= len(value) <= 200
            assert "\x00" not in value
            value.encode()


@settings(max_examples=examples(500), deadline=None)
@given(media_type=st.text(st.characters(codec="latin-1")), body=st.sampled_from(SEEDS))
async def test_any_media_type_is_taken_or_refused(media_type: str, body: bytes) -> None:
    """A content type, however odd, is JSON or `unsupported_media_type`."""
    result = await parse(CancelRequest, body, media_type)
    if result != "unsupported_media_type":
        assert media_type.partition(";")[0].strip().lower() == "application/json"


def test_thousands_of_mutated_bodies_fail_nothing(service: Service) -> None:
    """Over HTTP, on one connection: no answer of 500 or above, and no failure in the log.

    The events do not exist, so that what happens to be valid is 404.
    """
    chance = random.Random(20)
    failures = service.failures()
    seeds = (
        b'{"eventId":4503599627370496,"userId":1,"quantity":1}',
        b'{"eventId":9007199254740991,"userId":"azAZ09._~@:+|=-"}',
    )
    seen = set()
    with service.connect() as connection:
        for _ in range(3_000):
            body = bytearray(chance.choice(seeds))
            for _ in range(chance.randrange(4)):
                at = chance.randrange(len(body) + 1)
                body[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
            path = chance.choice(("/book", "/cancel"))
            seen.add(connection.post(path, bytes(body)).status)
    assert seen == {400, 404, 422}
    assert service.failures() == failures
