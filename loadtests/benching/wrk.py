"""wrk, with a script of its own for each run: closed loop, the cheapest generator there is.

wrk hangs up when its time is over, and does not wait for what is in flight: up to one request for
each connection may have had its effect without a counted answer. That bound is exact.
"""

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

from loadtests.benching.measures import Sent
from loadtests.benching.traffic import Traffic

_MARK = "onsale-bench "
_TIMEOUT_S = 10

_DONE = """
local thread
function setup(t) thread = t end
function done(summary, latency, requests)
  local e, told = summary.errors, {}
  for status, count in pairs(thread:get("counted") or {}) do
    told[#told + 1] = string.format('"%d":%d', status, count)
  end
  local lost = e.connect + e.read + e.write + e.timeout
  io.write(MARK, string.format(
    '{"seconds":%.6f,"answers":%d,"refused":%d,"errors":%d,"p50":%.1f,"p99":%.1f,"statuses":{%s}}',
    summary.duration / 1e6, summary.requests, e.status, lost,
    latency:percentile(50), latency:percentile(99), table.concat(told, ",")), "\\n")
end
"""

_STATUSES = """
counted = {}
function response(status)
  counted[status] = (counted[status] or 0) + 1
end
"""


def installed() -> bool:
    """Whether there is a wrk."""
    return shutil.which("wrk") is not None


def script(traffic: Traffic, host: str, seed: int) -> str:
    """Return the Lua that wrk runs."""
    statuses = _STATUSES if traffic.counts_statuses else ""
    return f"local MARK = {json.dumps(_MARK)}\n" + traffic.lua(host, seed) + statuses + _DONE


def parse(output: str, connections: int) -> Sent:
    """Read what the script has printed. Raises ValueError where wrk did not get as far."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            found = json.loads(line.removeprefix(_MARK))
            return Sent(
                seconds=found["seconds"],
                answers=found["answers"],
                refused=found["refused"],
                errors=found["errors"],
                p50_ms=found["p50"] / 1000,
                p99_ms=found["p99"] / 1000,
                in_flight_max=connections,
                statuses=found["statuses"],
            )
    msg = f"wrk printed no result: {output.strip()[-500:]}"
    raise ValueError(msg)


async def send(address: str, traffic: Traffic, *, connections: int, seconds: float) -> Sent:
    """Send for whole seconds, one at least: wrk knows no others."""
    host = address.removeprefix("http://")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script(traffic, host, seed=1))
        file.flush()
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        argv += [f"--timeout={_TIMEOUT_S}s", "-s", str(Path(file.name)), address]
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return parse(output.decode(errors="replace"), connections)
