"""The operator's commands that decide: each runs the handshake, with a verdict or a confirmation.

What is heavy (settings, the stores' clients) is imported by the command that needs it, so that
`--help` answers at once.
"""

import asyncio
import json
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from service.errors import ConfigurationError
from service.losses import Loss
from service.terminal import NothingRunsError, log_to_stderr, read_settings, store_urls

if TYPE_CHECKING:
    from service.given_verdicts import Given
    from service.looking import OnProgress
    from service.orders import Order
    from service.settings import Settings

_CHANGE = re.compile(r"(\d{1,18})-(\d{1,18})", re.ASCII)
_PARTITION = click.IntRange(0, 99)
_partitions = click.option(
    "--partition", "partitions", type=_PARTITION, multiple=True, help="Only this one; repeatable."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")


@click.command()
@_partitions
@_as_json
def rebuild(partitions: tuple[int, ...], *, as_json: bool) -> None:
    """Make Redis anew from the record; the sale may be open.

    What Redis has and the record lacks is put on record first, so nothing is lost. Requests wait
    meanwhile. Exit 0: rebuilt and open; 1: stays closed, or was opened as it was, and why; 2: it
    could not be done now.
    """
    from service.orders import Order  # noqa: PLC0415  # heavy

    def order(on_progress: "OnProgress | None") -> Order:
        reason = "an operator ordered a rebuild"
        if on_progress is None:
            return Order(reason, "rebuild")
        return Order(reason, "rebuild", progress=on_progress)

    _give("rebuild", partitions, order, as_json=as_json, rebuilding=True)


@click.command()
@click.option(
    "--reason", required=True, help="Why: every refusal says it, and the record keeps it."
)
@_partitions
@_as_json
def close(reason: str, partitions: tuple[int, ...], *, as_json: bool) -> None:
    """Stop selling: requests get 503 `closed` with the reason.

    Until `onsale open` or another command that ends in a handshake, or until a worker or the writer
    is started: each compares anew, and opens. Exit 0: closed; 2: it could not be done now.
    """
    from service.orders import Order  # noqa: PLC0415  # heavy

    reason = " ".join(reason.split())
    if not reason or not reason.isprintable():
        msg = "--reason must be a text"
        raise click.UsageError(msg)
    _give(
        "close",
        partitions,
        lambda _: Order(reason, "stay_closed"),
        as_json=as_json,
        closing=reason,
    )


@click.command("open")
@_partitions
@_as_json
def open_(partitions: tuple[int, ...], *, as_json: bool) -> None:
    """Compare the stores anew, and sell again if they agree.

    Exit 0: open; 1: stays closed, and why; 2: it could not be done now.
    """
    _give("open", partitions, lambda _: None, as_json=as_json)


@click.command("confirm-loss")
@_partitions
@click.option("--apply", is_flag=True, help="Confirm it, and go on without what is lost.")
@click.option(
    "--lost",
    nargs=2,
    metavar="FIRST LAST",
    help="With --apply and one --partition: confirm these changes, as shown, and no more.",
)
@_as_json
def confirm_loss(
    partitions: tuple[int, ...],
    *,
    apply: bool,
    lost: tuple[str, str] | None,
    as_json: bool,
) -> None:
    """Show what a closed sale has lost; with --apply, go on without it.

    What is shown ends with the command that confirms exactly that. With --apply alone it is what is
    lost by then, and is shown too. Exit 0: there is nothing to confirm, or with --apply, it is open
    again; 1: there is something, or with --apply, it stays closed, and why: also where more is lost
    than --lost names, which is shown and not confirmed; 2: cannot tell.
    """
    if lost and (not apply or len(partitions) != 1):
        msg = "--lost goes with --apply and one --partition"
        raise click.UsageError(msg)
    read = _range(lost) if lost else None
    settings, redis, postgresql = _stores("confirm-loss")
    from service import confirming, looking  # noqa: PLC0415  # heavy

    async def run() -> "list[confirming.Found]":
        if not apply:
            return await confirming.look(settings, redis, postgresql, partitions)
        return await confirming.confirm(settings, redis, postgresql, partitions, read)

    found = looking.looked("comparing", lambda _: asyncio.run(run()), unknown=ConfigurationError)
    if isinstance(found, int):
        sys.exit(looking.cut_short(found, machine_readable=as_json))
    code = confirming.exit_code(found, applied=apply)
    if as_json:
        looking.say(json.dumps(confirming.to_json(found, code)))
    else:
        looking.say(confirming.render(found))
    sys.exit(code)


def _range(ends: tuple[str, str]) -> Loss:
    """Read the two ends of what was lost, as `confirm-loss` prints them. Raises UsageError."""
    first, last = (_CHANGE.fullmatch(end) for end in ends)
    if first is None or last is None or first[1] != last[1]:
        msg = f"--lost {' '.join(ends)} is not the range of one epoch, such as 5-91 5-100"
        raise click.UsageError(msg)
    return Loss(int(first[1]), int(first[2]), int(last[2]))


def _give(
    command: str,
    partitions: tuple[int, ...],
    order: "Callable[[OnProgress | None], Order | None]",
    *,
    as_json: bool,
    closing: str | None = None,
    rebuilding: bool = False,
) -> None:
    settings, redis, postgresql = _stores(command)
    from service import given_verdicts, looking  # noqa: PLC0415  # heavy

    async def run(on_progress: "OnProgress | None") -> "list[Given]":
        async with given_verdicts.reaching(settings, redis, postgresql) as handshakes:
            return await given_verdicts.give(handshakes, partitions, order(on_progress))

    found = looking.looked(
        "recording", lambda progress: asyncio.run(run(progress)), unknown=ConfigurationError
    )
    if isinstance(found, int):
        sys.exit(looking.cut_short(found, machine_readable=as_json))
    code = given_verdicts.exit_code(found, closing=closing, rebuilding=rebuilding)
    given_verdicts.show(found, code, machine_readable=as_json)
    sys.exit(code)


def _stores(command: str) -> "tuple[Settings, str, str]":
    settings = read_settings()
    try:
        redis, postgresql = store_urls(settings)
    except NothingRunsError as error:
        raise ConfigurationError(str(error)) from None  # exit 2: it cannot be done
    log_to_stderr(settings, command)
    return settings, redis, postgresql


COMMANDS: tuple[click.Command, ...] = (rebuild, close, open_, confirm_loss)
