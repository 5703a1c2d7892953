"""`onsale deadletters`: how an operator gets past a change that PostgreSQL refuses."""

import sys
from typing import TYPE_CHECKING

import click

from service.errors import ConfigurationError
from service.terminal import NothingRunsError, log_to_stderr, read_settings, store_urls

if TYPE_CHECKING:
    from service.settings import Settings

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_APPLY = click.option("--apply", is_flag=True, help="Do it; without this, only say what would be.")


@click.group()
def deadletters() -> None:
    """Get past a change that PostgreSQL refuses: list, set aside, put back.

    While the sale is open: a partition is closed for as long as a handshake takes.
    """


@deadletters.command("list")
@_JSON
def list_(*, as_json: bool) -> None:
    """List the dead letters of each event, and what a writer stands before.

    Exit 0: neither; 1: something is kept or stands; 2: cannot tell.
    """
    settings, redis, postgresql = _begin()
    from service import deadletters_report  # noqa: PLC0415  # heavy

    sys.exit(deadletters_report.run_list(redis, postgresql, settings, as_json=as_json))


@deadletters.command()
@click.argument("partition", type=click.IntRange(0, 99))
@click.argument("seqs", nargs=-1, required=True, type=click.IntRange(min=1), metavar="SEQ...")
@_APPLY
@_JSON
def move(partition: int, seqs: tuple[int, ...], *, apply: bool, as_json: bool) -> None:
    """Set the refused change SEQ of PARTITION aside, and freeze its event.

    Those and no others that `list` names: the change, and the later ones of its event with it. The
    rest of the partition goes on. Exit 0: set aside; 1: planned, or not possible; 2: not now.
    """
    settings, redis, postgresql = _begin()
    from service import deadletters_report  # noqa: PLC0415  # heavy

    code = deadletters_report.run_move(
        redis, postgresql, settings, partition, seqs, apply=apply, as_json=as_json
    )
    sys.exit(code)


@deadletters.command()
@click.argument("event_id", type=click.IntRange(1, 2**53 - 1))
@_APPLY
@_JSON
def retry(event_id: int, *, apply: bool, as_json: bool) -> None:
    """Put all dead letters of EVENT_ID on record, in order, and open the event again.

    All or none; may be repeated. Exit 0: on record, or there are none; 1: planned, refused again,
    or no such event; 2: not now.
    """
    settings, redis, postgresql = _begin()
    from service import deadletters_report  # noqa: PLC0415  # heavy

    code = deadletters_report.run_retry(
        redis, postgresql, settings, event_id, apply=apply, as_json=as_json
    )
    sys.exit(code)


def _begin() -> "tuple[Settings, str, str]":
    """Return the settings, and the URLs of the stores that they name or that run here."""
    settings = read_settings()
    try:
        redis, postgresql = store_urls(settings)
    except NothingRunsError as error:
        raise ConfigurationError(str(error)) from None  # exit 2: it cannot tell
    log_to_stderr(settings, "deadletters")
    return settings, redis, postgresql
