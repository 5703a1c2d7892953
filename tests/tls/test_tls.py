"""Stores behind TLS, with an authority of their own: trusted when named, refused otherwise."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import redis
import trustme

from service.app import Worker
from service.errors import ConfigurationError
from service.migrations import MigrationError, migrate_up
from service.own_stores import OwnPostgres, OwnRedis
from service.resources import sql_directory
from service.settings import Settings
from tests.conftest import Record
from tests.guarded import POSTGRESQL_PASSWORD, REDIS_PASSWORD, Certificates, Guarded
from tests.integration.conftest import eventually, writing
from tests.running import Running


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificates are."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def certificates(directory: Path) -> Certificates:
    """A certificate for localhost, and the authority that issued it."""
    return issue(directory, "localhost")


def issue(directory: Path, name: str) -> Certificates:
    """Issue a certificate with an authority of its own."""
    authority = trustme.CA()
    issued = authority.issue_cert(name)
    found = Certificates(*(directory / f"{name}.{part}" for part in ("ca", "crt", "key")))
    authority.cert_pem.write_to_path(found.authority)
    issued.cert_chain_pems[0].write_to_path(found.certificate)
    issued.private_key_pem.write_to_path(found.key)
    found.key.chmod(0o600)
    return found


@pytest.fixture(scope="module")
def guarded(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """Servers that speak TLS; where they do not, this fails."""
    with Guarded(tmp_path_factory.mktemp("tls") / "data", certificates) as running:
        yield running


def redis_url(guarded: Guarded, authority: Path) -> str:
    """Return the URL of a Redis whose certificate has to come from this authority."""
    return guarded.redis_url(query=f"?ssl_ca_certs={authority}")


def postgresql_url(guarded: Guarded, authority: Path, name: str = "sales") -> str:
    """Return the URL of a PostgreSQL whose certificate has to come from this authority."""
    query = f"?sslmode=verify-full&sslrootcert={authority}"
    return guarded.postgresql_url(query=query, name=name)


async def refusal(store: OwnRedis | OwnPostgres) -> str:
    """Return why a store is refused."""
    with pytest.raises(ConfigurationError) as caught:
        await store.probe()
    text = str(caught.value)
    assert REDIS_PASSWORD not in text
    assert POSTGRESQL_PASSWORD not in text
    assert "\n" not in text
    return text


async def test_a_booking_is_sold_and_recorded_over_tls(
    guarded: Guarded, certificates: Certificates, tmp_path: Path
) -> None:
    """Handshake, scripts, migration and writer, with an authority that is verified."""
    guarded.empty_redis()
    url = postgresql_url(guarded, certificates.authority)
    await migrate_up(url, sql_directory())
    settings = Settings(
        redis_url=redis_url(guarded, certificates.authority), database_url=url, data_dir=tmp_path
    )
    async with (
        connected(guarded.servers.postgresql_url) as administrator,
        connected(url) as sales,
        writing(settings),
        Worker(settings) as engine,
    ):
        event = await engine.initialize("First night", 1)
        assert (await engine.book(event.event_id, "1")).status == "booked"
        await eventually(lambda: sales.fetchval("SELECT sold FROM events WHERE sold = 1"))
        sessions = await administrator.fetch(
            "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            " WHERE application_name LIKE 'onsale%' AND datname = 'sales'"
        )
    assert {row["ssl"] for row in sessions} == {True}


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Record]:
    """Connect for a while."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def test_a_redis_that_speaks_tls_alone_answers_nothing_else(guarded: Guarded) -> None:
    """So whatever came through above was encrypted."""
    plain = guarded.redis_url().replace("rediss://", "redis://")
    with redis.Redis.from_url(plain) as client, pytest.raises(redis.ConnectionError):
        client.ping()


async def test_a_certificate_that_is_not_trusted_is_one_line(
    guarded: Guarded, directory: Path
) -> None:
    """Another authority is no good, and neither are those of the system."""
    other = issue(directory, "elsewhere.example").authority
    for url, setting in (
        (redis_url(guarded, other), "ssl_ca_certs"),
        (guarded.redis_url(), "ssl_ca_certs"),
    ):
        text = await refusal(OwnRedis(url, "fsync", {}))
        assert text.startswith("REDIS_URL: the server's certificate is not trusted (")
        assert setting in text
    text = await refusal(OwnPostgres(postgresql_url(guarded, other), "DATABASE_URL"))
    assert text.startswith("DATABASE_URL: the server's certificate is not trusted (")
    assert "sslrootcert" in text
    with pytest.raises(MigrationError, match="certificate signed by unknown authority"):
        await migrate_up(postgresql_url(guarded, other), sql_directory())


def test_a_certificate_of_another_host_is_not_trusted(directory: Path, tmp_path: Path) -> None:
    """The right authority, but for a name that nobody asked for."""
    elsewhere = issue(directory, "other.example")
    with Guarded(tmp_path / "data", elsewhere) as guarded:
        url = redis_url(guarded, elsewhere.authority)
        assert "not valid for 'localhost'" in asyncio.run(refusal(OwnRedis(url, "fsync", {})))
        url = postgresql_url(guarded, elsewhere.authority)
        store = OwnPostgres(url, "DATABASE_URL")
        assert "not valid for 'localhost'" in asyncio.run(refusal(store))


def test_a_whole_service_runs_over_tls(
    guarded: Guarded, certificates: Certificates, tmp_path: Path
) -> None:
    """`onsale up` on both, with the database made by its migration."""
    guarded.empty_redis()
    running = Running(
        tmp_path / "data",
        REDIS_URL=redis_url(guarded, certificates.authority),
        DATABASE_URL=postgresql_url(guarded, certificates.authority, "whole"),
    )
    try:
        running.start()
        assert "NOTHING IS SOLD" not in running.screen
    finally:
        running.stop()
