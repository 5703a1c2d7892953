"""`onsale health` against the real service, as a container's check runs it."""

import subprocess
import sys

import pytest

from tests.http.conftest import Service


@pytest.mark.parametrize(("option", "word"), [([], "ready"), (["--live"], "live")])
def test_a_running_service_is_healthy(service: Service, option: list[str], word: str) -> None:
    """One word, and exit 0."""
    result = subprocess.run(
        [sys.executable, "-m", "service", "health", "--url", service.url, *option],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{word}\n", "")
