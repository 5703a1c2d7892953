"""The `onsale` command: one sub-command per role, and the operator's.

What is heavy (settings, the web server) is imported by the command that needs it, so that `--help`
answers at once.
"""

import sys

import click

from service import environment
from service.backup_commands import BACKUP_COMMANDS
from service.deciding import COMMANDS as DECIDING
from service.listener import AddressError
from service.operating import COMMANDS as OPERATING
from service.rundir import AlreadyRunningError
from service.terminal import Commands, Failure, log_to_stderr, read_settings
from service.welcome import onsale_version


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
    environment.forget_client_defaults()


@main.command()
def up() -> None:
    """Start everything on this machine, and keep it running.

    Starts Valkey and PostgreSQL under ONSALE_DATA_DIR (./data), unless REDIS_URL, DATABASE_URL or
    DB_HOST name your own, migrates, and serves on HOST and PORT. Ctrl-C stops all of it.
    """
    settings = read_settings()
    from service import supervisor  # noqa: PLC0415  # heavy

    log_to_stderr(settings, "up")
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
    settings = read_settings()
    from service.app import serve_api  # noqa: PLC0415  # heavy

    log_to_stderr(settings, "api")
    try:
        serve_api(settings, fd)
    except AddressError as error:
        raise Failure(str(error)) from None


@main.command()
def writer() -> None:
    """Run the writer, which puts every change on record."""
    settings = read_settings()
    from service.app import run_writer  # noqa: PLC0415  # heavy

    log_to_stderr(settings, "writer")
    run_writer(settings)


for _command in (*OPERATING, *DECIDING, *BACKUP_COMMANDS):
    main.add_command(_command)
