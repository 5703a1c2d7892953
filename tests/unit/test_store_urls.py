"""What a store's URL may say, and what each client is given of it."""

from urllib.parse import quote

import pytest

from service.store_urls import (
    checked_postgresql_url,
    checked_redis_url,
    masked,
    secrets_in,
)

SECRET = "p@ss/w:rd?#%41 é+&="
QUOTED = quote(SECRET, safe="")


@pytest.mark.parametrize(
    "url",
    [
        "redis://r",
        "redis://r:6380/3",
        f"redis://me:{QUOTED}@[::1]:6380?db=3",
        f"rediss://:{QUOTED}@r:6380/0?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=true",
        "unix:///run/redis.sock?db=1",
        f"unix://me:{QUOTED}@/run/redis.sock",
    ],
)
def test_a_redis_url_that_can_work_is_left_as_it_is(url: str) -> None:
    """TCP, TLS and sockets, with user, password and database."""
    assert checked_redis_url(url) == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://r?socket_timeout=5", "decides by itself: socket_timeout"),
        ("redis://r?retry_on_timeout=yes&protocol=2", "itself: protocol, retry_on_timeout"),
        ("redis://r?password=x", "decides by itself: password"),
        ("redis://r?ssl_ca_certs=/ca", "need rediss://"),
        ("redis://r/tickets", "database is not a number"),
        ("unix:///s?db=x", "database is not a number"),
        ("redis://:6379/0", "names no host"),
        ("unix://", "names no socket"),
        ("redis://r:port", "not a URL of the form"),
        ("redis://r:99999", "not a URL of the form"),
        ("redis-sentinel://r", "not a URL of the form"),
    ],
)
def test_a_redis_url_that_cannot_work_is_refused(url: str, why: str) -> None:
    """What redis-py would pass over, or take for an argument of its own, is named."""
    with pytest.raises(ValueError, match=why):
        checked_redis_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/d",
        f"postgres://me:{QUOTED}@h:5433/d?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgresql://me@/d?host=/run/postgresql&port=5433",
        "postgresql://me@%2Frun%2Fpostgresql/d",
        "postgresql://h/d?application_name=x&search_path=tickets&options=-c%20geqo%3Doff",
    ],
)
def test_a_postgresql_url_that_can_work_is_left_as_it_is(url: str) -> None:
    """TCP, TLS and sockets; settings of the server pass."""
    assert checked_postgresql_url(url) == url


def test_what_asyncpg_would_send_to_the_server_is_left_out() -> None:
    """Parameters of libpq that only tune, as hosting companies put them into their URLs."""
    url = (
        f"postgresql://me:{QUOTED}@h/d?sslmode=require&channel_binding=prefer&connect_timeout=10"
        "&keepalives=1&gssencmode=disable&sslsni=1&application_name=x"
    )
    assert checked_postgresql_url(url) == (
        f"postgresql://me:{QUOTED}@h/d?sslmode=require&application_name=x"
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql:///d", "names no host"),
        ("postgresql://u:p@/d", "names no host"),
        ("postgresql://h", "names no database"),
        ("postgresql://h/", "names no database"),
        ("postgresql://h1,h2/d", "several hosts"),
        ("postgresql://h1:5432,h2:5432/d", "not a URL of the form"),
        ("postgresql://u@/d?host=h1,h2", "several hosts"),
        ("postgresql://h/d?user=u&password=p", "password, user belongs before the"),
        ("postgresql://h/d?channel_binding=require", "cannot do: channel_binding"),
        ("postgresql://h/d?hostaddr=::1&require_auth=md5", "cannot do: hostaddr, require_auth"),
        ("postgresql://h/d?sslrootcert=system", "sslrootcert has to be a file"),
        ("postgresql://h/d?sslmode", "not a URL of the form"),
        ("mysql://h/d", "not a URL of the form"),
    ],
)
def test_a_postgresql_url_that_cannot_work_is_refused(url: str, why: str) -> None:
    """What the two clients would read differently, or cannot do, is named."""
    with pytest.raises(ValueError, match=why):
        checked_postgresql_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("unix:///run/r.sock?db=0", "unix:///run/r.sock?db=0"),
        ("postgresql://onsale@/onsale?host=/s", "postgresql://onsale@/onsale?host=/s"),
        (f"redis://:{QUOTED}@r:1/0", "redis://:***@r:1/0"),
        (
            f"postgresql://me:{QUOTED}@h/d?sslmode=require",
            "postgresql://me:***@h/d?sslmode=require",
        ),
        (
            f"rediss://me:x@r/0?ssl_certfile=/c&ssl_password={QUOTED}",
            "rediss://me:***@r/0?ssl_certfile=/c&ssl_password=%2A%2A%2A",
        ),
    ],
)
def test_a_url_is_shown_without_its_passwords(url: str, shown: str) -> None:
    """User, host and parameters stay; a URL without passwords is not touched."""
    assert masked(url) == shown


def test_secrets_are_known_in_both_forms() -> None:
    """As they stand in the URL, which a message may quote, and as they read."""
    url = f"rediss://me:{QUOTED}@r/0?ssl_password=a%2Fb"
    assert set(secrets_in(url)) == {QUOTED, SECRET, "a/b"}
    assert secrets_in("postgresql://me@h/d") == []
