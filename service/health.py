"""Asks a running service over HTTP how it is, as a load balancer or a container's check would.

Knows `/livez`, `/readyz` and the problem that a refusal carries; needs no client library, follows
no redirect and no proxy. Whoever answers nothing that can be understood is not healthy.
"""

import asyncio
import json
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from service.errors import ConfigurationError

HEALTH_SECONDS = 5.0
"""`/readyz` tells what is known, without asking a store; a busy service answers late."""

_SAID_CHARACTERS_MAX = 500
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Health:
    """What the service said of itself.

    `healthy` for a 200. Otherwise `code` is that of its problem, empty where there was no answer,
    and `detail` is a sentence for a person.
    """

    healthy: bool
    code: str = ""
    detail: str = ""


async def ask(url: str, path: str, seconds: float = HEALTH_SECONDS) -> Health:
    """Ask `GET <url><path>`; every failure is an answer.

    Raises ConfigurationError where `url` is none of the form http://host:port or https://host.
    """
    secure, host, port, base = _target(url)
    # HTTP/1.0, so that whatever stands in between sends the body as it is, and then closes.
    request = f"GET {base}{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port, ssl=secure or None)
            try:
                writer.write(request.encode())
                return _understood(await reader.read())
            finally:
                writer.close()
    except TimeoutError:
        return Health(healthy=False, detail=f"no answer within {seconds:g} s")
    except OSError as error:
        return Health(healthy=False, detail=f"{url}: {_reason(error)}")
    except (ValueError, LookupError, TypeError):
        return Health(healthy=False, detail="the answer is not one of Onsale's")


def local_url(host: str, port: int) -> str:
    """Return where a service that listens on HOST and PORT is reached from this machine."""
    if port == 0:
        msg = "PORT=0 is any free port: say which with --url"
        raise ConfigurationError(msg)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # asked, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reason(error: OSError) -> str:
    # What asyncio and ssl raise is worded for programmers; a failed look-up has its own numbers.
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def _understood(answer: bytes) -> Health:
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(maxsplit=2)[1])
    if status == 200:
        return Health(healthy=True)
    problem = json.loads(body)
    # A terminal and a container's log get one line, whoever answered.
    detail = " ".join(str(problem["detail"]).split())[:_SAID_CHARACTERS_MAX]
    detail = "".join(filter(str.isprintable, detail))
    return Health(healthy=False, code=str(problem["code"]), detail=detail)


def _target(url: str) -> tuple[bool, str, int, str]:
    """Take a URL apart: secure or not, host, port, and the path in front of ours."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
        host = (parts.hostname or "").encode("ascii").decode()
        base = parts.path.rstrip("/").encode("ascii").decode()
    except (ValueError, KeyError):
        host = ""
    if not host or parts.username or parts.query or parts.fragment:
        msg = "--url is not of the form http://host:port"
        raise ConfigurationError(msg)
    return parts.scheme == "https", host, port, base
