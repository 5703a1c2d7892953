"""The service under a path prefix, whether the proxy strips it or passes it on."""

import contextlib
import re

from tests.http.api_process import api_process
from tests.http.conftest import Service
from tests.http.raw import Connection, request
from tests.servers import free_port


def test_every_link_has_the_prefix_whichever_way_a_request_comes(service: Service) -> None:
    """`Location`, the types of problems, the page and the document: hot path, application, bytes.

    A request has the prefix or not; its answer is the same.
    """
    port = free_port()
    with (
        api_process(service, port, ONSALE_ROOT_PATH="/shop/api") as _,
        contextlib.closing(Connection(("127.0.0.1", port))) as line,
    ):
        for number, prefix in enumerate(("", "/shop/api")):
            opened = line.post(f"{prefix}/initialize", b'{"name":"Event","totalTickets":3}')
            event = opened.json()["event"]["id"]
            assert opened.headers["location"] == f"/shop/api/status/{event}"
            for way in ((), (f"Idempotency-Key: k{number}",), ("Prefer: durability=recorded",)):
                user = f"u{number}-{len(way)}-{'-'.join(way)[:6]}"
                body = b'{"eventId":%d,"userId":"%s"}' % (event, user.encode())
                booked = line.post(f"{prefix}/book", body, *way)
                assert booked.status == 201
                assert booked.headers["location"] == f"/shop/api/events/{event}/users/{user}"
            stranger = b'{"eventId":%d,"userId":"stranger"}' % event
            problems = [
                line.post(f"{prefix}/cancel", stranger),
                line.post(f"{prefix}/cancel", stranger, "Idempotency-Key: k"),
                line.post(f"{prefix}/book", b"{"),
                line.ask(request("GET", f"{prefix}/status/0"), "GET"),
                line.ask(request("GET", f"{prefix}/nothing"), "GET"),
                line.ask(request("GET", f"{prefix}/book"), "GET"),
            ]
            assert [each.status for each in problems] == [404, 404, 400, 404, 404, 405]
            for each in problems:
                told = each.json()
                assert told["type"] == f"/shop/api/problems/{told['code']}"
                assert line.ask(request("GET", told["type"]), "GET").json()["code"] == told["code"]
            index = line.ask(request("GET", f"{prefix}/"), "GET")
            assert (index.status, index.headers["location"]) == (307, "/shop/api/docs")
            page = line.ask(request("GET", f"{prefix}/docs"), "GET").body.decode()
            links = re.findall(r'(?:href|src|url)[=:] ?"(/[^"]*)"', page)
            assert len(links) == 3
            for link in links:
                assert link.startswith("/shop/api/")
                assert line.ask(request("GET", link), "GET").status == 200
            document = line.ask(request("GET", f"{prefix}/openapi.json"), "GET").json()
            assert document["servers"] == [{"url": "/shop/api"}]
            read = line.ask(request("GET", f"{prefix}/status/{event}"), "GET")
            assert read.json()["remainingTickets"] == 0
        refused = line.ask(b"GET / HTTP/1.1\r\n\r\n", "GET")
        assert refused.json()["type"] == "/shop/api/problems/invalid_http"
