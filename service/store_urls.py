"""What a store's URL may say, and what it says without its password.

Pure. The two clients read a URL each in their own way: redis-py takes any parameter for an argument
of its own and passes over a database that is no number, asyncpg and dbmate's driver send what they
do not know to the server. Here is settled what both are given, before anything connects.
Invariant: no text that is raised here repeats any part of a URL but the names of parameters.
"""

from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

_REDIS_FORM = "redis://, rediss:// or unix://"
_POSTGRESQL_FORM = "postgresql://user:password@host:port/name"
_QUOTING = "signs that mean something in a URL have to be written as %2F, %40 and so on"

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

# How long to wait and whom to try is decided here, and asyncpg would take these for settings of the
# server. What only prefers something is left out as well; what insists is in `_REFUSED`.
_LEFT_OUT = {
    "channel_binding",
    "connect_timeout",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
}
_REFUSED = {"hostaddr", "require_auth", "requirepeer", "service", "servicefile", "sslcrldir"}
_IN_ITS_PLACE = {"user", "password", "dbname", "database"}

FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "sslrootcert", "sslcert", "sslkey"}
"""Parameters that name a file which must be readable."""

_SECRET = {"password", "ssl_password", "sslpassword"}
_MASK = "***"


def checked_redis_url(url: str) -> str:
    """Return the URL. Raises ValueError, without repeating it, where it cannot work."""
    parts = _split(url, {"redis", "rediss", "unix"}, _REDIS_FORM)
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
    """Return the URL as asyncpg needs it; unchanged where it holds nothing that is left out.

    Raises ValueError, without repeating it, where it cannot work.
    """
    parts = _split(url, {"postgresql", "postgres"}, _POSTGRESQL_FORM)
    query = _parameters(parts)
    names = dict(query)
    host = names.get("host", unquote(parts.hostname or ""))
    if not host:
        msg = f"it names no host: {_POSTGRESQL_FORM}, or ?host=/directory of the socket"
        raise ValueError(msg)
    if "," in host:
        msg = "it names several hosts; name the one that leads to the primary"
        raise ValueError(msg)
    if not parts.path.strip("/"):
        msg = f"it names no database: {_POSTGRESQL_FORM}"
        raise ValueError(msg)
    if misplaced := sorted(names.keys() & _IN_ITS_PLACE):
        msg = f"{', '.join(misplaced)} belongs before the ?: {_POSTGRESQL_FORM}"
        raise ValueError(msg)
    insists = {name for name in ("channel_binding", "gssencmode") if names.get(name) == "require"}
    if names.get("sslrootcert") == "system":
        msg = "sslrootcert has to be a file, such as /etc/ssl/certs/ca-certificates.crt"
        raise ValueError(msg)
    if wrong := sorted(insists | names.keys() & _REFUSED):
        msg = f"it asks for what Onsale's clients cannot do: {', '.join(wrong)}"
        raise ValueError(msg)
    kept = [(name, value) for name, value in query if name not in _LEFT_OUT]
    return url if kept == query else urlunsplit(parts._replace(query=_encoded(kept)))


def postgresql_url_of(host: str, port: int | None, name: str, user: str, password: str) -> str:
    """Return the URL that DB_HOST, DB_PORT, DB_NAME, DB_USER and DB_PASSWORD make.

    `host` may be a name, a name with its port, an address, or the directory of a socket. Raises
    ValueError where that cannot work.
    """
    who = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
    database = quote(name, safe="")
    if host.startswith("/"):
        query = [("host", host), *([("port", str(port))] if port else [])]
        return f"postgresql://{who}@/{database}?{_encoded(query)}"
    if any(sign in host for sign in "/?#@"):
        raise ValueError(_NO_HOST)
    if host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    if port is not None:
        if not host.endswith("]") and ":" in host:
            msg = "DB_HOST has a port already, and DB_PORT is set as well"
            raise ValueError(msg)
        host = f"{host}:{port}"
    try:
        return checked_postgresql_url(f"postgresql://{who}@{host}/{database}")
    except ValueError:
        raise ValueError(_NO_HOST) from None


def dbmate_url(url: str) -> str:
    """Return a checked PostgreSQL URL as dbmate's driver needs it.

    Without an sslmode that driver insists on TLS, where every other client only prefers it.
    """
    parts = urlsplit(url)
    # The driver knows no revocation lists; asyncpg, which connects first, has looked.
    query = [pair for pair in _parameters(parts) if pair[0] not in ("sslcrl", "gsslib")]
    who, at, where = parts.netloc.rpartition("@")
    if unquote(where).startswith("/"):
        query.append(("host", unquote(where)))
        where = ""
    local = any(name in ("host", "socket") and value.startswith("/") for name, value in query)
    if "sslmode" not in dict(query) and not local:
        query.append(("sslmode", "prefer"))
    # Go refuses signs in user and password that others take as they stand.
    words = [quote(unquote(word), safe="") for word in who.split(":", 1)]
    netloc = f"{':'.join(words)}{at}{where}"
    return urlunsplit(parts._replace(netloc=netloc, query=_encoded(query)))


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
    return urlunsplit(parts._replace(netloc=netloc, query=_encoded(shown)))


def secrets_in(url: str) -> list[str]:
    """Return the passwords of a URL, as they stand in it and as they read; the longest first."""
    who = url.partition("://")[2].rpartition("@")[0]
    found = [who.partition(":")[2]]
    found += [value for name, value in parse_qsl(url.partition("?")[2]) if name in _SECRET]
    return sorted({form for word in found for form in (word, unquote(word)) if form}, key=len)[::-1]


def _split(url: str, schemes: set[str], form: str) -> SplitResult:
    """Take a URL apart. A password that is not quoted shows in one of these ways."""
    msg = f"it is not a URL of the form {form}; in user and password {_QUOTING}"
    try:
        parts = urlsplit(url)
        _ = parts.port
        _parameters(parts)
    except ValueError:
        raise ValueError(msg) from None
    stray = parts.netloc.count("@") > 1 or "@" in parts.path or parts.fragment
    if parts.scheme not in schemes or stray or not url.isprintable() or " " in url:
        raise ValueError(msg)
    return parts


def _parameters(parts: SplitResult) -> list[tuple[str, str]]:
    return parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))


def _encoded(query: list[tuple[str, str]]) -> str:
    return urlencode(query, safe="/", quote_via=quote)
