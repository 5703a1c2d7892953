"""Whether two stores, as they were found, can keep what Onsale promises.

Pure judgement: `inspection` reads, `onsale up` and each handshake act on what is found here. What
endangers a promise refuses; what is only unwise warns. Invariant: a value that nobody has shown or
stated is never taken for a good one, but for the one whose default is good.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from service.settings import Durability

LEAST_REDIS = {"Redis": (7, 0), "Valkey": (7, 2)}
LEAST_POSTGRESQL = 15

_OFF = frozenset({"off", "false", "no", "0"})
"""As ALTER ROLE and ALTER DATABASE keep it: in the words in which it was given."""


@dataclass(frozen=True, slots=True)
class _Need:
    """A Redis setting that a promise depends on. `default`: what counts where none is seen."""

    value: str
    why: str
    default: str | None = None


_AOF = {
    "appendonly": _Need("yes", "a restart would lose what was answered"),
    "appendfsync": _Need("always", "an answer would leave before it is on disk"),
    "no-appendfsync-on-rewrite": _Need(
        "no", "an answer would leave before it is on disk while the file is rewritten", "no"
    ),
}
_NO_EVICTION = {"maxmemory-policy": _Need("noeviction", "bookings would be evicted")}
_NEEDED: Mapping[Durability, Mapping[str, _Need]] = {
    "fsync": {**_AOF, **_NO_EVICTION},
    "recorded": _NO_EVICTION,  # what is not on record yet was not answered
    "memory": _NO_EVICTION,
}

_HOLES: Sequence[tuple[str, str, tuple[int, int], tuple[int, int, int]]] = (
    ("CVE-2025-49844", "Redis", (7, 0), (7, 2, 11)),
    ("CVE-2025-49844", "Redis", (7, 2), (7, 2, 11)),
    ("CVE-2025-49844", "Redis", (7, 4), (7, 4, 6)),
    ("CVE-2025-49844", "Redis", (8, 0), (8, 0, 4)),
    ("CVE-2025-49844", "Redis", (8, 2), (8, 2, 2)),
    ("CVE-2025-49844", "Valkey", (7, 2), (7, 2, 11)),
    ("CVE-2025-49844", "Valkey", (8, 0), (8, 0, 6)),
    ("CVE-2025-49844", "Valkey", (8, 1), (8, 1, 4)),
    ("CVE-2026-27623", "Valkey", (9, 0), (9, 0, 3)),
)
"""Known holes: name, product, series, and the version that closes it for that series.

CVE-2025-49844: a script may break out of Lua. CVE-2026-27623: a stranger may end the server.
"""


@dataclass(frozen=True, slots=True)
class RedisAsFound:
    """What a Redis says of itself. `version` as (7, 2, 11); `mode` and `role` as INFO has them.

    `configuration` holds what CONFIG GET shows, and where the server hides it the little that INFO
    tells. `write_failed`, `rewrite_failed`: the last write to the AOF failed, or its last rewrite;
    `rewriting`: one is under way.
    """

    product: str
    version: tuple[int, ...]
    mode: str
    role: str
    configuration: Mapping[str, str] = field(default_factory=dict)
    write_failed: bool = False
    rewrite_failed: bool = False
    rewriting: bool = False

    def __str__(self) -> str:
        """Return "Valkey 9.1.2"."""
        return f"{self.product} {'.'.join(map(str, self.version))}"


@dataclass(frozen=True, slots=True)
class PostgresqlAsFound:
    """A PostgreSQL as a session like ours sees it. `settings` as SHOW has them.

    `next_settings`: those of them that our next session would be given by its role or database.
    """

    major: int
    version: str
    in_recovery: bool
    settings: Mapping[str, str]
    next_settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return "PostgreSQL 18.6"."""
        return f"PostgreSQL {self.version}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be; `text` is a sentence that says what to set."""

    text: str
    refuses: bool = True


def judge_redis(
    found: RedisAsFound, durability: Durability, stated: Mapping[str, str]
) -> list[Finding]:
    """Return what is wrong with a Redis for this durability.

    `stated` is used only for what the server does not show.
    """
    return [
        *_wrong_kind(found),
        *_wrong_settings(found, durability, stated),
        *_failed_file(found, durability),
        *(_no_file(found, stated) if durability == "recorded" else ()),
        *_holes(found),
    ]


def judge_rewrite(found: RedisAsFound, durability: Durability) -> list[Finding]:
    """Return what stands against a file that was switched off and on again.

    Until it is written anew, a restart would not find in it what was answered meanwhile.
    """
    if durability != "fsync" or not found.rewriting:
        return []
    return [Finding(f"{found.product} is still writing its AOF anew")]


def judge_limits(found: RedisAsFound) -> list[Finding]:
    """Return what is unwise about the memory of a Redis that is the user's own."""
    if found.configuration.get("maxmemory") != "0":
        return []
    msg = (
        f"{found.product} has maxmemory '0', no limit: when the machine is out of memory the server"
        " is killed, where with a limit it would refuse bookings"
    )
    return [Finding(msg, refuses=False)]


def judge_room(found: RedisAsFound, needed: int) -> list[Finding]:
    """Return what is unwise about a limit of memory below the bytes that may be needed."""
    limit = int(found.configuration.get("maxmemory") or 0)
    if not 0 < limit < needed:
        return []
    msg = (
        f"{found.product} has maxmemory '{limit}', less than ONSALE_RETAINED_BYTES,"
        " ONSALE_UNRECORDED_BYTES_MAX and ONSALE_CANCEL_RESERVE_BYTES together"
        f" ({needed}): with PostgreSQL away its memory could be full before these bounds are met"
    )
    return [Finding(msg, refuses=False)]


def judge_postgresql(found: PostgresqlAsFound) -> list[Finding]:
    """Return what is wrong with a PostgreSQL. Whatever the durability: the record is the record."""
    findings = []
    if found.major < LEAST_POSTGRESQL:
        findings.append(
            Finding(f"{found} is too old; PostgreSQL {LEAST_POSTGRESQL} or newer is needed")
        )
    if found.in_recovery:
        findings.append(
            Finding("this PostgreSQL is a standby (pg_is_in_recovery); name the primary")
        )
    lost = "what is on record would not survive a power cut"
    for name, why in (("fsync", lost), ("synchronous_commit", lost)):
        if found.settings[name] == "off":
            findings.append(Finding(f"PostgreSQL has {name} 'off'; 'on' is needed: {why}"))
        elif found.next_settings.get(name) in _OFF:
            findings.append(
                Finding(
                    f"PostgreSQL has {name} 'off' for the next session of this role in this"
                    f" database; 'on' is needed: {why}"
                )
            )
    encoding = found.settings["server_encoding"]
    if encoding != "UTF8":  # SQL_ASCII refuses what is not ASCII in JSON, and the writer stops
        findings.append(
            Finding(
                f"the database has the encoding '{encoding}'; 'UTF8' is needed: it could not store"
                " every name"
            )
        )
    if found.settings["full_page_writes"] == "off":
        findings.append(
            Finding(
                "PostgreSQL has full_page_writes 'off': unless its file system never writes half a"
                " page, a power cut can destroy the record",
                refuses=False,
            )
        )
    # Checksums are left alone: PostgreSQL 15 comes without, and what they would find in the
    # journal its chain of hashes finds as well.
    return findings


def _wrong_kind(found: RedisAsFound) -> Iterator[Finding]:
    least = LEAST_REDIS.get(found.product, LEAST_REDIS["Redis"])
    if found.version[:2] < least:
        yield Finding(f"{found} is too old; Redis 7.0, Valkey 7.2 or newer is needed")
    if found.mode != "standalone":
        yield Finding(f"this {found.product} runs as {found.mode}; a single server is needed")
    elif found.role != "master":
        yield Finding(f"this {found.product} is a replica (role {found.role}); name the primary")


def _wrong_settings(
    found: RedisAsFound, durability: Durability, stated: Mapping[str, str]
) -> Iterator[Finding]:
    product, shown = found.product, found.configuration
    hidden = False
    for name, need in _NEEDED[durability].items():
        value = shown.get(name, stated.get(name, need.default))
        if value is None:
            hidden = True
        elif value != need.value:
            yield Finding(
                f"{product} has {name} '{value}'{'' if name in shown else ' (as stated)'};"
                f" {durability} needs '{need.value}': {need.why}"
            )
    if hidden:
        words = [
            f"{name}={need.value}"
            for name, need in _NEEDED[durability].items()
            if name not in shown and need.default is None
        ]
        yield Finding(
            f"{product} does not show its configuration; where it is set so, state it with"
            f' ONSALE_REDIS_CONFIGURATION="{" ".join(words)}"'
        )


def _failed_file(found: RedisAsFound, durability: Durability) -> Iterator[Finding]:
    if durability == "fsync" and found.write_failed:
        yield Finding(f"{found.product} could not write to its AOF (aof_last_write_status err)")
    if durability != "memory" and found.rewrite_failed:
        yield Finding(
            f"{found.product} could not rewrite its AOF (aof_last_bgrewrite_status err):"
            " the file grows until it can",
            refuses=False,
        )


def _no_file(found: RedisAsFound, stated: Mapping[str, str]) -> Iterator[Finding]:
    """Where answers wait for the record, a file that is not synced is only unwise."""
    for name, need in _AOF.items():
        value = found.configuration.get(name, stated.get(name, need.value))
        if value != need.value:
            yield Finding(
                f"{found.product} has {name} '{value}': recorded does not need '{need.value}',"
                " but a restart then costs a rebuild, and whatever was not answered yet",
                refuses=False,
            )


def _holes(found: RedisAsFound) -> Iterator[Finding]:
    for name, product, series, closed in _HOLES:
        if (product, series) != (found.product, found.version[:2]):
            continue
        if found.version < closed:
            mended = ".".join(map(str, closed))
            yield Finding(
                f"{found} has the hole {name}, closed in {mended}, unless your distribution has"
                " mended it without changing the number",
                refuses=False,
            )
