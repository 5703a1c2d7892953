"""`onsale backup` and `onsale restore`, as the command line has them."""

import sys
from pathlib import Path

import click

from service.errors import ConfigurationError
from service.terminal import NothingRunsError, log_to_stderr, read_settings, store_urls


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the writer to come to what Redis has answered.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as one JSON object.")
def backup(directory: Path, *, patience: float, as_json: bool) -> None:
    """Back up both stores into DIRECTORY, while the sale is open.

    Everything that was answered before it began is in it, of one moment. DIRECTORY must not exist;
    it holds who bought what, and only its owner can read it. Exit 0: made; 1: refused; 2: there is
    nothing to be had at the moment, and nothing is left of it.
    """
    settings = read_settings()
    redis, postgresql = _stores()
    log_to_stderr(settings, "backup")
    from service import backup_report  # noqa: PLC0415  # heavy

    code = backup_report.run(
        redis, postgresql, directory, patience_s=patience, machine_readable=as_json
    )
    sys.exit(code)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--apply", is_flag=True, help="Do it; without, the plan is printed.")
@click.option(
    "--even-if-violated",
    is_flag=True,
    help="Restore a record that `onsale audit` would not let pass.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def restore(directory: Path, *, apply: bool, even_if_violated: bool, as_json: bool) -> None:
    """Replace the record by a backup, and bring Redis and the record together again.

    Verifies DIRECTORY and prints the plan; changes nothing without --apply. The sale may be open:
    it is closed for as long as the tables are replaced and compared. What Redis's outbox has beyond
    the backup is replayed. Exit 0: done; 1: refused, or a partition stays closed; 2: cannot tell.
    """
    in_force = read_settings()
    redis, postgresql = _stores()
    log_to_stderr(in_force, "restore")
    from pydantic import SecretStr  # noqa: PLC0415  # heavy

    from service import restore_report  # noqa: PLC0415  # heavy
    from service.settings import Settings  # noqa: PLC0415  # heavy

    named = Settings(redis_url=SecretStr(redis), database_url=SecretStr(postgresql))
    code = restore_report.run(
        named, directory, apply=apply, even_if_violated=even_if_violated, machine_readable=as_json
    )
    sys.exit(code)


def _stores() -> tuple[str, str]:
    try:
        return store_urls(read_settings())
    except NothingRunsError as error:
        raise ConfigurationError(str(error)) from None  # exit 2: it cannot tell


BACKUP_COMMANDS: tuple[click.Command, ...] = (backup, restore)
