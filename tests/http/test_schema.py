"""Schemathesis: whatever `/openapi.json` allows or forbids is answered as it says.

In all its phases (examples, coverage, fuzzing, sequences of requests) and with all its checks, but
for one that `schema_hooks.py` replaces; `ignored_auth` and `object_level_authorization` find
nothing to look at as long as there is no authentication. Generated examples per operation:
`ONSALE_TEST_EXAMPLES` / 250, which is 20 unless set, and 200 in the fault suite;
`ONSALE_TEST_SEED` is the seed, 1 unless set.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from service import openapi
from tests.http.conftest import Service

EXAMPLES = int(os.environ.get("ONSALE_TEST_EXAMPLES") or 5_000) // 250
SEED = os.environ.get("ONSALE_TEST_SEED") or "1"
ROOT = Path(__file__).resolve().parents[2]
PHASES = {"examples", "coverage", "fuzzing", "stateful"}


def test_the_service_is_as_its_document_says(service: Service, tmp_path: Path) -> None:
    """No check fails on any operation, no answer is 500 or above, and nothing is logged as one."""
    failures = service.failures()
    report = tmp_path / "report.json"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            *("--phases", ",".join(sorted(PHASES)), "--seed", SEED),
            *("--max-examples", str(max(EXAMPLES, 1)), "--workers", "1"),
            *("--generation-database", "none", "--no-color", "--request-timeout", "30"),
            *("--continue-on-failure", "--report-json-path", str(report)),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "NO_PROXY": "*",
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.http.schema_hooks",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8_000:]
    told = json.loads(report.read_text())
    assert told["operations"]["tested"] == sum(map(len, openapi.document()["paths"].values()))
    assert {name: phase["status"] for name, phase in told["phases"].items()} == dict.fromkeys(
        PHASES, "success"
    )
    assert service.failures() == failures
    assert service.api.lives
