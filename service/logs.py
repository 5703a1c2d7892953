"""How everything that is logged leaves the process: one line per thing that matters, on stderr.

JSON unless a person reads along. Whatever other libraries log takes the same way. Invariant: no
line holds a password, wherever in it a URL may stand.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Literal

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor

Format = Literal["auto", "json", "console"]

_PASSWORD_IN_URL = re.compile(r"(://[^\s:/?#@]*):[^\s@]+@")
_PASSWORD_IN_QUERY = re.compile(r"(?i)\b((?:ssl)?password=)[^\s&'\"]+")
QUIETER = ("httpx", "httpcore", "asyncio")
"""Loggers of libraries with a line per request or connection: from warning on at every level."""

_FIRST = ("timestamp", "level", "logger", "event")

_ENRICHED: Sequence[Processor] = (
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)
_LOGGER_FACTORY = structlog.stdlib.LoggerFactory()
# One list for ever, since loggers keep the one that they were first used with.
_PROCESSORS: list[Processor] = [
    structlog.stdlib.filter_by_level,
    *_ENRICHED,
    ProcessorFormatter.wrap_for_formatter,
]


def without_passwords(text: str) -> str:
    """Return a text in which the passwords of URLs are three asterisks."""
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD_IN_URL.sub(r"\1:***@", text))


def route() -> None:
    """Send what this package logs into the standard library's logging, where handlers wait."""
    structlog.configure(
        processors=_PROCESSORS,
        logger_factory=_LOGGER_FACTORY,
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def configure(*, level: str = "info", format_: Format = "auto", role: str = "") -> None:
    """Log to stderr from `level` on; `auto` is for a person on a terminal and JSON elsewhere.

    `role` names this process in each line of JSON.
    """
    route()
    as_json = format_ == "json" or (format_ == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=_ENRICHED,
            processors=[
                ProcessorFormatter.remove_processors_meta,
                *(_as_json(role) if as_json else _as_text()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIETER:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _as_json(role: str) -> list[Processor]:
    def in_order(_: Any, __: str, event: MutableMapping[str, Any]) -> Any:
        first = {key: event.pop(key) for key in _FIRST if key in event}
        return {**first, "process": role, **event} if role else {**first, **event}

    return [
        structlog.processors.format_exc_info,
        in_order,
        _mask_passwords,
        structlog.processors.JSONRenderer(),
    ]


def _as_text() -> list[Processor]:
    def short(_: Any, __: str, event: MutableMapping[str, Any]) -> Any:
        event.pop("logger", None)
        return {**event, "timestamp": event["timestamp"][11:19]}

    return [
        structlog.processors.format_exc_info,
        short,
        _mask_passwords,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            pad_level=False,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _mask_passwords(_: Any, __: str, event: MutableMapping[str, Any]) -> Any:
    return {key: _masked(value) for key, value in event.items()}


def _masked(value: Any) -> Any:
    """Keep what JSON has a type for; everything else as text."""
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _masked(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(held) for held in value]
    return without_passwords(str(value))
