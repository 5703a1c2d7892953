"""`/openapi.json` says what the service does, and `/docs` needs nothing from outside."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.routing import Route

from service import models, openapi
from service.app import make_app
from service.errors import PROBLEMS
from service.metrics import Metrics
from service.settings import Settings

UNDESCRIBED = {"/", "/docs", "/docs/{file}", "/metrics", "/openapi.json", "/problems/{code}"}
"""Routes for people and tools, which the document does not describe."""

UNLISTED = {
    "not_found": "an address that is no route",
    "method_not_allowed": "a method that is none of the route's",
    "internal_error": "what no route means to answer",
}
"""Codes that belong to no operation, and why."""

POSTS: dict[str, type[models.Request]] = {
    "/initialize": models.InitializeRequest,
    "/book": models.BookRequest,
    "/cancel": models.CancelRequest,
}
OUTSIDE = re.compile(r"""(?:https?:|wss?:|["'(=]\s*)//""")

TAKEN: dict[str, list[dict[str, Any]]] = {
    "/initialize": [
        {"name": "Event Name", "totalTickets": 100},
        {"name": "é", "totalTickets": 1},
        {"name": "a" * 200, "totalTickets": 10_000_000},
        {"name": "\n", "totalTickets": 1},
    ],
    "/book": [
        {"eventId": 1, "userId": 123},
        {"eventId": 2**53 - 1, "userId": 2**53 - 1},
        {"eventId": 1, "userId": "azAZ09._~@:+|=-", "quantity": 1},
        {"eventId": 1, "userId": 0},
        {"eventId": 1, "userId": "a" * 64},
    ],
    "/cancel": [{"eventId": 1, "userId": 123}, {"eventId": 1, "userId": "a"}],
}
REFUSED: dict[str, list[Any]] = {
    "/initialize": [
        {},
        {"name": "a"},
        {"totalTickets": 1},
        {"name": "", "totalTickets": 1},
        {"name": "a" * 201, "totalTickets": 1},
        {"name": "a\x00", "totalTickets": 1},
        {"name": 1, "totalTickets": 1},
        {"name": "a", "totalTickets": 0},
        {"name": "a", "totalTickets": 10_000_001},
        {"name": "a", "totalTickets": 1.5},
        {"name": "a", "totalTickets": "1"},
        {"name": "a", "totalTickets": True},
        {"name": "a", "totalTickets": None},
        {"name": "a", "totalTickets": 1, "vip": 1},
        [],
        None,
    ],
    "/book": [
        {"eventId": 1},
        {"userId": 1},
        {"eventId": 0, "userId": 1},
        {"eventId": 2**53, "userId": 1},
        {"eventId": "1", "userId": 1},
        {"eventId": True, "userId": 1},
        {"eventId": 1, "userId": -1},
        {"eventId": 1, "userId": 2**53},
        {"eventId": 1, "userId": ""},
        {"eventId": 1, "userId": "a" * 65},
        {"eventId": 1, "userId": "a b"},
        {"eventId": 1, "userId": "é"},
        {"eventId": 1, "userId": True},
        {"eventId": 1, "userId": None},
        {"eventId": 1, "userId": 1.5},
        {"eventId": 1, "userId": 1, "quantity": 0},
        {"eventId": 1, "userId": 1, "quantity": 2},
        {"eventId": 1, "userId": 1, "quantity": True},
        {"eventId": 1, "userId": 1, "quantity": None},
        {"eventId": 1, "userId": 1, "quantity": "1"},
        {"eventId": 1, "userId": 1, "vip": 1},
        "x",
    ],
    "/cancel": [
        {"eventId": 1},
        {"eventId": 1, "userId": 1, "quantity": 1},
        {"eventId": 1.5, "userId": 1},
    ],
}


@pytest.fixture
def app() -> Starlette:
    """The application as it is served, connected to nothing."""
    urls = {"redis_url": "redis://127.0.0.1:1", "database_url": "postgresql://127.0.0.1:1/x"}
    settings = Settings(_env_file=None, **urls)  # type: ignore[arg-type]  # by name, not by type
    return make_app(settings, Metrics())


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a server."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://onsale") as client:
        yield client


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document."""
    return openapi.document()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and operation of each operation."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method.upper(), operation


def validator(document: dict[str, Any], schema: dict[str, Any]) -> OAS31Validator:
    """Return a validator of a schema that refers into the document."""
    return OAS31Validator({**schema, "components": document["components"]})


def request_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the schema of a body."""
    content = document["paths"][path]["post"]["requestBody"]["content"]
    return dict(content["application/json"]["schema"])


def contents(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each answer's media type object, with its status."""
    for _, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            for content in answer.get("content", {}).values():
                yield status, content


def test_the_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    """The validator of the specification finds nothing."""
    assert document["openapi"].startswith("3.1.")
    assert [str(e) for e in OpenAPIV31SpecValidator(document).iter_errors()] == []


async def test_the_document_is_served_as_it_is(
    client: httpx.AsyncClient, document: dict[str, Any]
) -> None:
    """`/openapi.json` is the document, as JSON."""
    answer = await client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == json.loads(json.dumps(document))


def test_every_route_is_described_and_every_description_has_its_route(
    app: Starlette, document: dict[str, Any]
) -> None:
    """Routes and operations are the same set, but for the pages of the documentation."""
    routes = set()
    for route in app.routes:
        assert isinstance(route, Route)
        path = re.sub(r"\{(\w+)_id\}", r"{\1Id}", route.path)
        routes |= {(path, method) for method in (route.methods or set()) - {"HEAD"}}
    described = {(path, method) for path, method, _ in operations(document)}
    assert {r for r in routes if r[0] not in UNDESCRIBED} == described
    assert {path for path, _ in routes - described} == UNDESCRIBED


def test_every_code_is_listed_where_it_can_be_met(document: dict[str, Any]) -> None:
    """Each problem code stands at some operation under its status, or has a reason not to."""
    listed = set()
    for status, content in contents(document):
        for code in content.get("examples", {}):
            assert PROBLEMS[code].status == int(status)
            listed.add(code)
    assert listed == PROBLEMS.keys() - UNLISTED.keys()


def test_every_503_says_when_to_come_back(document: dict[str, Any]) -> None:
    """`Retry-After` is described wherever 503 is."""
    answers = [
        operation["responses"]["503"]
        for _, _, operation in operations(document)
        if "503" in operation["responses"]
    ]
    assert answers
    assert all("Retry-After" in answer["headers"] for answer in answers)


def test_every_parameter_of_a_path_is_described(document: dict[str, Any]) -> None:
    """What stands in braces is listed once, and nothing else is."""
    for path, _, operation in operations(document):
        listed = [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]
        assert listed == re.findall(r"\{(\w+)\}", path)


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    """A generated client has one function for each operation."""
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, bodies in TAKEN.items() for body in bodies]
)
def test_what_is_taken_fits_the_schema(
    document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    """A body that the service accepts is valid by the document."""
    POSTS[path].model_validate_json(json.dumps(body))
    validator(document, request_schema(document, path)).validate(body)


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, bodies in REFUSED.items() for body in bodies]
)
def test_what_is_refused_does_not_fit_the_schema(
    document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    """A body that the service refuses is invalid by the document."""
    with pytest.raises(ValidationError):
        POSTS[path].model_validate_json(json.dumps(body))
    assert not validator(document, request_schema(document, path)).is_valid(body)


@pytest.mark.parametrize("path", POSTS)
def test_the_examples_of_a_body_make_a_valid_one(document: dict[str, Any], path: str) -> None:
    """Every required field has an example, and together they are accepted."""
    schema = document["components"]["schemas"][POSTS[path].__name__]
    body = {name: schema["properties"][name]["examples"][0] for name in schema["required"]}
    POSTS[path].model_validate_json(json.dumps(body))
    validator(document, request_schema(document, path)).validate(body)


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    """Examples of answers, fields and parameters are valid by the schema beside them."""
    looked_at = 0
    for _, content in contents(document):
        for example in content.get("examples", {}).values():
            validator(document, content["schema"]).validate(example["value"])
            looked_at += 1
    for schema in document["components"]["schemas"].values():
        for field in schema.get("properties", {}).values():
            for example in field.get("examples", []):
                validator(document, field).validate(example)
                looked_at += 1
    for _, _, operation in operations(document):
        for parameter in operation.get("parameters", []):
            validator(document, parameter["schema"]).validate(parameter["example"])
            looked_at += 1
    assert looked_at > len(PROBLEMS)


class _Assets(HTMLParser):
    """Collects what a page names."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v for k, v in attrs if k in ("src", "href") and v]


async def test_the_page_names_nothing_outside(client: httpx.AsyncClient) -> None:
    """Neither the page nor its style sheet leads to another host, and the browser is told so."""
    page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not OUTSIDE.search(page.text)
    style = (await client.get("/docs/swagger-ui.css")).text
    assert re.findall(r"url\((?!\"?data:)", style) == []
    assert "@import" not in style


async def test_all_that_the_page_names_is_served(client: httpx.AsyncClient) -> None:
    """Each asset and the document answer 200, with the media type that a browser wants."""
    page = (await client.get("/docs")).text
    assets = _Assets()
    assets.feed(page)
    named = [a for a in assets.addresses if not a.startswith("data:")]
    named += re.findall(r'url: "([^"]+)"', page)
    types = {}
    for address in named:
        answer = await client.get(address)
        assert answer.status_code == 200
        assert answer.content
        types[address] = answer.headers["content-type"].partition(";")[0]
    assert types == {
        "/docs/swagger-ui.css": "text/css",
        "/docs/swagger-ui-bundle.js": "text/javascript",
        "/openapi.json": "application/json",
    }


@pytest.mark.parametrize("name", ["swagger-ui.css", "swagger-ui-bundle.js"])
async def test_assets_are_kept_by_browsers_and_never_guessed(
    client: httpx.AsyncClient, name: str
) -> None:
    """An asset may be cached, has an ETag, and its media type is not sniffed."""
    answer = await client.get(f"/docs/{name}")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "max-age" in answer.headers["cache-control"]
    assert answer.headers["etag"]


@pytest.mark.parametrize("name", ["index.html", "__init__.py", "swagger-ui.css.map", "..", "."])
async def test_only_the_named_assets_are_served(client: httpx.AsyncClient, name: str) -> None:
    """Other files of the package are not reachable."""
    answer = await client.get(f"/docs/{name.replace('.', '%2E')}")
    assert answer.status_code == 404
