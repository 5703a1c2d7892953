"""The only reader of the environment.

Every setting has a default that serves on a fresh machine; a value that cannot work is refused
here, with the setting's name, before anything starts. Sizes are bytes, durations say their unit.
"""

from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import ConfigurationError

Durability = Literal["fsync", "memory"]


class Settings(BaseSettings):
    """What can be set from the environment or from `.env` in the current directory."""

    model_config = SettingsConfigDict(
        env_prefix="ONSALE_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        validate_default=True,
    )

    host: str = Field("127.0.0.1", validation_alias="HOST")
    port: int = Field(3000, ge=0, le=65535, validation_alias="PORT")
    allow_remote: bool = False
    """There is no authentication yet, so an address that others can reach must be asked for."""

    web_concurrency: int = Field(1, ge=1, le=64, validation_alias="WEB_CONCURRENCY")
    data_dir: Path = Path("data")

    redis_url: SecretStr | None = Field(None, validation_alias="REDIS_URL")
    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    db_host: str | None = Field(None, validation_alias="DB_HOST")
    db_name: str = Field("onsale", validation_alias="DB_NAME")
    db_user: str = Field("onsale", validation_alias="DB_USER")
    db_password: SecretStr | None = Field(None, validation_alias="DB_PASSWORD")

    partitions: int = Field(1, ge=1, le=100)
    durability: Durability = "fsync"

    batch_items_max: int = Field(128, ge=1, le=256)
    waiting_room_max: int = Field(20_000, ge=1)
    request_deadline_ms: int = Field(3_000, ge=500, le=60_000)
    linger_ms_max: int = Field(20, ge=0, le=1_000)
    retained_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    access_log: bool = False
    metrics_dir: Path | None = None
    role: str = Field("", pattern="^[a-z0-9-]{0,32}$")

    @model_validator(mode="after")
    def _local_unless_allowed(self) -> "Settings":
        if not self.allow_remote and not _is_loopback(self.host):
            msg = (
                f"HOST={self.host} can be reached from other machines and Onsale has no"
                " authentication yet; set ONSALE_ALLOW_REMOTE=1 if that is what you want"
            )
            raise ValueError(msg)
        return self

    @cached_property
    def postgresql_url(self) -> str | None:
        """The PostgreSQL of the user's own, or None where the embedded one serves.

        DATABASE_URL comes before DB_HOST, DB_NAME, DB_USER and DB_PASSWORD.
        """
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        if self.db_host is None:
            return None
        secret = self.db_password.get_secret_value() if self.db_password else ""
        password = f":{quote(secret, safe='')}" if secret else ""
        return (
            f"postgresql://{quote(self.db_user, safe='')}{password}@{self.db_host}/{self.db_name}"
        )

    @cached_property
    def own_redis_url(self) -> str | None:
        """The Redis of the user's own, or None where the embedded one serves."""
        return self.redis_url.get_secret_value() if self.redis_url else None


def load_settings() -> Settings:
    """Read the environment and `.env`.

    Raises ConfigurationError naming each setting that cannot work; values are not repeated, since
    some are secrets.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{_variable(e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ConfigurationError("; ".join(lines)) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f".env cannot be read: {error}"
        raise ConfigurationError(msg) from None


def _variable(loc: tuple[int | str, ...]) -> str:
    """Name the environment variable behind a field, as the user would have set it."""
    if not loc:
        return "settings"
    name = str(loc[0])
    field = Settings.model_fields.get(name)
    if field is None:
        return name
    alias = field.validation_alias
    return alias if isinstance(alias, str) else f"ONSALE_{name.upper()}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
