"""The API under a path prefix behind nginx, which strips it or passes it on."""

import re
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.http.api_process import api_process
from tests.http.conftest import Service
from tests.proxies.proxies import nginx
from tests.servers import free_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "proxies.md"
_LOCATION = re.compile(r"    location (= )?/(?:api/)?(initialize)? ?\{\n.*?\n    \}\n", re.DOTALL)


def blocks(text: str) -> list[str]:
    """Return the `location` blocks of a configuration, without comments."""
    text = re.sub(r" *#.*\n", "", text)
    return [found[0] for found in _LOCATION.finditer(text)]


@pytest.mark.parametrize("strips", [True, False])
def test_every_link_leads_through_the_proxy(
    service: Service, tmp_path: Path, *, strips: bool
) -> None:
    """`Location`, a problem's type, the page and its files, the document and what it says."""
    ports = [free_port(), free_port()]
    documented = blocks(PAGE.read_text())
    assert len(documented) == 2
    if not strips:
        documented = [re.sub(r"http://onsale/\w*", "http://onsale", each) for each in documented]
    with (
        api_process(service, ports[0], ONSALE_ROOT_PATH="/api"),
        nginx(tmp_path / "nginx", ports, locations=documented) as address,
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        opened = client.post("/api/initialize", json={"name": "Event", "totalTickets": 2})
        event = opened.json()["event"]["id"]
        assert client.get(opened.headers["location"]).json()["eventId"] == event
        for more in ({}, {"Idempotency-Key": "k"}):
            user = f"user-{len(more)}"
            body = {"eventId": event, "userId": user}
            booked = client.post("/api/book", json=body, headers=more)
            assert booked.status_code == 201
            assert client.get(booked.headers["location"]).json()["userId"] == user
        problem = client.post("/api/cancel", json={"eventId": event, "userId": "stranger"}).json()
        assert client.get(problem["type"]).json()["code"] == "not_booked"
        page = client.get("/api/", follow_redirects=True)
        assert page.url.path == "/api/docs"
        links = re.findall(r'(?:href|src|url)[=:] ?"(/[^"]*)"', page.text)
        assert [client.get(link).status_code for link in links] == [200, 200, 200]
        document = client.get("/api/openapi.json").json()
        server = urljoin(f"{address}/api/openapi.json", document["servers"][0]["url"])
        assert client.get(f"{server}/readyz").json() == {"status": "ready"}
