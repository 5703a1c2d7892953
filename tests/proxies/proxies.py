"""nginx and haproxy on the configurations of the documentation, on ports and files of a test."""

import contextlib
import csv
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.servers import START_S, free_port, wait_until

DOCS = Path(__file__).resolve().parents[2] / "docs" / "proxies"
NGINX = os.environ.get("ONSALE_TEST_NGINX", "/usr/sbin/nginx")
HAPROXY = os.environ.get("ONSALE_TEST_HAPROXY", "/usr/sbin/haproxy")

_NGINX_MAIN = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/onsale.conf;
}}
"""
_HAPROXY_GLOBAL = "global\n    stats socket {directory}/stats\n\n"


def configuration(file: str, listen: str, ports: Sequence[int], changes: Mapping[str, str]) -> str:
    """Return a file of the documentation with these ports, and with what a test changes."""
    text = (DOCS / file).read_text()
    replaced = {listen: listen.replace("80", "127.0.0.1:{port}")}
    for number, port in enumerate(ports, 3001):
        replaced[f"127.0.0.1:{number}"] = f"127.0.0.1:{port}"
    for old, new in {**replaced, **changes}.items():
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(
    directory: Path,
    ports: Sequence[int],
    changes: Mapping[str, str] | None = None,
    locations: Sequence[str] = (),
) -> Iterator[str]:
    """Run nginx before API processes on two ports; yield its address.

    `locations` stand in place of those of the file.
    """
    directory.mkdir()
    port = free_port()
    text = configuration("nginx.conf", "listen 80;", ports, changes or {})
    text = text.replace("{port}", str(port))
    if locations:
        text = text.partition("    location ")[0] + "".join(locations) + "}\n"
    (directory / "onsale.conf").write_text(text)
    main = directory / "nginx.conf"
    main.write_text(_NGINX_MAIN.format(directory=directory))
    log = directory / "error.log"
    argv = [NGINX, "-p", str(directory), "-e", str(log), "-c", str(main)]
    with _running(argv, directory / "output", port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def haproxy(
    directory: Path, ports: Sequence[int], changes: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Run haproxy before API processes on two ports; yield its address."""
    directory.mkdir()
    port = free_port()
    text = configuration("haproxy.cfg", "bind :80", ports, changes or {})
    text = text.replace("bind :127.0.0.1:{port}", f"bind 127.0.0.1:{port}")
    file = directory / "haproxy.cfg"
    file.write_text(_HAPROXY_GLOBAL.format(directory=directory) + text)
    with _running([HAPROXY, "-db", "-f", str(file)], directory / "output", port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _running(argv: list[str], output: Path, port: int) -> Iterator[None]:
    """Run a proxy until the block is left; it is ended by its own pid."""
    with output.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None, what=argv[0])
        assert process.poll() is None, output.read_text()
        yield
    finally:
        process.terminate()
        process.wait(timeout=START_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def haproxy_tries(directory: Path) -> dict[str, int]:
    """Return how often haproxy's first attempts failed, by the names of its own statistics."""
    with socket.socket(socket.AF_UNIX) as stats:
        stats.connect(str(directory / "stats"))
        stats.sendall(b"show stat\n")
        text = b"".join(iter(lambda: stats.recv(1 << 16), b"")).decode().removeprefix("# ")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["svname"].startswith("api")]
    names = ("econ", "eresp", "wretr", "wredis")
    return {name: sum(int(row[name] or 0) for row in rows) for name in names}
