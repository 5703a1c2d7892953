"""Stores that ask for a password, and what is said when it is wrong or too little."""

import socket
from collections.abc import Iterator

import pytest

from service import probes
from service.app import Worker
from service.errors import ConfigurationError
from service.migrations import MigrationError, migrate_up, missing
from service.own_stores import OwnPostgres, OwnRedis
from service.probes import NotReadyError
from service.resources import sql_directory
from service.settings import Settings
from tests.guarded import (
    MAY_READ_CONFIGURATION,
    POSTGRESQL_PASSWORD,
    REDIS_PASSWORD,
    Guarded,
)
from tests.integration.conftest import writing
from tests.servers import free_port

STATED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
WRONG = "wr0ng p@ss/w:rd"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Servers that ask for passwords."""
    with Guarded(tmp_path_factory.mktemp("guarded") / "data") as running:
        yield running


def own_redis(url: str) -> OwnRedis:
    """Return a Redis of the user's own, for the default durability."""
    return OwnRedis(url, "fsync", {})


async def refusal(store: OwnRedis | OwnPostgres) -> str:
    """Return why a store is refused."""
    with pytest.raises(ConfigurationError) as caught:
        await store.probe()
    text = str(caught.value)
    assert not [secret for secret in (REDIS_PASSWORD, POSTGRESQL_PASSWORD, WRONG) if secret in text]
    assert "\n" not in text
    return text


async def test_a_booking_is_sold_and_recorded_behind_passwords(guarded: Guarded) -> None:
    """A Redis user with no more rights than needed, and a PostgreSQL user that makes its database.

    User and passwords hold signs that mean something in a URL.
    """
    guarded.empty_redis()
    url = guarded.postgresql_url(name="sales")
    assert (await own_redis(guarded.redis_url()).probe()).split()[0] in ("Redis", "Valkey")
    assert (await OwnPostgres(url, "DATABASE_URL").probe()).startswith("PostgreSQL ")
    await migrate_up(url, sql_directory())
    settings = Settings(redis_url=guarded.redis_url(), database_url=url)
    async with writing(settings), Worker(settings) as engine:
        event = await engine.initialize("First night", 1)
        booked = await engine.book(event.event_id, "1")
        waiting = await engine.book(event.event_id, "2")
    assert (booked.status, waiting.status) == ("booked", "waiting")


async def test_both_clients_reach_each_address_of_this_machine(guarded: Guarded) -> None:
    """By the address of either family: what dbmate has made there, asyncpg finds there."""
    found = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
    hosts = {f"[{host}]" if ":" in host else host for host in (str(at[0]) for *_, at in found)}
    for number, host in enumerate(sorted(hosts)):
        url = guarded.postgresql_url(name=f"at_{number}", host=host)
        await migrate_up(url, sql_directory())
        assert missing(await probes.applied_migrations(url), sql_directory()) == []


async def test_a_wrong_password_is_one_line(guarded: Guarded) -> None:
    """It names the setting, at once: no repeat will mend it."""
    text = await refusal(own_redis(guarded.redis_url(WRONG)))
    assert text.startswith("REDIS_URL: ")
    assert "password" in text
    store = OwnPostgres(guarded.postgresql_url(WRONG), "DB_HOST")
    text = await refusal(store)
    assert text.startswith("DB_HOST: password authentication failed for user")


async def test_dbmate_prints_no_password(guarded: Guarded) -> None:
    """Neither the right one nor a wrong one, in no form."""
    for url in (
        guarded.postgresql_url(WRONG),
        guarded.postgresql_url(query="?sslmode=require"),
    ):
        with pytest.raises(MigrationError) as caught:
            await migrate_up(url, sql_directory())
        text = str(caught.value)
        assert "ss/w" not in text
        assert "ss%2Fw" not in text


async def test_a_server_that_is_away_may_come_back() -> None:
    """Nobody listens: not ready, with a reason that holds no password."""
    url = f"redis://u:topsecret@127.0.0.1:{free_port()}"
    with pytest.raises(NotReadyError) as caught:
        await own_redis(url).probe()
    assert "refused" in str(caught.value) or "111" in str(caught.value)
    assert "topsecret" not in str(caught.value)
    url = f"postgresql://u:topsecret@127.0.0.1:{free_port()}/d"
    with pytest.raises(NotReadyError) as caught:
        await OwnPostgres(url, "DATABASE_URL").probe()
    assert "topsecret" not in str(caught.value)


async def test_tls_asked_of_a_server_without_is_told(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL says so at once; Redis says nothing at all, which may be for another reason."""
    monkeypatch.setattr(probes, "PROBE_SECONDS", 0.3)
    with pytest.raises(NotReadyError, match="does it speak TLS at this port"):
        await own_redis(guarded.redis_url().replace("redis://", "rediss://")).probe()
    store = OwnPostgres(guarded.postgresql_url(query="?sslmode=require"), "DATABASE_URL")
    assert await refusal(store) == "DATABASE_URL asks for TLS and the server has none"


async def test_an_authority_that_cannot_be_read_is_one_line(guarded: Guarded) -> None:
    """The parameter and the file are named."""
    missing = "/nowhere/ca.pem"
    url = guarded.redis_url(query=f"?ssl_ca_certs={missing}").replace("redis://", "rediss://")
    text = await refusal(own_redis(url))
    assert text.startswith(f"REDIS_URL: ssl_ca_certs {missing} cannot be read: ")
    url = guarded.postgresql_url(query=f"?sslmode=verify-full&sslrootcert={missing}")
    text = await refusal(OwnPostgres(url, "DATABASE_URL"))
    assert text.startswith(f"DATABASE_URL: sslrootcert {missing} cannot be read: ")


async def test_a_parameter_that_nobody_knows_is_one_line(guarded: Guarded) -> None:
    """What some other client would take is named by the server."""
    store = OwnPostgres(guarded.postgresql_url(query="?pgbouncer=true"), "DATABASE_URL")
    assert "pgbouncer" in await refusal(store)


async def test_a_hidden_configuration_is_refused_until_it_is_stated(guarded: Guarded) -> None:
    """A user that may not ask CONFIG GET, as at many hosting companies."""
    guarded.let_in()
    try:
        text = await refusal(own_redis(guarded.redis_url()))
        assert text.startswith("REDIS_URL: ")
        # INFO tells whether there is an AOF and what is evicted, so that these count as shown.
        assert 'ONSALE_REDIS_CONFIGURATION="appendfsync=always"' in text
        assert await OwnRedis(guarded.redis_url(), "fsync", STATED).probe()
        assert "everysec" in await refusal(
            OwnRedis(guarded.redis_url(), "fsync", {**STATED, "appendfsync": "everysec"})
        )
    finally:
        guarded.let_in(MAY_READ_CONFIGURATION)


async def test_a_user_that_may_not_ask_for_the_version_is_one_line(guarded: Guarded) -> None:
    """INFO is needed to know the version and whether it is a primary."""
    guarded.let_in("-info")
    try:
        text = await refusal(own_redis(guarded.redis_url()))
        assert text.startswith("REDIS_URL: ")
        assert "info" in text
    finally:
        guarded.let_in(MAY_READ_CONFIGURATION)
