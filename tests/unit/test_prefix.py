"""A path prefix: which requests have it, which settings are one, and what the document says."""

import json
from pathlib import Path

import pytest
from starlette.routing import Route

from service import documentation, openapi
from service.admission import Admission
from service.app import make_app
from service.errors import ConfigurationError
from service.metrics import Metrics
from service.prefix import located, stripped
from service.settings import OWN_SEGMENTS, Settings, load_settings
from service.shedding import Shedding


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        (b"/api/book", b"/book"),
        (b"/book", b"/book"),
        (b"/api/status/1?a=/api/b", b"/status/1?a=/api/b"),
        (b"/api", b"/"),
        (b"/api/", b"/"),
        (b"/api?a", b"/?a"),
        (b"/apis/book", b"/apis/book"),
        (b"/api%2Fbook", b"/api%2Fbook"),
        (b"/api/api/book", b"/api/book"),
        (b"//api/book", b"//api/book"),
        (b"*", b"*"),
    ],
)
def test_a_request_may_have_the_prefix_or_not(url: bytes, taken: bytes) -> None:
    """It is stripped once, where it is whole segments."""
    assert stripped(url, b"/api") == taken


def test_only_a_location_on_this_server_gets_the_prefix() -> None:
    """Other headers, and other servers, are left alone."""
    headers = [(b"location", b"/status/1"), (b"etag", b"/x"), (b"location", b"https://else/1")]
    assert located(headers, b"/api") == [(b"location", b"/api/status/1"), *headers[1:]]


@pytest.mark.parametrize("path", ["", "/api", "/a/b-c/~d/v1.0", "/tickets/api", "/..."])
def test_a_prefix_is_whole_segments(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of them, of what needs no encoding."""
    monkeypatch.setenv("ONSALE_ROOT_PATH", path)
    assert load_settings().root_path == path


NO_PREFIXES = (
    *("api", "/", "/api/", "//api", "/a//b", "/.", "/..", "/a/../b", "/a?b", "/a#b", "/a%20b"),
    *("/a b", "/a\r\nSet-Cookie: x", "/a\n", '/"><script>', "http://host/api", "/a;b", "/é"),
)


@pytest.mark.parametrize("path", NO_PREFIXES)
def test_what_is_no_prefix_is_refused_by_name(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes into a header or a page that is not a plain path."""
    monkeypatch.setenv("ONSALE_ROOT_PATH", path)
    with pytest.raises(ConfigurationError, match="ONSALE_ROOT_PATH: expected a path such as /api"):
        load_settings()


@pytest.mark.parametrize("path", ["/status", "/docs/api", "/metrics"])
def test_a_prefix_is_no_address_of_the_api(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one `/status/status/1` could be two things."""
    monkeypatch.setenv("ONSALE_ROOT_PATH", path)
    with pytest.raises(ConfigurationError, match="ONSALE_ROOT_PATH: begins like an address"):
        load_settings()


def test_every_address_of_the_api_is_known_as_one(tmp_path: Path) -> None:
    """A new route is added to the segments that no prefix may begin with."""
    settings = Settings(
        redis_url="redis://127.0.0.1:1",
        database_url="postgresql://onsale@127.0.0.1:1/onsale",
        data_dir=tmp_path,
    )
    routes = [route for route in make_app(settings, Metrics()).routes if isinstance(route, Route)]
    assert {route.path.split("/")[1] for route in routes} - {""} == OWN_SEGMENTS


async def test_a_request_that_is_not_even_read_is_refused_under_the_prefix() -> None:
    """The bytes for it are made once."""
    rest = Shedding(Admission(1.0), Metrics(), "/api").rest("/book")
    assert b'"type":"/api/problems/overloaded"' in rest


def test_the_document_and_its_page_are_of_the_prefix() -> None:
    """The server, the examples' types, and all that the page loads; without one, none of it."""
    assert "servers" not in openapi.document()
    described = openapi.document("/api")
    assert described["servers"] == [{"url": "/api"}]
    text = json.dumps(described)
    assert text.count('"/api/problems/') == json.dumps(openapi.document()).count('"/problems/') > 0
    assert '"/problems/' not in text
    assert documentation.page("/api").count('"/api/') == 3
    assert "{root}" not in documentation.page("/api")
    assert documentation.page("").count('"/docs/') == 2
