"""Settings, read once from `BATCHING_*` environment variables (and a `.env` file when there is one)."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from batching.errors import ConfigurationError
from batching.hardening import broker_flaw, database_flaw


class Settings(BaseSettings):
    """Every knob, with its default, its unit and its reason."""

    model_config = SettingsConfigDict(env_prefix="BATCHING_", env_file=".env", extra="ignore", frozen=True)

    database_url: str | None = None
    """SQLAlchemy URL of the store, `postgresql+psycopg://…` or `sqlite:///…`; None: none configured."""
    broker_url: str | None = None
    """Redis or Valkey URL that carries the lanes: `redis://`, `rediss://`, `redis+socket://`; None: none configured."""
    hardened: bool = False
    """Refuse URLs that are not verified TLS or a unix socket; workers take no remote control and send no events."""
    handlers: Annotated[tuple[str, ...], NoDecode] = ()
    """Modules that workers import for their `profile_handler` marks; separated by commas."""
    queues: Annotated[tuple[str, ...], NoDecode] = ("*",)
    """Queues that a worker serves; `*` means every queue there is, new ones included."""
    home: Path = Path(".batching")
    """Folder of the embedded default: its SQLite file and its Valkey's append-only file."""
    key_prefix: str = Field("batching:", max_length=64)
    """Put before every Redis key, so that several installations can share one server."""

    payload_limit: int = Field(65_536, ge=64, le=16_777_216)
    """Bytes of one profile's encoded payload. Rows are copied at each move, so large payloads belong elsewhere."""
    result_limit: int = Field(65_536, ge=64, le=16_777_216)
    """Bytes of one profile's encoded result."""
    output_limit: int = Field(50_000_000, ge=1_000)
    """Characters that one run may print, 300 more for each write: it is a line in the log of its worker, whose disk is
    there for the neighbours too."""
    key_limit: int = Field(255, ge=8, le=255)
    """Characters of a profile key or batch key; the column holds 255."""
    batch_limit: int = Field(100_000_000, ge=1, le=2_000_000_000)
    """Profiles in one batch that this process submits."""

    heartbeat_interval: float = Field(2.5, gt=0, le=60)
    """Seconds between two signs of life of a worker."""
    worker_lease: float = Field(10.0, gt=0, le=3600)
    """Seconds of silence, watched by the leader, after which a worker is dead. At least three heartbeats."""
    leader_lease: float = Field(6.0, gt=0, le=3600)
    """Seconds after which a silent leader is replaced."""
    poll_interval: float = Field(0.2, gt=0, le=60)
    """Seconds between two looks of the leader when nothing wakes it."""
    suspect_after: float = Field(3.0, gt=0, le=3600)
    """Seconds after which an unclaimed dispatch is examined; doubles with every publication."""
    acknowledge: Literal["pop", "claim"] = "pop"
    """When a worker acknowledges a message: `pop`, with the pop itself; `claim`, with the claim of its run, and a copy
    stays in Redis until then. What a dead worker took along is published again either way; with `claim`, sooner."""
    visibility_timeout: float = Field(2.0, ge=0.1, le=60)
    """Seconds after which other workers offer a message again that was popped and not claimed, from its copy. The same
    for all workers of an installation: the shortest decides."""
    flush_interval: float = Field(0.05, gt=0, le=5)
    """Seconds that an outcome waits at most for others to be settled with it."""
    flush_size: int = Field(2_000, ge=1, le=10_000)
    """Rows in one claim or one settlement, at most; only short profiles come in groups of this size."""
    sql_timeout: float = Field(2.0, gt=0, le=60)
    """Seconds that a worker waits for one SQL statement, lock or connection before it tries again later."""
    drain_timeout: float = Field(25.0, ge=0, le=86_400)
    """Seconds that running profiles get to finish after SIGTERM before they are given back."""
    max_losses: int = Field(2, ge=0, le=100)
    """Workers that a profile may take down before it runs alone, where one more loss fails it."""
    lane_window: int = Field(0, ge=0, le=1_000_000)
    """Messages of one lane in the broker at once; 0: measured, max(2 x pool slots, 0.27 seconds of the rate)."""
    manager: bool = True
    """Whether a worker also starts a manager (leader election, promotion, dispatch, sweep) as a subprocess."""
    log_format: Literal["json", "console"] = "console"
    """How workers and managers of this package's own write their logs: one JSON object a line, or for people."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] | None = None
    """From which level on; None: what Celery's `--loglevel` says, and INFO for a manager."""
    health_address: str | None = None
    """`host:port` where a worker, or a manager of its own, answers `/livez` and `/readyz`; None: nowhere."""
    retention_days: float = Field(30.0, ge=0)
    """Days that finished batches are kept before `prune` deletes them."""
    metrics_address: str | None = None
    """Where a manager serves `/metrics` for Prometheus: `host:port`, or a port of 127.0.0.1; None: nowhere."""

    webhook_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """What webhooks are signed with: `whsec_` and base64; two, separated by a comma, while one replaces the other."""
    webhook_allow_http: bool = False
    """Whether a webhook may go to `http://`, where anybody on the way reads and changes it."""
    webhook_allow_private: bool = False
    """Whether a webhook may go to addresses that are not public: loopback, private, link-local, cloud metadata."""
    webhook_timeout: float = Field(10.0, gt=0, le=300)
    """Seconds that one delivery of a webhook may take, from the first look-up of the host to the end of the answer."""
    callback_attempts: int = Field(15, ge=1, le=100)
    """Deliveries of one callback that are tried before it is dead; with the default back-off, over some 5 hours."""
    callback_backoff: float = Field(5.0, gt=0, le=3600)
    """Seconds after the first failed delivery of a callback; doubles, up to an hour."""
    celery_app: str | None = None
    """The Celery application that sends callbacks which are tasks, as `-A` takes it; None: that of the worker which
    started the manager, else `workers.celery`."""

    web_tokens: Annotated[tuple[str, ...], NoDecode] = ()
    """Who may use the dashboard and the API: `name:role:sha256`, separated by commas; `batching dashboard token` makes
    one. Only digests: the tokens themselves are kept nowhere."""
    web_secret: SecretStr | None = None
    """Signs the sessions of browsers, 32 characters at least; None: made at the start, so that sessions end with the
    process."""
    web_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Host names under which the dashboard may be asked for, beside those of this machine's loopback; `*`: any."""
    web_https: bool = False
    """Whether browsers reach the dashboard by https, through a proxy: cookies are then sent by https alone."""
    web_read_only: bool = False
    """Whether the dashboard and the API refuse everything that changes something, whoever asks."""
    web_body_limit: int = Field(8_388_608, ge=1_024, le=1_073_741_824)
    """Bytes of a request's body that is held in memory; JSON lines are streamed, and have no bound but the batch's."""
    web_streams: int = Field(100, ge=1, le=10_000)
    """Streams of events that one dashboard serves at once."""
    web_threads: int = Field(8, ge=1, le=64)
    """Requests to SQL that one dashboard has at once; as many database connections."""

    @field_validator("handlers", "queues", "webhook_secrets", "web_tokens", "web_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part for part in re.split(r"[,\s]+", value) if part)
        return value

    @field_validator(
        "database_url", "broker_url", "celery_app", "health_address", "metrics_address", "web_secret", mode="before"
    )
    @classmethod
    def _blank_is_none(cls, value: Any) -> Any:
        return value or None

    @field_validator("metrics_address")
    @classmethod
    def _names_a_port(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]:|[^:\s]*:)?\d{1,5}", value):
            raise ValueError("must be host:port, such as 127.0.0.1:9464, [::1]:9464 or 0.0.0.0:9464, or a port alone")
        return value

    @field_validator("log_format", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() or "console" if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() or None if isinstance(value, str) else value

    @field_validator("hardened")
    @classmethod
    def _nothing_in_clear(cls, value: bool, info: Any) -> bool:
        if value and (flaw := _flaw(info.data.get("database_url"), info.data.get("broker_url"))):
            raise ValueError(flaw)
        return value

    @field_validator("worker_lease")
    @classmethod
    def _lease_outlives_heartbeats(cls, value: float, info: Any) -> float:
        beat = info.data.get("heartbeat_interval", 0)
        if value < 3 * beat:
            raise ValueError(f"must be at least three heartbeats, that is {3 * beat:g} seconds")
        return value


def _flaw(database_url: str | None, broker_url: str | None) -> str | None:
    if database_url is not None and (flaw := database_flaw(database_url)):
        return f"the connection of BATCHING_DATABASE_URL {flaw}"
    if broker_url is not None and (flaw := broker_flaw(broker_url)):
        return f"the connection of BATCHING_BROKER_URL {flaw}"
    return None


def refuse_flaws(settings: Settings) -> None:
    """Look at the URLs again, after something was put over them.

    Raises:
        ConfigurationError: The hardened profile is on, and one of them does not fit it.
    """
    if settings.hardened and (flaw := _flaw(settings.database_url, settings.broker_url)):
        raise ConfigurationError(f"cannot use these settings with BATCHING_HARDENED: {flaw}")


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process.

    Raises:
        ConfigurationError: A variable does not parse; the message names each one and what it may be.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(
            f"BATCHING_{'.'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ConfigurationError(f"cannot read the settings: {problems}") from None


def mask_url(url: str) -> str:
    """A URL fit for logs and errors: `***` in the place of its password, and of secrets among its options."""
    # Up to the last `@`: a password may have one that nobody has quoted.
    masked = re.sub(r"((?:^|://)[^:/@\s]*):(?!//)\S*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&\s]*(?:pass|secret|token)[^=&\s]*)=[^&\s]*", r"\1=***", masked, flags=re.IGNORECASE)
