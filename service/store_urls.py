"""What a store's URL may say, and what it says without its password.

Pure. redis-py takes any parameter for an argument of its own and passes over a database that is no
number: what its pools are given is settled here, before anything connects. PostgreSQL's clients are
given what `postgresql_address` reads.
Invariant: no text that is raised here repeats any part of a URL but the names of parameters.
"""

from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

from service.postgresql_address import address_of, encoded, split, without_what_is_left_out

_REDIS_FORM = "redis://, rediss:// or unix://"

_NO_HOST = "DB_HOST is no host, no address and no directory of a socket"

_REDIS_TLS = {
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
    "ssl_password",
}

FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "sslrootcert", "sslcert", "sslkey"}
"""Parameters that name a file which must be readable."""

_SECRET = {"password", "ssl_password", "sslpassword"}
_MASK = "***"


def checked_redis_url(url: str) -> str:
    """Return the URL. Raises ValueError, without repeating it, where it cannot work."""
    parts = split(url, {"redis", "rediss", "unix"}, _REDIS_FORM)
    names = dict(_parameters(parts))
    if wrong := sorted(names.keys() - _REDIS_TLS - {"db"}):
        msg = f"it has parameters that Onsale decides by itself: {', '.join(wrong)}"
        raise ValueError(msg)
    if parts.scheme != "rediss" and names.keys() & _REDIS_TLS:
        msg = "parameters that begin with ssl_ need rediss://"
        raise ValueError(msg)
    database = names.get("db", "" if parts.scheme == "unix" else parts.path.strip("/"))
    if not database.isdecimal() and database:
        msg = "its database is not a number"
        raise ValueError(msg)
    if parts.scheme == "unix" and len(parts.path) < 2:
        msg = "it names no socket: unix:///path/of/the/socket"
        raise ValueError(msg)
    if parts.scheme != "unix" and not parts.hostname:
        msg = f"it names no host: {parts.scheme}://host:6379/0"
        raise ValueError(msg)
    return url


def checked_postgresql_url(url: str) -> str:
    """Return the URL without what neither client is given, unchanged where it has none of that.

    Raises ValueError, without repeating it, where it cannot work.
    """
    address_of(url)
    return without_what_is_left_out(url)


def postgresql_url_of(host: str, port: int | None, name: str, user: str, password: str) -> str:
    """Return the URL that DB_HOST, DB_PORT, DB_NAME, DB_USER and DB_PASSWORD make.

    `host` may be a name, a name with its port, an address, or the directory of a socket. Raises
    ValueError where that cannot work.
    """
    who = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    database = quote(name, safe="")
    if host.startswith("/"):
        query = [("host", host), *([("port", str(port))] if port else [])]
        return checked_postgresql_url(f"postgresql://{who}@/{database}?{encoded(query)}")
    if any(sign in host for sign in "/?#@"):
        raise ValueError(_NO_HOST)
    if host.count(":") > 1 and not host.startswith("["):
        # The zone of a link-local address, fe80::1%eth0, is quoted.
        host = f"[{host.replace('%', '%25')}]"
    if port is not None:
        if not host.endswith("]") and ":" in host:
            msg = "DB_HOST has a port already, and DB_PORT is set as well"
            raise ValueError(msg)
        host = f"{host}:{port}"
    try:
        return checked_postgresql_url(f"postgresql://{who}@{host}/{database}")
    except ValueError:
        raise ValueError(_NO_HOST) from None


def masked(url: str) -> str:
    """Return the URL with its passwords masked; one without any comes back as it is."""
    parts = urlsplit(url)
    who, at, where = parts.netloc.rpartition("@")
    user, colon, password = who.partition(":")
    query = parse_qsl(parts.query, keep_blank_values=True)
    if not password and not _SECRET & dict(query).keys():
        return url
    shown = [(name, _MASK if name in _SECRET else value) for name, value in query]
    netloc = f"{user}{colon}{_MASK if password else ''}{at}{where}"
    return urlunsplit(parts._replace(netloc=netloc, query=encoded(shown)))


def secrets_in(url: str) -> list[str]:
    """Return the passwords of a URL, as they stand in it and as they read; the longest first."""
    who = url.partition("://")[2].rpartition("@")[0]
    found = [who.partition(":")[2]]
    found += [value for name, value in parse_qsl(url.partition("?")[2]) if name in _SECRET]
    return sorted({form for word in found for form in (word, unquote(word)) if form}, key=len)[::-1]


def _parameters(parts: SplitResult) -> list[tuple[str, str]]:
    return parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
