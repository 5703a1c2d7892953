"""What the commands of `onsale` share: settings, logging, the stores' URLs, and how they end.

Whatever is refused is one line on stderr and an exit code: 2 for a setting, 1 for the rest.
"""

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from service import standard_streams
from service.errors import ConfigurationError
from service.rundir import RunDirectory, Service

if TYPE_CHECKING:
    from service.settings import Settings


class Commands(click.Group):
    """A group whose commands may raise ConfigurationError."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run a command with three open streams; output that cannot be written is one line."""
        standard_streams.open_missing()
        code: Any = 1
        said = ""
        try:
            super().main(*arguments, **options)
        except SystemExit as end:
            code = end.code
        except OSError as error:
            said = error.strerror or str(error)
        if why := standard_streams.flush():
            said = f"the output cannot be written: {why}"
            code = code or 1
        if said:
            with contextlib.suppress(OSError):
                click.echo(f"onsale: {said}", err=True)
            standard_streams.flush()
        sys.exit(code)

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


def read_settings() -> "Settings":
    """Return the settings. Raises ConfigurationError."""
    from service.settings import load_settings  # noqa: PLC0415  # heavy

    return load_settings()


def log_to_stderr(settings: "Settings", command: str) -> None:
    """Log as the settings say; a role that `onsale up` started has its name from there."""
    from service import logs  # noqa: PLC0415  # heavy

    logs.configure(
        level=settings.log_level,
        format_=settings.log_format,
        role=settings.role or command,
    )


class NothingRunsError(Exception):
    """Neither the settings nor a running service say where a store is."""

    def __init__(self, settings: "Settings") -> None:
        """Say what would help."""
        super().__init__(
            f"no service runs on {settings.data_dir.expanduser().resolve()}; start one with"
            " `onsale up`, or set REDIS_URL and DATABASE_URL"
        )


def store_urls(settings: "Settings") -> tuple[str, str]:
    """Return the URLs of Redis and of the record: the user's own, or those of what runs here.

    Raises NothingRunsError.
    """
    return redis_url(settings), database_url(settings)


def redis_url(settings: "Settings") -> str:
    """Return the URL of Redis. Raises NothingRunsError."""
    return settings.own_redis_url or _running(settings).redis


def database_url(settings: "Settings") -> str:
    """Return the URL of the record. Raises NothingRunsError."""
    return settings.postgresql_url or _running(settings).postgresql


def _running(settings: "Settings") -> Service:
    service = RunDirectory(settings.data_dir).read_service()
    if service is None:
        raise NothingRunsError(settings)
    return service
