"""API processes of a test's own, on the stores of the service that all tests share."""

import contextlib
from collections.abc import Iterator

import httpx

from tests.http.conftest import Service
from tests.servers import Role, wait_until


def is_ready(port: int) -> bool:
    """Whether the process behind a port takes bookings."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    return False


@contextlib.contextmanager
def api_process(service: Service, port: int, **settings: str) -> Iterator[Role]:
    """An API process of its own port on the stores of the service."""
    environment = {
        "ONSALE_DATA_DIR": str(service.servers.run.data),
        "ONSALE_METRICS_DIR": str(service.servers.run.data / "metrics"),
        "REDIS_URL": service.servers.redis_url,
        "DATABASE_URL": service.servers.postgresql_url,
        "PORT": str(port),
        **settings,
    }
    role = Role("api", environment)
    role.start()
    try:
        wait_until(lambda: is_ready(port), what="the process serves")
        yield role
    finally:
        role.stop()
