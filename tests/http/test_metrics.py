"""What `/metrics` says of a whole service: two workers and the writer add up to the journal."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest
import redis
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from service.keys import partition_keys
from tests.crowd import connected, post_all
from tests.running import Running
from tests.servers import wait_until

USERS, TICKETS, CONNECTIONS = 1_200, 300, 40
ASKED = USERS + 100 + 1


@pytest.fixture
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A whole service with two API processes."""
    service = Running(tmp_path_factory.mktemp("two") / "data", WEB_CONCURRENCY="2")
    try:
        service.start()
        yield service
    finally:
        service.stop()


def scrape(service: Running) -> dict[str, float]:
    """Return every sample by `name{label values}`."""
    answer = httpx.get(f"{service.urls['http']}/metrics", trust_env=False, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def crowd(service: Running) -> None:
    """Book, repeat, cancel and leave, over many connections, so that both workers have some."""
    async with connected(service.urls["http"], CONNECTIONS) as clients:
        opened = await clients[0].post("/initialize", {"name": "Event", "totalTickets": TICKETS})
        event_id = opened.body["event"]["id"]
        everybody = [{"eventId": event_id, "userId": user} for user in range(USERS)]
        await post_all(clients, "/book", [*everybody, *everybody[:100]])
        await post_all(clients, "/cancel", [*everybody[::7], *everybody[:20], *everybody[:20]])
        await clients[0].post("/book", {"eventId": event_id})


def answered(service: Running) -> float:
    """Return how many answers of `/book` were measured."""
    return sum(
        value
        for name, value in scrape(service).items()
        if name.startswith("onsale_request_duration_seconds_count{/book}")
    )


async def journal(service: Running) -> Counter[str]:
    """Return how many rows of each kind are on record."""
    record = await asyncpg.connect(service.urls["postgresql"])
    rows = await record.fetch("SELECT kind, count(*) FROM journal GROUP BY kind")
    await record.close()
    return Counter({row["kind"]: row["count"] for row in rows})


def test_two_workers_and_the_writer_add_up_to_the_journal(two_workers: Running) -> None:
    """Whatever a script decided was counted once by a worker, and once by the writer.

    One worker is killed in the middle: what it had counted stays counted.
    """
    before = answered(two_workers)
    asyncio.run(crowd(two_workers))
    # An answer is measured when it has left.
    wait_until(lambda: answered(two_workers) == before + ASKED, what="all is measured")
    two_workers.kill("api-2")
    asyncio.run(crowd(two_workers))
    wait_until(lambda: answered(two_workers) == before + 2 * ASKED, what="all is measured")
    wait_until(lambda: scrape(two_workers)["onsale_lag_changes{0}"] == 0, what="all is on record")
    found, on_record = scrape(two_workers), asyncio.run(journal(two_workers))

    recorded = {kind: found[f"onsale_recorded_changes_total{{{kind}}}"] for kind in on_record}
    assert recorded == on_record
    decided = {
        "opened": found["onsale_outcomes_total{open_event}{opened}"],
        "booked": found["onsale_outcomes_total{book}{booked}"],
        "waiting": found["onsale_outcomes_total{book}{waiting}"],
        "cancelled": found["onsale_outcomes_total{cancel}{cancelled}"],
        "left": found["onsale_outcomes_total{cancel}{left}"],
        "promoted": found["onsale_promotions_total"],
    }
    assert {**decided, "epoch_began": on_record["epoch_began"]} == on_record
    assert min(decided.values()) > 0
    assert found["onsale_problems_total{invalid_request}"] >= 2
    assert found["onsale_last_seq{0}"] == on_record.total()


def test_both_workers_counted(two_workers: Running) -> None:
    """The sum is one of two: neither worker answers for itself alone."""
    directory = two_workers.data / "run" / "metrics"
    wait_until((directory / "counter_writer.db").exists, what="the writer counts")
    assert {file.stem for file in directory.glob("counter_*.db")} == {
        "counter_api",
        "counter_api-2",
        "counter_writer",
    }

    def counted(file: Path) -> bool:
        samples = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
        names = {json.loads(key)[1] for key, value, _, _ in samples if value > 0}
        return "onsale_batch_items_sum" in names

    # Which of the two takes a connection is the kernel's to choose.
    for _ in range(20):
        asyncio.run(crowd(two_workers))
        if all(counted(file) for file in directory.glob("histogram_api*.db")):
            return
    pytest.fail("one worker had no request in twenty crowds")


@contextlib.contextmanager
def frozen(service: Running, role: str) -> Iterator[None]:
    """Stop a role and its children, and let them go on."""
    of_role = psutil.Process(service.pid(role))
    processes = [of_role, *of_role.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def test_a_store_that_is_away_is_seen_and_costs_no_scrape(two_workers: Running) -> None:
    """Without PostgreSQL P is taken for W; without Redis there is no partition to speak of."""
    asyncio.run(crowd(two_workers))
    wait_until(lambda: scrape(two_workers)["onsale_lag_changes{0}"] == 0, what="all is on record")
    before = scrape(two_workers)
    assert before["onsale_store_up{redis}"] == before["onsale_store_up{postgresql}"] == 1
    assert before["onsale_open{0}"] == 1
    assert before["onsale_lag_seconds{0}"] == 0
    with frozen(two_workers, "postgresql"):
        booked = {"eventId": 1, "userId": "while-the-record-is-away"}
        httpx.post(f"{two_workers.urls['http']}/book", json=booked, trust_env=False)
        found = scrape(two_workers)
        assert found["onsale_store_up{postgresql}"] == 0
        assert found["onsale_lag_changes{0}"] == found["onsale_unrecorded_changes{0}"] == 1
        assert found["onsale_lag_seconds{0}"] > 0
    with frozen(two_workers, "valkey"):
        found = scrape(two_workers)
        assert found["onsale_store_up{redis}"] == 0
        assert found["onsale_open{0}"] == 0
        assert found["onsale_outcomes_total{book}{booked}"] > 0
    wait_until(lambda: scrape(two_workers)["onsale_lag_changes{0}"] == 0, what="all is on record")


def test_a_partition_that_stays_closed_says_why(tmp_path: Path) -> None:
    """`onsale_closed` has the reason, for the alarm to show."""
    service = Running(tmp_path / "data")
    service.start()
    try:
        assert not [name for name in scrape(service) if name.startswith("onsale_closed")]
        # Before the first change is on record the watermark is of no epoch.
        wait_until(lambda: scrape(service)["onsale_watermark_seq{0}"] == 1, what="W is R")
        with redis.Redis.from_url(service.urls["redis"]) as client:
            client.hset(partition_keys(0).meta, "recorded", "99")
        wait_until(lambda: scrape(service)["onsale_open{0}"] == 0, what="it is closed")
        wait_until(
            lambda: any(n.startswith("onsale_closed{0}{PostgreSQL went") for n in scrape(service)),
            what="the reason is there",
        )
    finally:
        service.stop()
