"""An API whose stores cannot be reached: it lives, refuses to guess, and shows nothing internal."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.listener import bind, http_url
from tests.http.conftest import LoggedRole
from tests.servers import wait_until

SECRET = "s3cr3t-pass"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An API that knows the addresses of stores at which nothing listens."""
    directory = tmp_path_factory.mktemp("without")
    with bind("127.0.0.1", 0) as listener, bind("127.0.0.1", 0) as closed:
        port = closed.getsockname()[1]
        closed.close()
        environment = {
            "REDIS_URL": f"redis://:{SECRET}@127.0.0.1:{port}/0",
            "DATABASE_URL": f"postgresql://onsale:{SECRET}@127.0.0.1:{port}/onsale",
            "ONSALE_DATA_DIR": str(directory / "data"),
            "ONSALE_REQUEST_DEADLINE_MS": "500",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        log = directory / "api.log"
        api = LoggedRole("api", environment, log, "--fd", str(listener.fileno()))
        api.start(pass_fds=(listener.fileno(),))
        address = http_url(listener)
        try:
            wait_until(lambda: get(f"{address}/livez").status_code == 200, what="the API lives")
            yield address
        finally:
            api.stop()
        assert SECRET not in log.read_text()


def get(url: str) -> httpx.Response:
    """Ask, waiting as long as it takes."""
    return httpx.get(url, timeout=30, trust_env=False)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/readyz", None),
        ("GET", "/status/1", None),
        ("GET", "/events/1/users/1", None),
        ("POST", "/initialize", {"name": "a", "totalTickets": 1}),
        ("POST", "/book", {"eventId": 1, "userId": 1}),
        ("POST", "/cancel", {"eventId": 1, "userId": 1}),
    ],
)
def test_what_needs_a_store_is_503(
    url: str, method: str, path: str, body: dict[str, object] | None
) -> None:
    """A meaningful code and when to come back; no address, no password, no library's words."""
    answer = httpx.request(method, url + path, json=body, timeout=30, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["content-type"] == "application/problem+json"
    assert 1 <= int(answer.headers["retry-after"]) <= 3
    text = answer.text.lower()
    words = (SECRET, "127.0.0.1", "redis", "valkey", "sql", "errno", "connect")
    assert not any(word in text for word in words)


def test_what_needs_no_store_is_answered(url: str) -> None:
    """Life, documentation and refusals do not wait for the stores."""
    assert get(f"{url}/livez").json() == {"status": "live"}
    assert get(f"{url}/docs").status_code == 200
    assert get(f"{url}/problems/unavailable").status_code == 200
    assert get(f"{url}/status/0").json()["code"] == "event_not_found"
    bad = httpx.post(f"{url}/book", json={}, timeout=30, trust_env=False)
    assert bad.json()["code"] == "invalid_request"
