"""The one place where asyncpg is told how to connect.

Every argument is given, so that asyncpg takes none from the environment (PGPORT, PGSSLMODE), from
~/.pgpass or from ~/.postgresql: dbmate, which is given the same, would read others.
"""

import ssl
from collections.abc import Mapping
from typing import Any

import asyncpg

from service.postgresql_address import PostgresqlAddress, address_of

_LEAST_VERSION = "TLSv1.2"


async def connect(
    url: str,
    *,
    server_settings: Mapping[str, str] | None = None,
    database: str | None = None,
    **limits: Any,
) -> "asyncpg.Connection":
    """Connect to where a URL leads; `server_settings` win over those in it.

    `limits` are asyncpg's time-outs. Raises ValueError for a URL that cannot work.
    """
    wanted = arguments(address_of(url), server_settings or {})
    if database is not None:
        wanted["database"] = database
    connection: asyncpg.Connection = await asyncpg.connect(**wanted, **limits)
    return connection


def create_pool(url: str, **limits: Any) -> "asyncpg.Pool":
    """Return a pool of such connections, to be awaited."""
    pool: asyncpg.Pool = asyncpg.create_pool(**arguments(address_of(url), {}), **limits)
    return pool


def arguments(address: PostgresqlAddress, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return all that asyncpg would otherwise look for by itself."""
    return {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        # Empty is none, and none would be looked for in PGPASSWORD and ~/.pgpass.
        "password": address.password,
        "database": address.database,
        "ssl": _tls(address),
        "direct_tls": address.tls.get("sslnegotiation") == "direct",
        "target_session_attrs": address.target_session_attrs,
        "krbsrvname": "postgres",
        "gsslib": "gssapi",
        "server_settings": {**address.options, **settings},
    }


def _tls(address: PostgresqlAddress) -> ssl.SSLContext | str:
    """Return what each mode means to libpq: require verifies where an authority is named."""
    if address.sslmode in ("disable", "allow", "prefer"):
        return address.sslmode
    files = address.tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = address.sslmode == "verify-full"
    if authority := files.get("sslrootcert"):
        context.load_verify_locations(cafile=authority)
    else:
        context.verify_mode = ssl.CERT_NONE
    if revoked := files.get("sslcrl"):
        context.load_verify_locations(cafile=revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if certificate := files.get("sslcert"):
        password = files.get("sslpassword", "")
        context.load_cert_chain(certificate, files.get("sslkey"), password=lambda: password)
    context.minimum_version = _version(files.get("ssl_min_protocol_version") or _LEAST_VERSION)
    if most := files.get("ssl_max_protocol_version"):
        context.maximum_version = _version(most)
    context.set_alpn_protocols(["postgresql"])
    return context


def _version(name: str) -> ssl.TLSVersion:
    try:
        return ssl.TLSVersion[name.replace(".", "_")]
    except KeyError:
        msg = "it names a version of TLS that there is not"
        raise ValueError(msg) from None
