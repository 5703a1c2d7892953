"""What is logged: one line of JSON per thing, and no password in it."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from service import logs

log = structlog.stdlib.get_logger("onsale.test")

Written = Callable[[], str]
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str], restored_logging: None) -> Written:
    """Return what was written to stderr since the last look."""
    return lambda: capsys.readouterr().err


@pytest.fixture
def lines(written: Written) -> Lines:
    """Return what was logged since the last look, decoded line by line."""
    return lambda: [json.loads(line) for line in written().splitlines()]


def test_a_line_is_json_where_nobody_reads_along(lines: Lines) -> None:
    """With time, level, logger and event first, and everything else by its name."""
    logs.configure(role="api-2")
    log.info("epoch decided", partition=3, verdict="continue")
    (line,) = lines()
    assert list(line) == [
        "timestamp",
        "level",
        "logger",
        "event",
        "process",
        "partition",
        "verdict",
    ]
    assert (line["event"], line["process"], line["partition"]) == ("epoch decided", "api-2", 3)


def test_values_keep_their_types(lines: Lines) -> None:
    """What JSON has a type for stays of it, at every depth, and passwords go from there too."""
    logs.configure()
    log.info("x", none=None, yes=True, number=1.5, deep={"a": [1, None, "redis://:pw@h"]})
    (line,) = lines()
    assert (line["none"], line["yes"], line["number"]) == (None, True, 1.5)
    assert line["deep"] == {"a": [1, None, "redis://:***@h"]}


def test_other_libraries_lines_are_json_too(lines: Lines) -> None:
    """Their arguments are in the text."""
    logs.configure()
    logging.getLogger("somebody.else").warning("%d of %s", 3, "these")
    assert [line["event"] for line in lines()] == ["3 of these"]


def test_a_person_reads_text(written: Written) -> None:
    """One line, without control characters where there is no terminal."""
    logs.configure(format_="console")
    log.warning("role down", role="writer", why="ended (1)")
    (line,) = written().splitlines()
    assert "role down" in line
    assert "role=writer" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize(
    "text",
    [
        "redis://:s3cret@host:6379/0",
        "rediss://app:s3cret@host/0?ssl_ca_certs=/ca.pem",
        "connecting to postgresql://onsale:s3cret@host:5432/onsale failed",
        "postgresql://host/onsale?user=onsale&password=s3cret",
        "postgresql://a:s3cret@b/c and redis://:s3cret@d",
    ],
)
def test_no_line_holds_a_password(written: Written, text: str, format_: logs.Format) -> None:
    """Neither as the event, nor as a value, nor in an exception or its traceback."""
    logs.configure(format_=format_)
    log.info(text)
    log.info("a value", url=text, error=ValueError(text), several=[text])
    logging.getLogger("somebody.else").error("could not: %s", text)
    try:
        raise RuntimeError(text)
    except RuntimeError:
        log.exception("failed")
    output = written()
    assert output.count("***") == 6 * text.count("s3cret")
    assert "s3cret" not in output


def test_the_level_is_a_bound(lines: Lines) -> None:
    """From this level on, and nothing below."""
    logs.configure(level="warning")
    log.info("below")
    log.warning("at")
    assert [line["event"] for line in lines()] == ["at"]
