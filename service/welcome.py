"""The first screen: where the service is, and the two commands that sell a first ticket."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_JSON = "-H 'content-type: application/json'"


def onsale_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("onsale")
    except PackageNotFoundError:
        return "(not installed)"


def welcome(
    address: str, data: Path, stores: Sequence[str], bounds: str, *, remote: bool, closed: str = ""
) -> str:
    """Return the screen; in a fresh database its two commands work as they stand."""
    lines = [
        f"Onsale {onsale_version()} serves on {address} (documentation: {address}/docs)",
        f"  stores  {', '.join(stores)}",
        f"  data    {data}",
        f"  logs    {data / 'log'}",
        f"  bounds  {bounds}",
        "",
        "Open an event with 9 tickets (its answer has the id), then book the first:",
        "",
        f"""curl {address}/initialize {_JSON} -d '{{"name": "First night", "totalTickets": 9}}'""",
        f"""curl {address}/book {_JSON} -d '{{"eventId": 1, "userId": 1}}'""",
        "",
    ]
    if closed:
        lines += ["NOTHING IS SOLD, the stores do not agree:", f"  {closed}", ""]
    if remote:
        lines.append("There is no authentication: whoever reaches this address may do everything.")
    lines.append("Ctrl-C stops it; what was booked stays.")
    return "\n" + "\n".join(lines) + "\n\n"
