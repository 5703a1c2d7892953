"""A running service whose Redis user loses a right in the middle of a sale."""

import asyncio

import httpx
import pytest
import redis

from service.auditor import audit
from service.keys import partition_keys
from service.reconciler import reconcile
from tests.http.conftest import Service
from tests.servers import wait_until

KEY = {"idempotency-key": "leave-1"}


def post(service: Service, path: str, body: dict[str, int]) -> httpx.Response:
    """Ask, with a key where something is cancelled."""
    headers = KEY if path == "/cancel" else {}
    return httpx.post(
        f"{service.url}{path}", json=body, headers=headers, timeout=30, trust_env=False
    )


@pytest.mark.timeout(240)
def test_a_waiter_who_leaves_without_zadd_gets_no_wrong_answer(service: Service) -> None:
    """503 and never 404; with the right back the sale opens by itself, and the repeat finds it."""
    event_id = service.open_event(tickets=1)
    for user in (1, 2, 3):
        post(service, "/book", {"eventId": event_id, "userId": user})
    leave = {"eventId": event_id, "userId": 2}
    with redis.Redis.from_url(service.servers.redis_url, decode_responses=True) as valkey:
        valkey.execute_command("ACL", "SETUSER", "default", "-zadd")
        try:
            told = [post(service, "/cancel", leave) for _ in range(2)]
            assert [answer.status_code for answer in told] == [503, 503]
            assert told[0].json()["code"] == "outcome_unknown"
        finally:
            valkey.execute_command("ACL", "SETUSER", "default", "+@all")
        wait_until(service.is_ready, what="the sale is open again")
        again = post(service, "/cancel", leave)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
        assert again.json()["status"] == "left_waiting_list"
        third = httpx.get(f"{service.url}/events/{event_id}/users/3", trust_env=False).json()
        assert (third["status"], third["position"]) == ("waiting", 1)

        def is_recorded() -> bool:
            seq, recorded = valkey.hmget(partition_keys(0).meta, "seq", "recorded")
            return bool(seq == recorded)

        wait_until(is_recorded, what="all is on record")
    redis_url, postgresql_url = service.servers.redis_url, service.servers.postgresql_url
    assert asyncio.run(reconcile(redis_url, postgresql_url)).verdict == "clean"
    assert asyncio.run(audit(postgresql_url)).verdict == "holds"
