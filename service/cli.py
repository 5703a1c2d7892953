"""The `onsale` command.

Reads the settings, calls one function, and turns what that refuses into one line on stderr and an
exit code: 2 for a setting, 1 for the rest. The settings, the stores' clients and the web server
are imported by the command that needs them, so that `--help` answers at once.
"""

import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from service import migrations
from service.errors import ConfigurationError
from service.listener import AddressError
from service.resources import is_checkout, sql_directory
from service.rundir import AlreadyRunningError, RunDirectory, Service
from service.welcome import onsale_version

if TYPE_CHECKING:
    from service.settings import Settings


class Commands(click.Group):
    """A group whose commands may raise ConfigurationError."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a refused setting is one line, never a traceback."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            click.echo(f"onsale: {' '.join(str(error).split())}", err=True)
            sys.exit(2)


class Failure(click.ClickException):
    """An end with exit code 1 and a text for the terminal."""

    def show(self, file: Any = None) -> None:
        """Print the text after the command's name."""
        click.echo(f"onsale: {self.message}", file=file, err=file is None)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"onsale {onsale_version()}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Onsale: a booking service for the moment when everybody wants a ticket.

    Settings come from the environment and from .env in the current directory.
    """


@main.command()
def up() -> None:
    """Start everything on this machine, and keep it running.

    Starts Valkey and PostgreSQL under ONSALE_DATA_DIR (./data), unless REDIS_URL, DATABASE_URL or
    DB_HOST name your own, migrates, and serves on HOST and PORT. Ctrl-C stops all of it.
    """
    settings = _settings()
    from service import supervisor  # noqa: PLC0415  # heavy

    _log(settings, "up")
    try:
        sys.exit(supervisor.up(settings))
    except (supervisor.StartError, AlreadyRunningError, AddressError) as error:
        raise Failure(str(error)) from None


@main.command()
@click.option(
    "--fd",
    type=click.IntRange(min=0),
    help="Serve on this inherited, listening socket.",
)
def api(fd: int | None) -> None:
    """Run one API worker, on HOST and PORT or an inherited socket."""
    settings = _settings()
    from service.app import serve_api  # noqa: PLC0415  # heavy

    _log(settings, "api")
    serve_api(settings, fd)


@main.command()
def writer() -> None:
    """Run the writer, which puts every change on record."""
    settings = _settings()
    from service.app import run_writer  # noqa: PLC0415  # heavy

    _log(settings, "writer")
    run_writer(settings)


@main.command()
@click.option("--json", "as_json", is_flag=True, help='Print {"redis": …, "postgresql": …}.')
def urls(*, as_json: bool) -> None:
    """Print the addresses of the two stores, passwords included.

    Without --json as assignments that a shell can evaluate.
    """
    settings = _settings()
    service = _running(settings)
    redis = settings.own_redis_url or (service.redis if service else None)
    postgresql = settings.postgresql_url or (service.postgresql if service else None)
    if redis is None or postgresql is None:
        raise Failure(_nothing_runs(settings))
    if as_json:
        click.echo(json.dumps({"redis": redis, "postgresql": postgresql}))
    else:
        click.echo(f"REDIS_URL={shlex.quote(redis)}\nDATABASE_URL={shlex.quote(postgresql)}")


@main.group()
def migrate() -> None:
    """Change the database schema, by the files under sql/.

    Works on DATABASE_URL or DB_HOST, else on the database of the running service.
    """


@migrate.command("up")
def migrate_up() -> None:
    """Apply all migrations that are pending."""
    _print(lambda: migrations.migrate_up(_database_url(), sql_directory()))


@migrate.command("down")
def migrate_down() -> None:
    """Take the latest migration back."""
    _print(lambda: migrations.migrate_down(_database_url(), sql_directory()))


@migrate.command("status")
def migrate_status() -> None:
    """List the migrations, applied and pending."""
    _print(lambda: migrations.migration_status(_database_url(), sql_directory()))


@migrate.command("new")
@click.argument("name")
def migrate_new(name: str) -> None:
    """Write an empty migration NAME under sql/ of a checkout."""
    if not is_checkout():
        msg = "a new migration belongs into a checkout; this is an installed package"
        raise Failure(msg)
    _print(lambda: migrations.new_migration(name, sql_directory()))


def _print(call: Callable[[], Coroutine[Any, Any, str]]) -> None:
    try:
        click.echo(asyncio.run(call()), nl=False)
    except migrations.MigrationError as error:
        raise Failure(str(error)) from None


def _settings() -> "Settings":
    from service.settings import load_settings  # noqa: PLC0415  # heavy

    return load_settings()


def _log(settings: "Settings", command: str) -> None:
    """Log as the settings say; a role that `onsale up` started has its name from there."""
    from service import logs  # noqa: PLC0415  # heavy

    logs.configure(
        level=settings.log_level,
        format_=settings.log_format,
        role=settings.role or command,
        per_request=settings.access_log,
    )


def _running(settings: "Settings") -> Service | None:
    return RunDirectory(settings.data_dir).read_service()


def _database_url() -> str:
    settings = _settings()
    if settings.postgresql_url is not None:
        return settings.postgresql_url
    service = _running(settings)
    if service is None:
        raise Failure(_nothing_runs(settings))
    return service.postgresql


def _nothing_runs(settings: "Settings") -> str:
    return (
        f"no service runs on {settings.data_dir.expanduser().resolve()}; start one with"
        " `onsale up`, or set REDIS_URL and DATABASE_URL"
    )
