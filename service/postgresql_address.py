"""The address of a PostgreSQL server, and how each client is to connect there.

Pure. One parser for both clients: asyncpg takes the last of two equal parameters and the host
before the `?`, dbmate's driver the first and the host behind it; each fills what is missing from
another place. Here all of it is settled, so that a migration runs on the service's server.
Invariant: no text that is raised here repeats any part of a URL but the names of parameters.
"""

import os
import pwd
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

FORM = "postgresql://user:password@host:port/name"
PORT = 5432
TLS_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_QUOTING = "signs that mean something in a URL have to be written as %2F, %40 and so on"

# How long to wait and whom to try is decided here, and asyncpg would take these for settings of the
# server. What only prefers something is left out as well; what insists is in `_REFUSED`. Both
# clients set the encoding and the style of dates that they read.
_LEFT_OUT = {
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "datestyle",
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
_REFUSED = {
    "gsslib",
    "hostaddr",
    "krbsrvname",
    "passfile",
    "require_auth",
    "requirepeer",
    "service",
    "servicefile",
    "socket",
    "sslcrldir",
}
_IN_ITS_PLACE = {"user", "password", "dbname", "database"}
_TLS = {
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
}
_PRIMARY = ("any", "read-write", "primary")


@dataclass(frozen=True, slots=True)
class PostgresqlAddress:
    """Where a server is and how to connect to it; nothing in it is left to a client's default.

    `host` is a name, an address without brackets, or the directory of a socket. `tls` has libpq's
    names, `options` the settings of the session.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    sslmode: str
    tls: Mapping[str, str] = field(default_factory=dict, repr=False)
    target_session_attrs: str = "any"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_socket(self) -> bool:
        """Return whether the server is reached through a socket of this machine, without TLS."""
        return self.host.startswith("/")

    @property
    def for_dbmate(self) -> str:
        """The URL for dbmate, whose driver is lib/pq.

        The host stands behind the `?`: before it dbmate loses the brackets of an IPv6 address. The
        driver knows no revocation lists; asyncpg, which connects first, has looked.
        """
        query = {
            "host": self.host,
            "port": str(self.port),
            "sslmode": self.sslmode,
            "target_session_attrs": self.target_session_attrs,
            **{name: value for name, value in self.tls.items() if name != "sslcrl"},
            **self.options,
        }
        # Without a password the driver would look for one in ~/.pgpass; asyncpg is kept from it.
        # A file that cannot be there: it warns of one that others may read, as /dev/null.
        query |= {} if self.password else {"passfile": f"{os.devnull}/none"}
        who = quote(self.user, safe="") + (
            f":{quote(self.password, safe='')}" * bool(self.password)
        )
        return f"postgres://{who}@/{quote(self.database, safe='')}?{encoded(list(query.items()))}"


def address_of(url: str) -> PostgresqlAddress:
    """Read a URL. Raises ValueError, without repeating it, where it cannot work."""
    parts = split(url, {"postgresql", "postgres"}, FORM)
    names = _parameters(parts)
    host, port = _place(parts, names)
    if not parts.path.strip("/"):
        msg = f"it names no database: {FORM}"
        raise ValueError(msg)
    tls = {name: value for name, value in names.items() if name in _TLS}
    mode = _tls_mode(names.pop("sslmode", ""), tls, local=host.startswith("/"))
    attributes = names.pop("target_session_attrs", "any")
    if attributes not in _PRIMARY:
        msg = f"target_session_attrs has to be one of {', '.join(_PRIMARY)}"
        raise ValueError(msg)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    kept = {k: v for k, v in names.items() if k not in _TLS and k.lower() not in _LEFT_OUT}
    return PostgresqlAddress(
        host=host,
        port=port,
        user=unquote(user) or _own_name(),
        password=unquote(password),
        database=unquote(parts.path[1:]),
        sslmode=mode,
        tls={} if host.startswith("/") else tls,
        target_session_attrs=attributes,
        options=kept,
    )


def without_what_is_left_out(url: str) -> str:
    """Return a URL that can work without the parameters that neither client is given."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    kept = [(name, value) for name, value in query if name.lower() not in _LEFT_OUT]
    return url if kept == query else urlunsplit(parts._replace(query=encoded(kept)))


def _parameters(parts: SplitResult) -> dict[str, str]:
    query = parse_qsl(parts.query, keep_blank_values=True)
    names = dict(query)
    if twice := sorted(name for name, times in Counter(n for n, _ in query).items() if times > 1):
        msg = f"it has {', '.join(twice)} twice"
        raise ValueError(msg)
    if misplaced := sorted(names.keys() & _IN_ITS_PLACE):
        msg = f"{', '.join(misplaced)} belongs before the ?: {FORM}"
        raise ValueError(msg)
    insists = {name for name in ("channel_binding", "gssencmode") if names.get(name) == "require"}
    if wrong := sorted(insists | names.keys() & _REFUSED):
        msg = f"it asks for what Onsale's clients cannot do: {', '.join(wrong)}"
        raise ValueError(msg)
    return names


def _place(parts: SplitResult, names: dict[str, str]) -> tuple[str, int]:
    """Return host and port, and take them out of the parameters."""
    before, behind = unquote(parts.hostname or ""), names.pop("host", "")
    if before and behind:
        msg = "it names a host before the ? and another behind it"
        raise ValueError(msg)
    host = before or behind
    if not host:
        msg = f"it names no host: {FORM}, or ?host=/directory of the socket"
        raise ValueError(msg)
    if "," in host:
        msg = "it names several hosts; name the one that leads to the primary"
        raise ValueError(msg)
    if before:
        # urlsplit has lowered it, which a socket's directory does not survive.
        host = unquote(_without_port(parts.netloc.rpartition("@")[2]))
    port = names.pop("port", "")
    if port and parts.port is not None:
        msg = "it names a port before the ? and another behind it"
        raise ValueError(msg)
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 1 << 16):
        msg = "its port is not a number from 1 to 65535"
        raise ValueError(msg)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host, int(port) if port else parts.port or PORT


def _without_port(where: str) -> str:
    if where.startswith("["):
        return where[1:].partition("]")[0]
    return where.partition(":")[0]


def _tls_mode(mode: str, tls: Mapping[str, str], *, local: bool) -> str:
    mode = mode or "prefer"
    if mode not in TLS_MODES:
        msg = f"sslmode has to be one of {', '.join(TLS_MODES)}"
        raise ValueError(msg)
    authority = tls.get("sslrootcert")
    if authority == "system" or (mode.startswith("verify-") and not authority):
        msg = "sslrootcert has to be a file, such as /etc/ssl/certs/ca-certificates.crt"
        raise ValueError(msg)
    if tls.get("sslnegotiation", "postgres") not in ("postgres", "direct"):
        msg = "sslnegotiation has to be one of postgres, direct"
        raise ValueError(msg)
    if tls.get("sslnegotiation") == "direct" and mode in TLS_MODES[:3]:
        msg = "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"
        raise ValueError(msg)
    # The protocol has no TLS on a socket: both clients pass over it there.
    return "disable" if local else mode


def _own_name() -> str:
    """Return the name of the user that runs this, as libpq does; never one from the environment."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        msg = f"it names no user: {FORM}"
        raise ValueError(msg) from None


def split(url: str, schemes: set[str], form: str) -> SplitResult:
    """Take a URL apart. A password that is not quoted shows in one of these ways."""
    msg = f"it is not a URL of the form {form}; in user and password {_QUOTING}"
    try:
        parts = urlsplit(url)
        _ = parts.port
        parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(msg) from None
    stray = parts.netloc.count("@") > 1 or "@" in parts.path or parts.fragment
    if parts.scheme not in schemes or stray or not url.isprintable() or " " in url:
        raise ValueError(msg)
    return parts


def encoded(query: list[tuple[str, str]]) -> str:
    """Write parameters as each client reads them: a space is %20, never +."""
    return urlencode(query, safe="/", quote_via=quote)
