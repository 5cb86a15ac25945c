"""Every setting: its name, default, unit and meaning. Together with `cli` the only reader of the
environment.

A value comes from an argument of `MillisHooks`, else from `MILLIS_HOOKS_<NAME>` in the environment,
else from a `.env` file in the working directory, else from the default written here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from .exceptions import ConfigError

ENV_PREFIX = "MILLIS_HOOKS_"

#: A secret shorter than this can be guessed; the service refuses to start with it.
MIN_SECRET_CHARS = 16

Secrets = tuple[SecretStr, ...]
Hook = Literal["prefetch", "end_of_call"]
Level = Literal["none", "partial", "full"]


class Settings(BaseSettings):
    """The settings of one service. Wrong values raise `ConfigError` through `Settings.load`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        validate_default=False,
        hide_input_in_errors=True,
    )

    # Who may deliver
    secrets: Annotated[Secrets, NoDecode] = Field(
        (), description="Accepted secrets, comma separated; several while one is being rotated."
    )
    prefetch_secrets: Annotated[Secrets, NoDecode] = Field(
        (), description="Accepted on prefetch instead of SECRETS, comma separated."
    )
    end_of_call_secrets: Annotated[Secrets, NoDecode] = Field(
        (), description="Accepted on end-of-call instead of SECRETS, comma separated."
    )
    agent_secrets: dict[str, Secrets] = Field(
        {},
        description='Accepted for one agent only, as JSON: {"<agent_id>": ["<secret>"]}.',
    )
    secret_header: str = Field(
        "Authorization",
        description="The header that carries the secret; Authorization carries `Bearer <secret>`.",
    )
    secret_in_path: bool = Field(
        False,
        description="Also accept {prefix}/{secret}/prefetch, for places that take only a URL.",
    )
    insecure: bool = Field(False, description="Run without secrets. Never on a public address.")

    # Where
    prefix: str = Field("/millis", description="The path in front of the two webhooks.")
    public_url: str | None = Field(
        None,
        description="Where Millis reaches the service, as https://hooks.example.com, with the path "
        "it is mounted at if any. The setup page begins with it.",
    )
    database_url: str = Field(
        "sqlite:///millis_hooks.db",
        description="The call log: a SQLite file, or postgresql://user:password@host/database.",
    )

    # Prefetch
    prefetch_budget_s: float = Field(
        2.0, gt=0, le=60, description="Seconds a prefetch may take until the fallback goes out."
    )
    prefetch_fallback: Literal["empty", "default", "last_good"] = Field(
        "empty",
        description="What goes out when the handlers fail or are late; last_good falls back to "
        "PREFETCH_DEFAULT.",
    )
    prefetch_default: dict[str, Any] = Field(
        {}, description='The default answer, as JSON: {"metadata": {}, "extra_prompt": ""}.'
    )
    last_good_max_age_s: float = Field(
        24 * 3600, gt=0, description="Seconds a last good answer may be reused."
    )
    last_good_max_entries: int = Field(
        10_000, gt=0, description="Callers whose last good answer is remembered."
    )
    extra_prompt_max_chars: int = Field(
        8_000, gt=0, description="Characters of extra_prompt that are sent; more is cut off."
    )

    # End of call
    max_body_bytes: int = Field(
        10 * 1024 * 1024, gt=0, description="Bytes a body may have, also once decompressed."
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="Seconds a body may take to arrive, where `millis-hooks` serves."
    )

    # Handlers
    own_numbers: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Your own phone numbers, comma separated; tells who the customer is.",
    )
    isolate_handlers: bool = Field(
        True, description="Run handlers on a thread and event loop of their own."
    )
    handler_threads: int = Field(
        32, gt=0, le=1000, description="Threads for prefetch handlers that are not async."
    )
    handler_concurrency: int = Field(
        16, gt=0, le=1000, description="End-of-call handlers that run at the same time."
    )
    run_handlers: bool = Field(
        True,
        description="Call end-of-call handlers here; 0 leaves them to `millis-hooks worker`.",
    )
    handler_grace_s: float = Field(
        5.0, ge=0, le=3600, description="Seconds that end-of-call handlers get to end at a stop."
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Seconds before a stop in which `/readyz` says no and all else is answered, so "
        "that a load balancer looks elsewhere. Only where `millis-hooks run` serves.",
    )

    # What is hidden
    mask_numbers: Level = Field(
        "none",
        description="How much of phone numbers is hidden on pages, in output and in exports: none, "
        "partial (+1415•••••34) or full. Your own are always shown.",
    )
    mask_text: Level = Field(
        "none",
        description="How much of what was said and of metadata is hidden: none, partial (long "
        "numbers and e-mail addresses) or full.",
    )
    redact_before_store: bool = Field(
        False,
        description="Store nothing but what MASK_NUMBERS and MASK_TEXT show (both full if neither "
        "is set). Handlers of ended calls get no more either.",
    )

    # What is kept
    retention_days: int = Field(
        90,
        ge=0,
        le=36_500,
        description="Days after which calls and all that belongs to them are removed; 0 keeps "
        "them.",
    )
    pack_after_days: int = Field(
        7,
        ge=0,
        le=36_500,
        description="Days after which the bytes received are kept compressed in the database; "
        "pages, commands and exports show them as they came. 0 never compresses.",
    )

    # The sandbox
    sandbox: bool = Field(
        False,
        description="Serve the sandbox, where calls are rehearsed without a phone; `dev` does.",
    )
    sandbox_key: SecretStr | None = Field(
        None,
        description="Opens the sandbox's API to whoever has this key, as private and as public "
        "key. Without one it is for this machine only, and any key will do.",
    )
    sandbox_anywhere: bool = Field(
        False,
        description="Let calls of the sandbox reach functions and models that are not on this "
        "machine.",
    )
    sandbox_pace: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How many times faster than life scripted calls of the sandbox's API are.",
    )

    # Millis' own interface
    api_key: SecretStr | None = Field(
        None,
        description="The private key of your account at Millis: to start calls, and to fetch the "
        "ends that never arrived.",
    )
    api_region: Literal["us", "eu"] = Field(
        "us", description="Where your account at Millis is: us or eu."
    )
    api_url: str | None = Field(
        None,
        description="The address of another API than the region's, such as the sandbox's.",
    )
    reconcile_minutes: int = Field(
        15,
        ge=0,
        le=24 * 60,
        description="Minutes between looks into Millis' call logs for calls whose end never "
        "arrived, where API_KEY is set; 0 never looks.",
    )

    # The dashboard
    dashboard_password: SecretStr | None = Field(
        None,
        description="Password of the operator `admin`, who may operate; `millis-hooks operator "
        "add` adds others.",
    )
    session_key: SecretStr | None = Field(
        None, description="Signs operators' cookies; made and kept in the call log by default."
    )
    session_idle_hours: int = Field(
        12,
        gt=0,
        le=8760,
        description="Hours without a page after which an operator has to sign in again, unless "
        "kept signed in.",
    )
    session_days: int = Field(
        30, gt=0, le=365, description="Days after which an operator has to sign in again anyhow."
    )

    # What watches the service
    log_format: Literal["console", "json"] = Field(
        "console",
        description="How `millis-hooks` logs: console for a person, json for what collects lines.",
    )
    metrics_token: SecretStr | None = Field(
        None,
        description="Opens /metrics to whoever brings it as `Authorization: Bearer <token>`; "
        "operators who are signed in may read it anyhow.",
    )
    metrics_open: bool = Field(
        False,
        description="Let anybody read /metrics. It tells names of handlers, and how much happens.",
    )
    tracing: bool = Field(
        False,
        description="Trace calls with OpenTelemetry, from prefetch to the last handler. Needs the "
        "extra `otel`; the variables OTEL_* say where traces go.",
    )

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read the settings, `overrides` first.

        Raises `ConfigError` naming each wrong setting, what kind of value was found and what fits.
        """
        unknown = sorted(overrides.keys() - cls.model_fields.keys())
        if unknown:
            known = ", ".join(cls.model_fields)
            raise ConfigError(f"Unknown setting {unknown[0]!r}. Known settings: {known}.")
        try:
            return cls(**overrides)
        except ValidationError as error:
            raise ConfigError("\n".join(map(_explain, error.errors()))) from error
        except SettingsError as error:
            raise ConfigError(f"{error}. Expected JSON; see `millis-hooks run --help`.") from error

    def require_closed(self) -> None:
        """Raise `ConfigError` unless every webhook asks for a secret, or `insecure` was chosen."""
        if not self.insecure:
            for hook in ("prefetch", "end_of_call"):
                if not self.accepted_secrets(hook):
                    raise ConfigError(_NO_SECRET.format(hook=hook))

    def accepted_secrets(self, hook: Hook) -> Mapping[str, str | None]:
        """Map each secret accepted on `hook` to the agent it is bound to, or to None for any."""
        own = self.prefetch_secrets if hook == "prefetch" else self.end_of_call_secrets
        accepted: dict[str, str | None] = {
            secret.get_secret_value().strip(): agent_id
            for agent_id, secrets in self.agent_secrets.items()
            for secret in secrets
        }
        return accepted | {
            secret.get_secret_value().strip(): None for secret in own or self.secrets
        }

    @field_validator("secrets", "prefetch_secrets", "end_of_call_secrets", mode="before")
    @classmethod
    def _split_secrets(cls, value: object) -> object:
        return _split(value)

    @field_validator("own_numbers", mode="before")
    @classmethod
    def _split_numbers(cls, value: object) -> object:
        return _split(value)

    @field_validator("secrets", "prefetch_secrets", "end_of_call_secrets")
    @classmethod
    def _strong(cls, value: Secrets) -> Secrets:
        for secret in value:
            _require_strong(secret)
        return value

    @field_validator("sandbox_key", "metrics_token")
    @classmethod
    def _strong_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _require_strong(value)
        return value

    @field_validator("agent_secrets")
    @classmethod
    def _strong_for_agents(cls, value: dict[str, Secrets]) -> dict[str, Secrets]:
        for secrets in value.values():
            for secret in secrets:
                _require_strong(secret)
        return value

    @field_validator("secret_header")
    @classmethod
    def _is_header_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", value):
            raise ValueError("expected the name of a header, such as Authorization or X-Millis-Key")
        return value

    @field_validator("prefix")
    @classmethod
    def _is_path(cls, value: str) -> str:
        trimmed = value.rstrip("/")
        if trimmed and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", trimmed):
            raise ValueError("expected a path such as /millis")
        return trimmed

    @field_validator("public_url")
    @classmethod
    def _is_web_address(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
            raise ValueError("expected an address such as https://hooks.example.com")
        return value or None

    @field_validator(
        "api_key",
        "api_url",
        "dashboard_password",
        "metrics_token",
        "sandbox_key",
        "session_key",
        mode="before",
    )
    @classmethod
    def _is_unset_if_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("database_url")
    @classmethod
    def _is_call_log(cls, value: str) -> str:
        is_file = re.match(r"sqlite:///.", value) and ":memory:" not in value
        if not is_file and not re.match(r"postgres(ql)?(\+psycopg)?://[^/]*/[^/?]", value):
            raise ValueError(
                "expected a SQLite file, such as sqlite:///millis_hooks.db, or a database of "
                "PostgreSQL, such as postgresql://user@host/database"
            )
        return value


_NO_SECRET = (
    "No secret is set, so anyone could post calls to the {hook} webhook. Set one:\n"
    "  export MILLIS_HOOKS_SECRETS=$(openssl rand -hex 32)\n"
    "or choose MILLIS_HOOKS_INSECURE=1 to run without."
)


def _split(value: object) -> object:
    if isinstance(value, str):
        return [part for part in (part.strip() for part in value.split(",")) if part]
    return value


def _require_strong(secret: SecretStr) -> None:
    length = len(secret.get_secret_value().strip())
    if length < MIN_SECRET_CHARS:
        raise ValueError(
            f"a secret has {length} characters, at least {MIN_SECRET_CHARS} are needed; make one "
            "with: openssl rand -hex 32"
        )


def _explain(error: ErrorDetails) -> str:
    name = str(error["loc"][0]) if error["loc"] else "settings"
    found = error["input"]
    shape = (
        f"{type(found).__name__} of {len(found)} characters"
        if isinstance(found, str)
        else (type(found).__name__)
    )
    message = error["msg"].removeprefix("Value error, ")
    return f"{ENV_PREFIX}{name.upper()}: {message} (found: {shape})."
