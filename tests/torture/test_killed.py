"""kill -9 of each process of a service that sells, at random moments."""

from pathlib import Path

import pytest

from tests.deployment import Deployment
from tests.torture.broken import without
from tests.torture.faults import FAULTS
from tests.torture.sale import deployed, holds, judge, selling


@pytest.mark.torture("valkey_killed")
async def test_valkey_is_killed(template: Path, tmp_path: Path, seed: int) -> None:
    """No answer is lost, nothing is done twice, and the record is what the answers say."""
    async with deployed(tmp_path, template) as deployment:
        holds(await _valkey_killed(deployment, seed))


async def _valkey_killed(deployment: Deployment, seed: int, *, control: bool = False) -> list[str]:
    async with selling("valkey_killed", seed, deployment) as sale:
        for _ in range(FAULTS[sale.fault].each):
            await sale.some(5, 120)
            await sale.do(deployment.restart_valkey)
    return await judge(sale, control=control)


@pytest.mark.torture("valkey_killed")
async def test_control_of_valkey_killed(template: Path, tmp_path: Path) -> None:
    """Without the memory of keys a repeat is answered as another request."""
    keyed = "if keyed == '' or known.tail == '' then"
    build = without(tmp_path, ("lua/include/keyed.lua", keyed, "if true then"))
    async with deployed(tmp_path, template, build) as deployment:
        assert await _valkey_killed(deployment, 0, control=True)
