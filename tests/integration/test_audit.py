"""The audit on real stores: what the service wrote holds, and what was damaged by hand is named."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence

import asyncpg
import pytest

from service.app import Worker
from service.auditor import UnknownEventError, audit
from service.engine import Engine
from service.errors import Problem
from service.journal_view import JournalRow, JournalView
from service.keys import partition_keys
from service.settings import Settings
from service.times import from_microseconds
from service.violations import AuditReport, Head
from tests.conftest import Client, Record, Stores
from tests.integration.conftest import eventually, writing
from tests.integration.records import put_on_record
from tests.integration.restoring import replacing, somebody_waits
from tests.journals import Sale


async def write_anew(record: Record, rows: Sequence[JournalRow]) -> None:
    """Replace the journal of partition 0 and its head, as somebody who knows how would."""
    await record.execute("DELETE FROM journal WHERE partition = 0")
    await record.executemany(
        "INSERT INTO journal VALUES (0, $1, $2, $3, $4, $5, $6, $7, $8)",
        [
            (c.seq, c.epoch, from_microseconds(c.at), c.kind, c.event_id, c.user_id, c.details, h)
            for c, h, _ in rows
        ],
    )
    await record.execute(
        "UPDATE cursors SET epoch = $1, seq = $2, head = $3",
        rows[-1].change.epoch,
        rows[-1].change.seq,
        rows[-1].hash,
    )


def named(report: AuditReport) -> set[tuple[str, int | None, int | None, str | None]]:
    """Return rule, seq, event and user of each violation."""
    return {(v.rule, v.seq, v.event_id, v.user_id) for v in report.violations.kept}


def heads(report: AuditReport) -> list[Head]:
    """Return what `--head` prints."""
    return [partition.head for partition in report.partitions]


async def is_recorded(record: Record, valkey: Client, partitions: int) -> bool:
    """Whether P is R in every partition."""
    rows = await record.fetch("SELECT epoch, seq FROM cursors ORDER BY partition")
    metas = [
        await valkey.hmget(partition_keys(partition).meta, "epoch", "seq")
        for partition in range(partitions)
    ]
    return [[str(epoch), str(seq)] for epoch, seq in rows] == metas


async def crowd(engine: Engine, events: Sequence[int], *, people: int, seed: int) -> None:
    """Book, cancel, join and leave, many at once."""

    async def somebody(number: int) -> None:
        choice = random.Random(seed + number)
        for _ in range(30):
            event, user = choice.choice(events), f"p{choice.randrange(people)}"
            ask = engine.book if choice.random() < 0.6 else engine.cancel
            with contextlib.suppress(Problem):  # 404 for who has nothing to cancel
                await ask(event, user)

    await asyncio.gather(*(somebody(number) for number in range(16)))


class TestHolds:
    """Exit code 0 for whatever the service itself does."""

    async def test_a_record_that_was_never_begun_holds(self, stores: Stores) -> None:
        """There is nothing on it that could be wrong."""
        report = await audit(stores.postgresql_url)
        assert (report.verdict, report.exit_code, report.partitions) == ("holds", 0, [])

    async def test_a_crowd_that_cancels_through_restarts_and_rebuilds_holds(
        self, stores: Stores, record: Record, valkey: Client
    ) -> None:
        """Over partitions and epochs, at every moment; and heads of all of them hold at the end."""
        settings = Settings(
            redis_url=stores.redis_url, database_url=stores.postgresql_url, partitions=3
        )
        async with writing(settings), Worker(settings) as engine:
            events = [(await engine.initialize("Event Name", 20)).event_id for _ in range(4)]
            kept: list[Head] = []
            for seed, lose in enumerate((valkey.script_flush, valkey.flushall, valkey.ping)):
                task = asyncio.create_task(crowd(engine, events, people=60, seed=1_000 * seed))
                while not task.done():
                    during = await audit(stores.postgresql_url, kept=kept)
                    assert named(during) == set()
                    kept += [head for head in heads(during) if head.seq]
                await task
                await eventually(lambda: is_recorded(record, valkey, 3))
                await lose()
        report = await audit(stores.postgresql_url, kept=kept)
        assert (named(report), report.exit_code, report.kept_heads) == (set(), 0, len(kept))
        verdicts = {row["verdict"] for row in await record.fetch("SELECT verdict FROM epochs")}
        assert verdicts == {"begin", "continue", "rebuild"}
        assert [partition.epochs for partition in report.partitions] == [3, 3, 3]
        for event in report.events:
            row = await record.fetchrow(
                "SELECT capacity, sold, waiting FROM events WHERE id = $1", event.event_id
            )
            assert row is not None
            assert (event.capacity, event.sold, event.waiting) == tuple(row)
            assert event.most_sold == event.capacity
        assert report.changes == await record.fetchval("SELECT count(*) FROM journal")

    @pytest.mark.usefixtures("sale")
    async def test_an_event_that_was_only_drawn_is_no_violation(
        self, stores: Stores, record: Record
    ) -> None:
        """Its opening may have been lost on the way to Redis."""
        await record.execute("INSERT INTO events (id, name, capacity) VALUES (2, 'Drawn', 5)")
        assert named(await audit(stores.postgresql_url)) == set()

    @pytest.mark.usefixtures("sale")
    async def test_orphans_are_counted_and_are_no_violation(
        self, stores: Stores, record: Record
    ) -> None:
        """They are no part of the journal."""
        await record.execute(
            "INSERT INTO orphans VALUES (0, 1, 7, now(), 'booked', 1, 'z', NULL, 3)"
        )
        report = await audit(stores.postgresql_url)
        assert (named(report), report.partitions[0].orphans) == (set(), 1)

    @pytest.mark.usefixtures("sale")
    async def test_events_that_are_asked_for_are_replayed_alone(
        self, stores: Stores, record: Record
    ) -> None:
        """What is wrong with another event's tables is not looked at; the chain is."""
        await record.execute(
            "INSERT INTO events (id, status, name, capacity) VALUES (2, 'open', 'N', 5)"
        )
        assert named(await audit(stores.postgresql_url, event_ids=[1])) == set()
        assert named(await audit(stores.postgresql_url)) == {("events", None, 2, None)}
        await record.execute("UPDATE journal SET at = now() WHERE seq = 2")
        report = await audit(stores.postgresql_url, event_ids=[2])
        assert named(report) == {("hash", 2, 1, None), ("events", None, 2, None)}
        assert report.events == []

    @pytest.mark.usefixtures("sale")
    async def test_an_event_that_nobody_knows_is_refused(self, stores: Stores) -> None:
        """Neither clean nor violated."""
        with pytest.raises(UnknownEventError, match="the record has no event 8, 9"):
            await audit(stores.postgresql_url, event_ids=[1, 9, 8])

    @pytest.mark.usefixtures("sale")
    async def test_all_of_it_is_of_one_moment(
        self,
        stores: Stores,
        record: Record,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What is written after the cursor was read is seen in no table."""
        read = JournalView.cursors

        async def then_somebody_writes(view: JournalView, partitions: list[int]) -> object:
            found = await read(view, partitions)
            await record.execute("DELETE FROM bookings")
            await record.execute("DELETE FROM journal WHERE seq > 5")
            return found

        monkeypatch.setattr(JournalView, "cursors", then_somebody_writes)
        assert named(await audit(stores.postgresql_url)) == set()

    @pytest.mark.usefixtures("sale")
    async def test_it_can_write_nothing(self, stores: Stores) -> None:
        """PostgreSQL refuses the session a change."""
        async with await JournalView.open(stores.postgresql_url) as view:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await view.draw_event("Event Name", 1)


Damage = Callable[[Record], Awaitable[object]]


def sql(*statements: str) -> Damage:
    """Run these statements."""

    async def run(record: Record) -> None:
        for statement in statements:
            await record.execute(statement)

    return run


class TestDamage:
    """Exit code 1, and each violation is named."""

    @pytest.mark.parametrize(
        ("damage", "found"),
        [
            (
                sql("DELETE FROM journal WHERE seq = 5"),
                {("gap", 6, 1, "d"), ("unlawful", 8, 1, "c")},
            ),
            (sql("DELETE FROM journal WHERE seq = 2"),
             {("gap", 3, 1, "a"), ("unlawful", 3, 1, "a")}),
            (
                sql("DELETE FROM journal WHERE seq = 11"),
                {("cursor", 10, None, None), ("bookings", 8, 1, "c"), ("events", 2, 1, None)},
            ),
            (
                sql(
                    "UPDATE journal SET seq = 99 WHERE seq = 5",
                    "UPDATE journal SET seq = 5 WHERE seq = 6",
                    "UPDATE journal SET seq = 6 WHERE seq = 99",
                ),
                {
                    ("hash", 5, 1, "d"),
                    ("hash", 6, 1, "c"),
                    ("hash", 7, None, None),
                },
            ),
            (
                sql("UPDATE journal SET kind = 'left' WHERE seq = 9"),
                {("hash", 9, 1, "b"), ("unlawful", 9, 1, "b"), ("bookings", 9, 1, "b")},
            ),
            (
                sql("UPDATE journal SET user_id = 'z' WHERE seq = 11"),
                {("hash", 11, 1, "z"), ("bookings", 11, 1, "z"), ("bookings", 8, 1, "c")},
            ),
            (
                sql("UPDATE journal SET at = at + interval '1 microsecond' WHERE seq = 4"),
                {("hash", 4, 1, "b")},
            ),
            (
                sql("UPDATE journal SET at = 'infinity' WHERE seq = 4"),
                {("hash", 4, 1, "b")},
            ),
            (sql("UPDATE journal SET epoch = 1 WHERE seq = 8"),
             {("hash", 8, 1, "c"), ("epoch", 8, 1, "c")}),
            (sql("UPDATE journal SET event_id = NULL WHERE seq = 11"),
             {("hash", 11, None, "c"), ("unreadable", 11, None, "c"), ("bookings", 8, 1, "c"),
              ("events", 2, 1, None)}),
            (sql("UPDATE journal SET hash = '' WHERE seq = 11"),
             {("hash", 11, 1, "c"), ("cursor", 11, None, None)}),
            (
                sql(
                    "INSERT INTO journal SELECT 0, 12, 3, now(), 'booked', 1, 'z', NULL, hash"
                    " FROM journal WHERE seq = 11"
                ),
                {("cursor", 12, None, None)},
            ),
            (sql("INSERT INTO journal SELECT 0, 0, 1, now(), 'booked', 1, 'z', NULL, ''"),
             {("gap", 0, 1, "z"), ("epoch", 0, 1, "z"), ("unlawful", 0, 1, "z"),
              ("unlawful", 2, 1, None), ("bookings", 0, 1, "z"),
              ("oversold", 4, 1, "b"), ("oversold", 10, 1, "d"), ("events", 2, 1, None)}),
            (sql("UPDATE cursors SET seq = 10"),
             {("cursor", 11, None, None), ("cursor", 10, None, None), ("bookings", 8, 1, "c"),
              ("events", 2, 1, None)}),
            (sql("UPDATE cursors SET epoch = 1"), {("cursor", 11, None, None)}),
            (sql("UPDATE cursors SET head = sha256('x')"), {("cursor", 11, None, None)}),
            (
                sql("DELETE FROM cursors"),
                {
                    ("cursor", 1, None, None),
                    ("bookings", None, 1, "a"),
                    ("bookings", None, 1, "b"),
                    ("bookings", None, 1, "c"),
                    ("bookings", None, 1, "d"),
                    ("events", None, 1, None),
                },
            ),
            (
                sql("DELETE FROM epochs WHERE epoch = 3"),
                {("epoch", seq, 1, user) for seq, user in zip((8, 9, 10, 11), "cbdc", strict=True)}
                | {("epoch", 7, None, None)},
            ),
            (
                sql("UPDATE epochs SET beginning = 5 WHERE epoch = 3"),
                {("epoch", 6, 1, "d"), ("epoch", 7, None, None)},
            ),
            (
                sql("UPDATE epochs SET predecessor = 2 WHERE epoch = 3"),
                {("epoch", None, None, None), ("epoch", 7, None, None)},
            ),
            (
                sql(
                    "INSERT INTO bookings VALUES (1, 'thief', 'booked', 1, 3, now())",
                    "INSERT INTO bookings VALUES (7, 'thief', 'booked', 1, 3, now())",
                ),
                {("bookings", None, 1, "thief"), ("bookings", None, 7, "thief")},
            ),
            (sql("DELETE FROM bookings WHERE user_id = 'a'"), {("bookings", 3, 1, "a")}),
            (
                sql("UPDATE bookings SET status = 'booked' WHERE user_id = 'c'"),
                {("bookings", 11, 1, "c")},
            ),
            (
                sql("UPDATE bookings SET seq = 5 WHERE user_id = 'c'"),
                {("bookings", 11, 1, "c")},
            ),
            (sql("UPDATE bookings SET quantity = 2 WHERE user_id = 'c'"),
             {("bookings", 11, 1, "c")}),
            (sql("UPDATE events SET sold = 1"), {("events", 2, 1, None)}),
            (sql("UPDATE events SET waiting = 0"), {("events", 2, 1, None)}),
            (sql("UPDATE events SET capacity = 3"), {("events", 2, 1, None)}),
            (sql("UPDATE events SET name = 'Last night'"), {("events", 2, 1, None)}),
            (sql("UPDATE events SET status = 'opening'"), {("events", 2, 1, None)}),
            (sql("DELETE FROM events"), {("events", 2, 1, None)}),
            (
                sql("INSERT INTO events (id, status, name, capacity) VALUES (2, 'open', 'N', 1)"),
                {("events", None, 2, None)},
            ),
            (sql("DELETE FROM deployment"), {("unreadable", None, None, None)}),
            (
                sql("INSERT INTO cursors VALUES (1, 0, 0, '')"),
                {("unreadable", None, None, None)},
            ),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("sale")
    async def test_what_was_damaged_is_named_and_nothing_else(
        self,
        stores: Stores,
        record: Record,
        damage: Damage,
        found: set[tuple[str, int | None, int | None, str | None]],
    ) -> None:
        """By rule, journal row, event and user."""
        assert named(await audit(stores.postgresql_url)) == set()
        await damage(record)
        report = await audit(stores.postgresql_url)
        assert named(report) == found
        assert (report.verdict, report.exit_code) == ("violated", 1)

    async def test_a_hash_made_anew_for_one_row_is_named_by_the_next(
        self, stores: Stores, sale: Sale, record: Record
    ) -> None:
        """The row itself is what was hashed; the row behind it was hashed behind another."""
        row = sale.forged(4, at=9)[3]
        await record.execute(
            "UPDATE journal SET at = $1, hash = $2 WHERE seq = 4",
            from_microseconds(9),
            row.hash,
        )
        assert named(await audit(stores.postgresql_url)) == {("hash", 5, 1, "c")}

    async def test_a_promotion_out_of_order_is_named_whatever_was_made_anew(
        self, stores: Stores, sale: Sale, record: Record
    ) -> None:
        """Hashes, cursor, bookings and counters all agree; the order does not."""
        changes = [c for c in sale.changes if c.seq != 8]
        changes = [c._replace(seq=seq) for seq, c in enumerate(changes, start=1)][:-1]
        await write_anew(record, sale.rows(changes))
        await record.execute("UPDATE bookings SET status = 'waiting', seq = 5 WHERE user_id = 'c'")
        await record.execute("UPDATE bookings SET seq = seq - 1 WHERE seq > 8")
        report = await audit(stores.postgresql_url)
        assert named(report) == {("out_of_order", 9, 1, "d")}
        assert report.violations.kept[0].says == "promoted before c"

    async def test_a_consistent_forgery_is_found_by_a_head_that_was_kept(
        self, stores: Stores, sale: Sale, record: Record
    ) -> None:
        """Somebody else had booked all along: only what was kept elsewhere knows better."""
        (kept,) = heads(await audit(stores.postgresql_url))
        forged = [c._replace(user_id="thief") if c.user_id == "a" else c for c in sale.changes]
        await write_anew(record, sale.rows(forged))
        await record.execute("UPDATE bookings SET user_id = 'thief' WHERE user_id = 'a'")
        report = await audit(stores.postgresql_url)
        assert named(report) == set()
        assert heads(report) != [kept]
        report = await audit(stores.postgresql_url, kept=[kept])
        assert named(report) == {("kept_head", 11, None, None)}

    @pytest.mark.usefixtures("sale")
    async def test_a_kept_head_of_another_record_is_named(self, stores: Stores) -> None:
        """Its partition is not there."""
        report = await audit(stores.postgresql_url, kept=[Head(4, 1, 8, b"x" * 32)])
        assert {(v.rule, v.partition, v.seq) for v in report.violations.kept} == {
            ("kept_head", 4, 8)
        }

    async def test_each_partition_is_looked_at(self, stores: Stores, record: Record) -> None:
        """A violation says which."""
        for partition in (0, 1):
            sale = Sale(partition, 2)
            sale.open(2 + partition, 1)
            sale.book(2 + partition, "a", "b")
            await put_on_record(stores, sale)
        assert named(await audit(stores.postgresql_url)) == set()
        await record.execute("UPDATE journal SET at = now() WHERE partition = 1 AND seq = 3")
        report = await audit(stores.postgresql_url)
        assert [(v.rule, v.partition, v.event_id) for v in report.violations.kept] == [
            ("hash", 1, 3)
        ]


@pytest.mark.usefixtures("sale")
async def test_an_audit_waits_for_a_restore(stores: Stores) -> None:
    """The tables are empty for a moment, and nobody may take that for the record."""
    async with replacing(stores.postgresql_url) as record:
        auditing = asyncio.ensure_future(audit(stores.postgresql_url))
        await somebody_waits(record)
    report = await auditing
    assert (report.verdict, [event.event_id for event in report.events]) == ("holds", [1])


async def test_it_waits_longer_than_a_writer_would(stores: Stores) -> None:
    """A restore of a million changes holds the tables for longer than five seconds."""
    async with await JournalView.open(stores.postgresql_url) as view:
        assert await view._connection.fetchval("SHOW lock_timeout") == "30s"
