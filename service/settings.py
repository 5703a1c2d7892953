"""The only reader of the environment.

Every setting has a default that serves on a fresh machine; a value that cannot work is refused
here, with the setting's name, before anything starts. Sizes are bytes, durations say their unit.
"""

import math
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.sources.utils import parse_env_vars

from service import env_file
from service.errors import ConfigurationError
from service.loopback import reachable_by_others
from service.setting_names import mistakes
from service.store_urls import checked_postgresql_url, checked_redis_url, postgresql_url_of

Durability = Literal["fsync", "recorded", "memory"]

_ENV_FILE = Path(".env")

REDIS_SETTINGS = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")
"""Settings of Redis that a promise depends on: what ONSALE_REDIS_CONFIGURATION may state."""


OWN_SEGMENTS = frozenset(
    {"book", "cancel", "docs", "events", "initialize", "livez", "metrics", "openapi.json"}
    | {"problems", "readyz", "status"}
)
"""First segments of the API's own addresses, which no prefix may have."""

_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]{1,64}){1,8}")


class Settings(BaseSettings):
    """What can be set from the environment or from `.env` in the current directory."""

    model_config = SettingsConfigDict(
        env_prefix="ONSALE_",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    host: str = Field("127.0.0.1", validation_alias="HOST")
    """Address to listen on."""

    port: int = Field(3000, ge=0, le=65535, validation_alias="PORT")
    """Port to listen on; 0 picks a free one."""

    allow_remote: bool = False
    """Must be 1 for a HOST that other machines can reach: there is no authentication yet."""

    root_path: str = ""
    """Path prefix under which a proxy publishes the API, such as `/api`; requests may omit it."""

    web_concurrency: int = Field(1, ge=1, le=64, validation_alias="WEB_CONCURRENCY")
    """API processes that `onsale up` starts."""

    data_dir: Path = Path("data")
    """Directory of the embedded stores, of logs, of what was answered and of what runs."""

    redis_url: SecretStr | None = Field(None, validation_alias="REDIS_URL")
    """Redis or Valkey of your own: `redis://`, `rediss://` or `unix://`."""

    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    """PostgreSQL of your own: `postgresql://user:password@host:port/name`; comes before `DB_*`."""

    db_host: str | None = Field(None, validation_alias="DB_HOST")
    """Host, or directory of the socket, of a PostgreSQL of your own."""

    db_port: int | None = Field(None, ge=1, le=65535, validation_alias="DB_PORT")
    """Its port, where that is not 5432."""

    db_name: str = Field("onsale", validation_alias="DB_NAME")
    """Its database; the migration makes one that is missing."""

    db_user: str = Field("onsale", validation_alias="DB_USER")
    """User to connect as."""

    db_password: SecretStr | None = Field(None, validation_alias="DB_PASSWORD")
    """That user's password."""

    redis_configuration: str = ""
    """What a Redis that hides its configuration is set to, as `name=value name=value`."""

    partitions: int = Field(1, ge=1, le=100)
    """Partitions of the events; on record from the first start, another number is refused."""

    durability: Durability = "fsync"
    """What an answer waits for: the sync to disk, the record, or neither (no AOF; for tests)."""

    batch_items_max: int = Field(128, ge=1, le=256)
    """Requests that may share one script call."""

    waiting_room_max: int = Field(20_000, ge=1)
    """Requests that may wait for a script, of each kind (the next: 503), and for the record."""

    request_deadline_ms: int = Field(3_000, ge=500, le=60_000)
    """How long a request may wait: for Redis, then 503; for the record, then `pending`."""

    standing_wait_ms_max: int = Field(1_000, ge=5, le=60_000)
    """How long bookings may stand waiting for others, reads half as long; then new ones get 503."""

    drain_seconds: int = Field(0, ge=0, le=600)
    """Seconds of service after SIGTERM, until a proxy has noticed; 10 in the image."""

    linger_ms_max: int = Field(25, ge=0, le=1_000)
    """How long a busy writer waits for more before it commits."""

    retained_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    """Recorded changes that the outbox keeps, of all partitions together, in bytes."""

    unrecorded_bytes_max: Annotated[int, Field(ge=1 << 20)] = 512 << 20
    """Bytes of Redis for what is not on record; then bookings are refused. 1 MiB per partition."""

    cancel_reserve_bytes: Annotated[int, Field(ge=1 << 20)] = 128 << 20
    """Bytes beyond those, for cancellations alone; then they are refused as well."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below this level are not written."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto` writes text to a terminal and JSON elsewhere."""

    access_log: bool = False
    """1 writes a line per request."""

    metrics_dir: Path | None = None
    """Where the processes of a host count together; `run/metrics` in the data directory."""

    role: str = Field("", pattern="^[a-z0-9-]{0,32}$")
    """Name of the process in logs and metrics; `onsale up` sets it."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic's names
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment, then `.env`, which `env_file` reads."""
        return (
            init_settings,
            _Variables(settings_cls, os.environ),
            _Variables(settings_cls, env_file.read(_ENV_FILE)),
        )

    @field_validator("host")
    @classmethod
    def _host_as_the_resolver_takes_it(cls, host: str) -> str:
        host = host.strip()
        if not host:
            msg = "it is empty"
            raise ValueError(msg)
        if host.rstrip(".").lower() == "localhost":
            # Not each resolver knows it with a dot.
            return "localhost"
        return host[1:-1] if host.startswith("[") and host.endswith("]") else host

    @field_validator("redis_url")
    @classmethod
    def _redis_url_can_work(cls, url: SecretStr | None) -> SecretStr | None:
        return SecretStr(checked_redis_url(url.get_secret_value())) if url else None

    @field_validator("database_url")
    @classmethod
    def _database_url_can_work(cls, url: SecretStr | None) -> SecretStr | None:
        return SecretStr(checked_postgresql_url(url.get_secret_value())) if url else None

    @field_validator("root_path")
    @classmethod
    def _root_path_is_a_prefix(cls, path: str) -> str:
        segments = path.split("/")[1:]
        if path and (not _PREFIX.fullmatch(path) or {".", ".."} & {*segments}):
            msg = (
                "expected a path such as /api: it begins with a slash and does not end with one,"
                " and its segments are made of A-Z a-z 0-9 . _ ~ - and are not . or .."
            )
            raise ValueError(msg)
        if path and segments[0] in OWN_SEGMENTS:
            msg = "begins like an address of the API itself, so the two cannot be told apart"
            raise ValueError(msg)
        return path

    @field_validator("redis_configuration")
    @classmethod
    def _configuration_can_be_stated(cls, words: str) -> str:
        _stated(words)
        return words

    @model_validator(mode="after")
    def _parts_make_a_url(self) -> "Settings":
        _ = self.postgresql_url
        return self

    @model_validator(mode="after")
    def _local_unless_allowed(self) -> "Settings":
        if not self.allow_remote and (why := reachable_by_others(self.host)):
            msg = f"{why}; Onsale has no authentication yet: set ONSALE_ALLOW_REMOTE=1 to allow it"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _room_in_each_partition(self) -> "Settings":
        least = self.partitions << 20
        if self.unrecorded_bytes_max < least:
            msg = (
                f"ONSALE_UNRECORDED_BYTES_MAX must be {least} at least, 1 MiB for each of"
                " ONSALE_PARTITIONS: under load a writer that keeps up has as much under way"
            )
            raise ValueError(msg)
        return self

    @property
    def in_flight_s(self) -> int:
        """How long an API process that ends waits for the requests in flight, in seconds."""
        return math.ceil(self.request_deadline_ms / 1000) + 2

    @property
    def api_stop_s(self) -> float:
        """Seconds that an API process may take to end."""
        return self.drain_seconds + self.in_flight_s + 5

    @property
    def metrics_directory(self) -> Path:
        """Where the processes of one host count together."""
        return self.metrics_dir or self.data_dir / "run" / "metrics"

    @property
    def answered_directory(self) -> Path:
        """Where this host's workers keep what they have answered; it outlives every process."""
        return self.data_dir.expanduser() / "answered"

    @cached_property
    def postgresql_url(self) -> str | None:
        """The PostgreSQL of the user's own, or None where the embedded one serves.

        DATABASE_URL comes before DB_HOST, DB_PORT, DB_NAME, DB_USER and DB_PASSWORD. What asyncpg
        would not understand is left out.
        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.db_host is None:
            return None
        secret = self.db_password.get_secret_value() if self.db_password else ""
        return postgresql_url_of(self.db_host, self.db_port, self.db_name, self.db_user, secret)

    @property
    def postgresql_setting(self) -> str:
        """The setting that names the PostgreSQL of the user's own."""
        return "DATABASE_URL" if self.database_url is not None else "DB_HOST"

    @cached_property
    def own_redis_url(self) -> str | None:
        """The Redis of the user's own, or None where the embedded one serves."""
        return self.redis_url.get_secret_value() if self.redis_url else None

    @cached_property
    def stated_redis_configuration(self) -> dict[str, str]:
        """What is stated of a Redis that hides its configuration, by name."""
        return _stated(self.redis_configuration)


class _Variables(EnvSettingsSource):
    """Variables of the environment or of `.env`: those that are settings, and no others.

    With `populate_by_name` pydantic takes ONSALE_PORT for PORT as well, which Kubernetes may set.
    """

    def __init__(self, cls: type[BaseSettings], variables: Mapping[str, str | None]) -> None:
        names = setting_names()
        self._variables = {
            name: value for name, value in variables.items() if name.upper() in names
        }
        super().__init__(cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return parse_env_vars(self._variables, ignore_empty=True)


def load_settings() -> Settings:
    """Read the environment and `.env`.

    Raises ConfigurationError naming each setting that cannot work or does not exist; values are not
    repeated, since some are secrets.
    """
    known = setting_names()
    wrong = [*mistakes(env_file.read(_ENV_FILE), known), *mistakes(os.environ, known)]
    if wrong:
        raise ConfigurationError("; ".join(dict.fromkeys(wrong)))
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"{variable_of(str((*e['loc'], 'settings')[0]))}:"
            f" {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise ConfigurationError("; ".join(lines)) from None


def setting_names() -> set[str]:
    """Return the variable behind each field."""
    return {variable_of(name) for name in Settings.model_fields}


def variable_of(name: str) -> str:
    """Return the environment variable behind a field, as the user would set it."""
    field = Settings.model_fields.get(name)
    if field is None:
        return name
    alias = field.validation_alias
    return alias if isinstance(alias, str) else f"ONSALE_{name.upper()}"


def _stated(words: str) -> dict[str, str]:
    """Read `name=value name=value`. Raises ValueError for a name that nothing depends on."""
    pairs = [word.partition("=") for word in words.split()]
    if any(name not in REDIS_SETTINGS or not value for name, _, value in pairs):
        msg = f"expected name=value with names out of {', '.join(REDIS_SETTINGS)}"
        raise ValueError(msg)
    return {name: value for name, _, value in pairs}
