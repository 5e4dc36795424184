"""The settings: one frozen, typed object, made once from the environment and passed down.

Nothing else reads the environment. Names of variables are the field names in upper case. Durations are in
seconds (``_s``), sizes in bytes (``_bytes``), token counts in tokens.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from neuronetz.errors import SettingsError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
# The bounds are those of a key's own value in PostgreSQL.
PromptTtl = Annotated[int, Field(ge=60, le=365 * 24 * 3600)]


class Settings(BaseSettings):
    """All of neuronetz's settings. A wrong or missing value raises ``SettingsError`` in ``load``."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=False)

    database_url: str
    redis_url: str
    ollama_url: str

    # Not HOST and PORT: shells and platforms set those for their own ends.
    listen_host: str = "127.0.0.1"
    listen_port: Port = 8080
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 9464
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    body_timeout_s: Seconds = 30.0
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 300.0
    chunk_timeout_s: Seconds = 120.0
    exchange_timeout_s: Seconds = 1800.0
    write_timeout_s: Seconds = 20.0
    sse_heartbeat_s: Seconds = 15.0
    cleanup_timeout_s: Seconds = 2.0
    drain_timeout_s: Seconds = 25.0
    store_timeout_s: Seconds = 2.0

    max_body_bytes: Count = 16 * 1024 * 1024
    max_reply_bytes: Count = 64 * 1024 * 1024
    max_json_depth: Count = 64
    max_connections: Count = 4096

    default_max_predict: Count = 4096
    max_num_ctx: Count = 32768
    max_keep_alive_s: Seconds = 1800.0
    allow_unload: bool = False
    remote_models: bool = False
    show_full: bool = False
    playground_enabled: bool = False

    model_discovery_interval_s: Seconds = 10.0
    model_discovery_cache_ttl_s: Seconds = 60.0

    key_cache_ttl_s: Annotated[int, Field(ge=1, le=3600)] = 60
    argon2_time_cost: Count = 3
    argon2_memory_kib: Annotated[int, Field(ge=8)] = 65536
    argon2_parallelism: Count = 4
    argon2_workers: Count = 2
    argon2_waiting: Count = 32

    postgres_pool: Count = 8
    redis_pool: Count = 64

    audit_ring: Count = 1000
    audit_commit_timeout_s: Seconds = 5.0
    prompt_log_ttl_s: PromptTtl = 7 * 24 * 3600
    prompt_log_max_bytes: Count = 65536
    prompt_log_queue: Count = 1000
    prompt_log_queue_bytes: Count = 16 * 1024 * 1024
    prompt_purge_interval_s: Seconds = 300.0
    heartbeat_s: Seconds = 5.0
    dead_after_s: Seconds = 15.0
    ledger_check_interval_s: Seconds = 60.0

    breaker_failures: Count = 5
    breaker_open_s: Seconds = 30.0

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            networks = tuple(ip_network(item.strip()) for item in value.split(",") if item.strip())
        except ValueError:
            raise ValueError("must be addresses or networks, such as 127.0.0.1,10.0.0.0/8") from None
        if any(network.version == 6 and network.network_address.ipv4_mapped for network in networks):
            raise ValueError("must have IPv4 networks as such, and not in the form ::ffff:10.0.0.0")
        return networks

    @field_validator("ollama_url")
    @classmethod
    def _http_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        try:
            parts = urlsplit(value)
            sound = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            sound = False
        if not sound or any(char.isspace() for char in value):
            raise ValueError("must be a URL with a host, such as http://127.0.0.1:11434")
        return value.rstrip("/")

    @field_validator("database_url")
    @classmethod
    def _postgres_url(cls, value: str) -> str:
        if not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: str) -> str:
        if value.startswith(("redis+cluster://", "rediss+cluster://")):
            if urlsplit(value).path not in ("", "/", "/0"):
                raise ValueError("a cluster has database 0 alone")
        elif not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss://, unix:// or redis+cluster://")
        return value

    @model_validator(mode="after")
    def _beats_before_death(self) -> Self:
        if self.heartbeat_s * 2 > self.dead_after_s:
            raise ValueError("DEAD_AFTER_S: must be at least twice HEARTBEAT_S")
        return self

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Settings from the environment, with ``overrides`` on top.

        Raises ``SettingsError`` whose message is one line for the first wrong variable; it never
        repeats the value, which may hold a password.
        """
        try:
            return cls(**overrides)  # type: ignore[arg-type]  # pydantic checks the values
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            reason = "is not set" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
            name = f"{str(first['loc'][0]).upper()}: " if first["loc"] else ""
            raise SettingsError(name + reason) from None
