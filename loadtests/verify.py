"""Verifies a sale after the crowd has gone: what people were told, the record, and Redis.

Reads the file of answers that the load test wrote, waits until the record has caught up with
Redis, replays the event's journal, and holds everything against everything. It writes nothing and
guesses nothing: what it cannot see it cannot tell.

    .venv/bin/python -m loadtests.verify [loadtests/out/answers.jsonl]

Finds the stores as `onsale urls` does. Exits 0 when every check holds, 1 when one does not, 2 when
it cannot tell.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

from redis.exceptions import RedisError

from loadtests.answers import Answers, Sale, UnreadableAnswersError, read_answers
from loadtests.checks import Check, check_answers
from loadtests.replay import History
from loadtests.stores import CannotTellError, Record, check_record
from service.browser import Browser
from service.errors import ConfigurationError
from service.ledger import UNAVAILABLE
from service.postgresql_client import connect
from service.reconciler import UnknownEventError, reconcile
from service.redis_store import RedisStore
from service.rundir import RunDirectory
from service.settings import load_settings

ANSWERS = Path("loadtests/out/answers.jsonl")
PATIENCE_S = 60.0
SHOWN_MAX = 5


def main() -> int:
    """Verify, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("answers", type=Path, nargs="?", default=ANSWERS)
    parser.add_argument("--patience", type=float, default=PATIENCE_S, metavar="SECONDS")
    chosen = parser.parse_args()
    try:
        answers = read_answers(chosen.answers)
        checks, unknown = asyncio.run(verify(answers, patience_s=chosen.patience))
    except (CannotTellError, UnreadableAnswersError, ConfigurationError) as error:
        return _cannot_tell(str(error))
    except RedisError as error:
        return _cannot_tell(f"Redis: {error}")
    except UNAVAILABLE as error:
        return _cannot_tell(f"{type(error).__name__}: {error}")
    print(render(answers.sale, checks, unknown))
    if any(check.wrong for check in checks):
        return 1
    return 2 if unknown else 0


def _cannot_tell(reason: str) -> int:
    sys.stderr.write(f"verify: cannot tell: {' '.join(reason.split())}\n")
    return 2


def stores() -> tuple[str, str]:
    """Return the URLs of Redis and PostgreSQL, as `onsale urls` finds them."""
    settings = load_settings()
    service = RunDirectory(settings.data_dir).read_service()
    redis = settings.own_redis_url or (service.redis if service else None)
    postgresql = settings.postgresql_url or (service.postgresql if service else None)
    if redis is None or postgresql is None:
        msg = (
            f"no service runs on {settings.data_dir.expanduser().resolve()};"
            " set ONSALE_DATA_DIR, or REDIS_URL and DATABASE_URL"
        )
        raise CannotTellError(msg)
    return redis, postgresql


async def verify(answers: Answers, *, patience_s: float) -> tuple[list[Check], str]:
    """Return all checks, and what kept one of them from telling. Raises CannotTellError."""
    redis_url, postgresql_url = stores()
    sale = answers.sale
    # First, because it brings an event into Redis that was rebuilt since.
    answered = await _status(sale)
    redis = RedisStore(redis_url)
    connection = await connect(postgresql_url, timeout=5.0, command_timeout=120.0)
    try:
        record = Record(connection)
        await record.await_all(redis, sale.event, patience_s=patience_s)
        found = await record.read(sale.event)
    finally:
        connection.terminate()
        await redis.aclose()
    history = History(found.opened, sale.tickets, found.rows)
    checks = [*check_answers(answers, history), *check_record(found, history, sale.tickets)]
    checks.append(_check_status(answered, history))
    agreed, unknown = await _check_redis(redis_url, postgresql_url, sale.event)
    return [*checks, agreed], unknown


async def _status(sale: Sale) -> dict[str, object]:
    browser = Browser(sale.address)
    try:
        answer = await browser.ask("GET", f"/status/{sale.event}", None)
    finally:
        await browser.close()
    if answer.status not in (200, 404):
        said = f"{answer.status or 'no answer'} {answer.body.get('detail', '')}".rstrip()
        msg = f"{sale.address}/status/{sale.event}: {said}"
        raise CannotTellError(msg)
    return dict(answer.body)


def _check_status(answered: dict[str, object], history: History) -> Check:
    check = Check("GET /status is the replayed journal")
    for name, should in (
        ("totalTickets", history.capacity),
        ("remainingTickets", history.capacity - history.sold),
        ("waitingListCount", history.waiting),
    ):
        told = answered.get(name)
        check.expect(told == should, f"{name}: answered {told}, should be {should}")
    return check


async def _check_redis(redis_url: str, postgresql_url: str, event_id: int) -> tuple[Check, str]:
    """Compare Redis with the record, user by user."""
    check = Check("Redis and PostgreSQL agree (onsale reconcile)")
    try:
        report = await reconcile(redis_url, postgresql_url, event_ids=[event_id])
    except UnknownEventError as error:
        return check, str(error)
    check.looked_at = sum(event.users for event in report.events)
    for drift in report.drifts:
        who = drift.user_id or "the event"
        check.wrong.append(
            f"{who}: {drift.kind}; Redis says {drift.redis or 'nothing'},"
            f" the record {drift.record or 'nothing'}"
        )
    reasons = [part.reason for part in report.partitions if part.reason]
    reasons += [event.reason for event in report.events if event.reason]
    if report.exit_code == 2 and not reasons:
        reasons.append("users changed in every pass: is the sale still going on?")
    return check, "; ".join(reasons)


def render(sale: Sale, checks: Iterable[Check], unknown: str) -> str:
    """Return the table for a person, and each broken promise with its first cases."""
    lines = [f"Event {sale.event} of {sale.address}: {sale.tickets:,} tickets", ""]
    lines += [f"{'check':<48}{'looked at':>10}{'wrong':>8}", "-" * 66]
    broken = []
    for check in checks:
        lines.append(f"{check.name:<48}{check.looked_at:>10,}{len(check.wrong):>8,}")
        if check.wrong:
            shown = [f"  {case}" for case in check.wrong[:SHOWN_MAX]]
            if len(check.wrong) > SHOWN_MAX:
                shown.append(f"  and {len(check.wrong) - SHOWN_MAX:,} more")
            broken += ["", f"BROKEN: {check.name}", *shown]
    lines += broken
    if unknown:
        lines += ["", f"Cannot tell whether Redis and PostgreSQL agree: {unknown}"]
    if not broken and not unknown:
        lines += ["", "Every check holds."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
