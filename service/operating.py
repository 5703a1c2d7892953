"""The operator's commands: each reads the settings, calls one function, and prints what it says.

What is heavy (settings, the stores' clients) is imported by the command that needs it, so that
`--help` answers at once.
"""

import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Coroutine
from typing import IO, TYPE_CHECKING, Any

import click

from service import migrations
from service.deadletters_commands import deadletters
from service.errors import ConfigurationError
from service.resources import is_checkout, sql_directory
from service.store_urls import masked
from service.terminal import (
    Failure,
    NothingRunsError,
    database_url,
    log_to_stderr,
    read_settings,
    store_urls,
)

if TYPE_CHECKING:
    from service.settings import Settings

_EVENT_ID = click.IntRange(1, 2**53 - 1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"redis": …, "postgresql": …}.')
@click.option("--with-passwords", is_flag=True, help="Print passwords instead of ***.")
def urls(*, as_json: bool, with_passwords: bool) -> None:
    """Print the addresses of the two stores.

    Without --json as assignments that a shell can evaluate.
    """
    try:
        redis, postgresql = store_urls(read_settings())
    except NothingRunsError as error:
        raise Failure(str(error)) from None
    if not with_passwords:
        redis, postgresql = masked(redis), masked(postgresql)
    if as_json:
        click.echo(json.dumps({"redis": redis, "postgresql": postgresql}))
    else:
        click.echo(f"REDIS_URL={shlex.quote(redis)}\nDATABASE_URL={shlex.quote(postgresql)}")


@click.command()
@click.option("--url", help="Ask there, such as http://127.0.0.1:3000, instead of HOST and PORT.")
@click.option("--live", is_flag=True, help="Ask /livez: does the process answer at all?")
def health(url: str | None, *, live: bool) -> None:
    """Ask a service for /readyz: exit 0 while bookings are taken, else 1, with the reason."""
    from service import health  # noqa: PLC0415  # heavy

    if url is None:
        settings = read_settings()
        url = health.local_url(settings.host, settings.port)
    found = asyncio.run(health.ask(url, "/livez" if live else "/readyz"))
    word = "live" if live else "ready"
    if not found.healthy:
        why = ": ".join(filter(None, (found.code, found.detail)))
        msg = f"not {word}: {why}"
        raise Failure(msg)
    click.echo(word)


@click.command()
@click.option("--people", type=click.IntRange(1, 100_000), default=3_000, show_default=True)
@click.option("--tickets", type=click.IntRange(1, 10_000_000), default=300, show_default=True)
@click.option(
    "--cancel",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="The share of those holding a ticket or waiting who cancel.",
)
def demo(*, people: int, tickets: int, cancel: float) -> None:
    """Hold a sale: send a crowd at an event, and show what came of it.

    Uses the service that runs on ONSALE_DATA_DIR; where none runs it starts one, and stops it
    again. Exit code: 0 when Redis and PostgreSQL agree, 1 when they do not or an answer was not as
    promised, 2 when that cannot be told.
    """
    settings = read_settings()
    from service import demo, serving  # noqa: PLC0415  # heavy

    log_to_stderr(settings, "demo")
    try:
        sys.exit(demo.demo(settings, people=people, tickets=tickets, cancel=cancel))
    except (demo.DemoError, serving.ServingError) as error:
        raise Failure(str(error)) from None


@click.command()
@click.argument("event_ids", nargs=-1, type=_EVENT_ID, metavar="[EVENT_ID]...")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--repair", is_flag=True, help="Show how a drift would be repaired.")
@click.option("--apply", is_flag=True, help="With --repair: do it, and compare again.")
def reconcile(event_ids: tuple[int, ...], *, as_json: bool, repair: bool, apply: bool) -> None:
    """Compare Redis with the record, user by user, while the sale is open.

    All events, or those named. Changes that are in flight are taken into account. Writes nothing,
    but with --repair --apply: then Redis is made anew from the record, where that holds. Exit 0:
    clean; 1: drift, or a frozen event; 2: cannot tell.
    """
    if apply and not repair:
        msg = "--apply belongs to --repair"
        raise click.UsageError(msg)
    settings = read_settings()
    try:
        redis, postgresql = store_urls(settings)
    except NothingRunsError as error:
        raise ConfigurationError(str(error)) from None  # exit 2: it cannot tell
    log_to_stderr(settings, "reconcile")
    if repair:
        from service.repair import run  # noqa: PLC0415  # heavy

        only = event_ids or None
        sys.exit(run(settings, redis, postgresql, only, apply=apply, machine_readable=as_json))
    from service import reconcile_report  # noqa: PLC0415  # heavy

    code = reconcile_report.run(
        redis,
        postgresql,
        event_ids or None,
        machine_readable=as_json,
        metrics_directory=settings.metrics_directory,
    )
    sys.exit(code)


@click.command()
@click.argument("event_ids", nargs=-1, type=_EVENT_ID, metavar="[EVENT_ID]...")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option(
    "--head", is_flag=True, help="Print the journal's last hashes, to be kept in a safe place."
)
@click.option(
    "--since-head",
    "kept",
    type=click.File(errors="backslashreplace"),
    help="Prove too that all heads in this file, printed by --head earlier, are in the journal.",
)
def audit(event_ids: tuple[int, ...], *, as_json: bool, head: bool, kept: IO[str] | None) -> None:
    """Replay the whole journal and prove what the record says.

    No gap, no row edited by hand, epochs chained; and for all events, or those named: never above
    capacity, nobody overtaken, nobody twice, the tables equal to the journal. Reads PostgreSQL
    alone and writes nothing; the sale may be open. Exit 0: all of it holds; 1: a violation, named
    with its journal row; 2: cannot tell.
    """
    settings = read_settings()
    from service import audit_report, kept_heads  # noqa: PLC0415  # heavy

    heads = kept_heads.parse(kept.read()) if kept else ()
    postgresql = _record_to_look_at(settings)
    log_to_stderr(settings, "audit")
    code = audit_report.run(
        postgresql, event_ids or None, machine_readable=as_json, head=head, kept=heads
    )
    sys.exit(code)


@click.command()
@click.argument("event_id", type=_EVENT_ID)
@click.argument("user_id", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option(
    "--limit",
    type=click.IntRange(2, 10_000_000),
    default=100,
    show_default=True,
    help="Print so many changes: the first and the newest.",
)
def history(event_id: int, user_id: str | None, *, as_json: bool, limit: int) -> None:
    """Tell what happened at an event, or to one user of it, from the journal.

    Reads PostgreSQL alone. Times are UTC. Exit 0: told; 1: there is no such history; 2: cannot
    tell.
    """
    settings = read_settings()
    postgresql = _record_to_look_at(settings)
    log_to_stderr(settings, "history")
    from service import history_report  # noqa: PLC0415  # heavy

    sys.exit(
        history_report.run(postgresql, event_id, user_id, limit=limit, machine_readable=as_json)
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def settings(*, as_json: bool) -> None:
    """Print every setting, its value in force and what it means; no passwords.

    An asterisk marks what is not at its default.
    """
    in_force = read_settings()
    from service import settings_table  # noqa: PLC0415  # heavy

    if as_json:
        click.echo(json.dumps(settings_table.as_json(in_force)))
    else:
        click.echo(settings_table.as_text(in_force), nl=False)


@click.group()
def migrate() -> None:
    """Change the database schema, by the files under sql/.

    Works on DATABASE_URL or DB_HOST, else on the database of the running service.
    """


@migrate.command("up")
def migrate_up() -> None:
    """Apply all migrations that are pending."""
    _print(lambda: migrations.migrate_up(_record(), sql_directory()))


@migrate.command("down")
def migrate_down() -> None:
    """Take the latest migration back."""
    _print(lambda: migrations.migrate_down(_record(), sql_directory()))


@migrate.command("status")
def migrate_status() -> None:
    """List the migrations, applied and pending."""
    _print(lambda: migrations.migration_status(_record(), sql_directory()))


@migrate.command("new")
@click.argument("name")
def migrate_new(name: str) -> None:
    """Write an empty migration NAME under sql/ of a checkout."""
    if not is_checkout():
        msg = "a new migration belongs into a checkout; this is an installed package"
        raise Failure(msg)
    _print(lambda: migrations.new_migration(name, sql_directory()))


def _record_to_look_at(settings: "Settings") -> str:
    try:
        return database_url(settings)
    except NothingRunsError as error:
        raise ConfigurationError(str(error)) from None  # exit 2: it cannot tell


def _record() -> str:
    try:
        return database_url(read_settings())
    except NothingRunsError as error:
        raise Failure(str(error)) from None


def _print(call: Callable[[], Coroutine[Any, Any, str]]) -> None:
    try:
        click.echo(asyncio.run(call()), nl=False)
    except migrations.MigrationError as error:
        raise Failure(str(error)) from None


COMMANDS: tuple[click.Command, ...] = (
    urls,
    health,
    demo,
    reconcile,
    audit,
    history,
    deadletters,
    settings,
    migrate,
)
