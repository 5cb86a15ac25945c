"""Settings: their names, defaults, units and meaning.

A value comes from an argument of `MillisHooks`, else from `MILLIS_HOOKS_<NAME>` in the environment,
else from a `.env` file in the working directory, else from the default written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Literal, TypedDict, cast, get_args
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from .environment.addresses import is_loopback, service_address, web_address
from .environment.secret_rules import require_own, require_strong
from .environment.sources import (
    ENV_FILE,
    ENV_PREFIX,
    Given,
    cleaned,
    is_in_use_and_public,
    read_sources,
)
from .environment.values import as_text, expected, quoted
from .exceptions import ConfigError
from .protocol.agent_names import check_agent, check_unique
from .protocol.phones import international

Secrets = tuple[SecretStr, ...]
Networks = tuple[IPv4Network | IPv6Network, ...]
Hook = Literal["prefetch", "end_of_call", "function"]
#: The webhooks that every service has.
_ALWAYS: tuple[Hook, ...] = ("prefetch", "end_of_call")
Level = Literal["none", "partial", "full"]


#: One text, or several: as an argument also a list or a set.
Texts = str | Collection[str]


class SettingsOptions(TypedDict, total=False):
    """The settings as keyword arguments of `MillisHooks`, for type checkers and editors.

    `Settings` has the meaning, unit and default of each; a test compares the names.
    """

    secrets: Texts
    prefetch_secrets: Texts
    end_of_call_secrets: Texts
    function_secrets: Texts
    agent_secrets: Mapping[str, Texts]
    agent_names: Mapping[str, str]
    secret_header: str
    secret_in_path: bool
    insecure: bool
    exposed: bool
    prefix: str
    public_url: str | None
    database_url: str
    prefetch_budget_s: float
    prefetch_fallback: Literal["empty", "default", "last_good"]
    prefetch_default: Mapping[str, object]
    extra_prompt_max_chars: int
    max_body_bytes: int
    body_timeout_s: float
    own_numbers: Texts
    isolate_handlers: bool
    handler_threads: int
    handler_concurrency: int
    take_calls_when_damaged: bool
    run_handlers: bool
    handler_grace_s: float
    drain_s: float
    mask_numbers: Level
    mask_text: Level
    redact_before_store: bool
    retention_days: int
    pack_after_days: int
    sandbox: bool
    sandbox_key: str | SecretStr | None
    sandbox_anywhere: bool
    sandbox_pace: float
    api_key: str | SecretStr | None
    api_region: Literal["us", "eu"]
    api_url: str | None
    reconcile_minutes: int
    dashboard: bool
    dashboard_password: str | SecretStr | None
    session_key: str | SecretStr | None
    session_idle_hours: int
    session_days: int
    sign_in_header: str | None
    sign_in_proxies: Texts
    sign_in_role_header: str | None
    sign_in_role: Literal["view", "operate"]
    log_format: Literal["console", "json"]
    metrics_token: str | SecretStr | None
    metrics_open: bool
    tracing: bool


@dataclass(frozen=True, slots=True)
class SettingInForce:
    """The value of a setting as text, and its source: `default`, `environment`, `.env`, `code`."""

    name: str
    value: str
    source: str


class Settings(BaseModel):
    """The settings of one service, read by `Settings.load`."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    _given: dict[str, Given] = PrivateAttr(default_factory=dict)

    # Who may deliver
    secrets: Secrets = Field(
        (), description="Accepted secrets, comma separated; several while one is being rotated."
    )
    prefetch_secrets: Secrets = Field(
        (), description="Accepted on prefetch instead of SECRETS, comma separated."
    )
    end_of_call_secrets: Secrets = Field(
        (), description="Accepted on end-of-call instead of SECRETS, comma separated."
    )
    function_secrets: Secrets = Field(
        (), description="Accepted on functions instead of SECRETS, comma separated."
    )
    agent_secrets: dict[str, Secrets] = Field(
        {},
        description='Accepted for one agent only, as JSON: {"<agent_id>": ["<secret>"]}.'
        " Two agents may not share one.",
    )
    secret_header: str = Field(
        "Authorization",
        description="The header that carries the secret; Authorization carries `Bearer <secret>`.",
    )
    secret_in_path: bool = Field(
        False,
        description="Also accept {prefix}/{secret}/prefetch, for places that take only a URL.",
    )
    insecure: bool = Field(
        False, description="Run without secrets: anyone who reaches the service may deliver calls."
    )
    exposed: bool = Field(
        False,
        description="Serve other machines too, although INSECURE or SANDBOX is set. Without it "
        "these two are for this machine only.",
    )

    # Where
    prefix: str = Field("/millis", description="The path in front of the webhooks.")
    public_url: str | None = Field(
        None,
        description="The address at which Millis reaches the service, such as "
        "https://hooks.example.com. Include the path if the service is mounted at one, or if a "
        "proxy serves it below one: links, redirects and cookies then have it too.",
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
    extra_prompt_max_chars: int = Field(
        8_000, gt=0, description="Characters of extra_prompt that are sent; more is cut off."
    )

    # End-of-call
    max_body_bytes: int = Field(
        10 * 1024 * 1024, gt=0, description="Bytes a body may have, also once decompressed."
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="Seconds a body may take to arrive, where `millis-hooks` serves."
    )

    # Handlers
    own_numbers: frozenset[str] = Field(
        frozenset(),
        description="Your own phone numbers with + and country code, comma separated; they tell "
        "who the customer is.",
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
    take_calls_when_damaged: bool = Field(
        True,
        description="Acknowledge ends-of-call after the call log was found damaged, because much "
        "of it can be recovered. 0 answers 503 instead.",
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

    # Agents
    agent_names: dict[str, str] = Field(
        {},
        description='Names of agents, shown in place of their ids, as JSON: {"<agent_id>": "Front '
        'desk"}. Those given by `hooks.agent` come first, those at Millis last.',
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
        description="Opens the sandbox's API to requests with this key, as private and as public "
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
        description="How many times faster than life the sandbox's API has scripts go, and the "
        "answers of a model of your own spoken.",
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
    dashboard: bool = Field(
        True,
        description="Serve the pages; 0 leaves the webhooks, health and metrics.",
    )
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

    sign_in_header: str | None = Field(
        None,
        description="The header in which a proxy that signs people in names the operator, such as "
        "X-Forwarded-User. Needs SIGN_IN_PROXIES.",
    )
    sign_in_proxies: Networks = Field(
        (),
        description="Addresses and networks of the proxies that may name operators, comma "
        "separated: 10.0.0.5, 10.1.0.0/16. Requests from elsewhere that name one are refused.",
    )
    sign_in_role_header: str | None = Field(
        None, description="The header in which the proxy says the role: view or operate."
    )
    sign_in_role: Literal["view", "operate"] = Field(
        "view", description="The role of operators that a proxy names without a role."
    )

    # What watches the service
    log_format: Literal["console", "json"] = Field(
        "console",
        description="How `millis-hooks` logs: console for a person, json for what collects lines.",
    )
    metrics_token: SecretStr | None = Field(
        None,
        description="Opens /metrics to requests that carry it as `Authorization: Bearer <token>`; "
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
    def load(cls, **arguments: Any) -> Settings:
        """Read the settings, `arguments` first.

        Raises `ConfigError` naming each wrong setting as it was given, what was found and what was
        expected. No message has a secret in it.
        """
        given = read_sources(cls.model_fields, arguments)
        try:
            settings = cls(**{name: one.value for name, one in given.items()})
        except ValidationError as error:
            wrong = (_explain(each, given) for each in error.errors())
            raise ConfigError("\n".join(wrong)) from None
        settings._given.update(given)
        settings._require_whole_sign_in()
        return settings

    def _require_whole_sign_in(self) -> None:
        """Raise `ConfigError` where part of what a proxy needs to name operators is missing."""
        header, role, proxies = map(
            self.name_of, ("sign_in_header", "sign_in_role_header", "sign_in_proxies")
        )
        if self.sign_in_header and not self.sign_in_proxies:
            raise ConfigError(f"{header} needs {proxies}: else anyone could name an operator.")
        if not self.sign_in_header and self.sign_in_proxies:
            raise ConfigError(f"{proxies} needs {header}: the header that names the operator.")
        if not self.sign_in_header and self.sign_in_role_header:
            raise ConfigError(f"{role} needs {header}: the header that names the operator.")
        if (self.sign_in_role_header or "").lower() == (self.sign_in_header or " ").lower():
            raise ConfigError(f"{header} and {role} are the same header.")

    def name_of(self, setting: str) -> str:
        """Return what an error calls a setting: as it was given, else as the environment does."""
        given = self._given.get(setting)
        return ENV_PREFIX + setting.upper() if given is None else given.place

    @property
    def public_path(self) -> str:
        """The path of the public address, decoded and without a slash at its end; often empty."""
        return unquote(urlsplit(self.public_url or "").path)

    def in_force(self) -> Iterator[SettingInForce]:
        """Yield every setting with its value, secrets hidden, and where the value comes from."""
        for name, field in type(self).model_fields.items():
            value, given = getattr(self, name), self._given.get(name)
            yield SettingInForce(
                name=ENV_PREFIX + name.upper(),
                value=as_text(field, value),
                source="default" if given is None else given.source,
            )

    def require_closed(self, *, has_functions: bool = False) -> None:
        """Raise `ConfigError` unless every webhook asks for a secret, or `insecure` was chosen."""
        hooks: tuple[Hook, ...] = get_args(Hook) if has_functions else _ALWAYS
        if not self.insecure:
            for hook in hooks:
                if not self.accepted_secrets(hook):
                    raise ConfigError(_NO_SECRET.format(hook=hook))

    @property
    def unsafe(self) -> list[str]:
        """The settings that are set and let anyone do what takes a secret elsewhere."""
        return [self.name_of(name) for name in ("insecure", "sandbox") if getattr(self, name)]

    def require_unreachable(self, host: str) -> None:
        """Raise `ConfigError` if others can reach `host` and what they may do there is unsafe,
        unless `exposed` says that this is meant."""
        if self.unsafe and not self.exposed and not is_loopback(host):
            raise ConfigError(
                f"Other machines can reach {host}, and {' and '.join(self.unsafe)} is set. "
                f"{NOT_EXPOSED}"
            )

    @property
    def is_file_public(self) -> bool:
        """Whether settings came from `.env`, and others than its owner may read it."""
        return is_in_use_and_public(self._given.values())

    def warnings(self) -> Iterator[str]:
        """Say at each start what is dangerous about these settings."""
        where = "on any machine that reaches it" if self.exposed else "on this machine"
        if self.insecure:
            yield f"{self.name_of('insecure')} is set: anyone {where} may deliver calls"
        if self.sandbox and self.exposed:
            yield f"{self.name_of('sandbox')} is set: calls can be rehearsed {where}"
        if self.is_file_public:
            yield f"others may read {ENV_FILE.resolve()}: chmod 600 {ENV_FILE}"

    def accepted_secrets(self, hook: Hook) -> Mapping[str, str | None]:
        """Map each secret accepted on `hook` to the agent it is bound to, or to None for any."""
        own: Secrets = getattr(self, f"{hook}_secrets")
        accepted: dict[str, str | None] = {
            secret.get_secret_value(): agent_id
            for agent_id, secrets in self.agent_secrets.items()
            for secret in secrets
        }
        return accepted | {secret.get_secret_value(): None for secret in own or self.secrets}

    def secret_values(self) -> Iterator[str]:
        """Yield the secrets that are set, to keep them out of the log."""
        for hook in get_args(Hook):
            yield from self.accepted_secrets(hook)
        for secret in (self.api_key, self.metrics_token, self.dashboard_password):
            if secret is not None:
                yield secret.get_secret_value()

    @field_validator("agent_secrets", "agent_names", "prefetch_default", mode="before")
    @classmethod
    def _read_json(cls, value: object, info: ValidationInfo) -> object:
        expected = _JSON_EXAMPLES[str(info.field_name)]
        if isinstance(value, str):
            try:
                value = json.loads(value, object_pairs_hook=_without_repetition)
            except _RepeatedError as error:
                raise ValueError(f"{error} is in it twice") from None
            except (ValueError, RecursionError):
                raise ValueError(f"expected JSON, such as {expected}") from None
        if not isinstance(value, Mapping):
            raise ValueError(f"expected JSON, such as {expected}")
        if info.field_name == "agent_secrets":
            return {cleaned(agent_id) or "": _split(secrets) for agent_id, secrets in value.items()}
        if info.field_name == "agent_names":
            names = dict(check_agent(*each) for each in value.items())
            check_unique(names)
            return names
        return dict(value)

    @field_validator(
        "secrets",
        "prefetch_secrets",
        "end_of_call_secrets",
        "function_secrets",
        "own_numbers",
        mode="before",
    )
    @classmethod
    def _split_list(cls, value: object) -> object:
        return _split(value)

    @field_validator("secrets", "prefetch_secrets", "end_of_call_secrets", "function_secrets")
    @classmethod
    def _are_strong(cls, value: Secrets) -> Secrets:
        for secret in value:
            require_strong(secret.get_secret_value(), kind="a secret")
        return value

    @field_validator("agent_secrets")
    @classmethod
    def _are_strong_for_agents(cls, value: dict[str, Secrets]) -> dict[str, Secrets]:
        owners: dict[SecretStr, str] = {}
        for agent_id, secrets in value.items():
            for secret in cls._are_strong(secrets):
                owner = owners.setdefault(secret, agent_id)
                if owner != agent_id:
                    raise ValueError(
                        f"agents {owner} and {agent_id} have the same secret; give each its own, "
                        "or put it into SECRETS, which hold for all agents"
                    )
        return value

    @field_validator("dashboard_password", "metrics_token", "sandbox_key", "session_key")
    @classmethod
    def _is_strong(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            kind = "the " + str(info.field_name).rpartition("_")[2]
            require_strong(value.get_secret_value(), kind=kind)
        return value

    @field_validator("api_key")
    @classmethod
    def _is_own(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            require_own(value.get_secret_value(), kind="the key")
        return value

    @field_validator("own_numbers")
    @classmethod
    def _are_international(cls, value: frozenset[str]) -> frozenset[str]:
        return frozenset(map(international, value))

    @field_validator("secret_header", "sign_in_header", "sign_in_role_header")
    @classmethod
    def _is_header_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        is_secret = info.field_name == "secret_header"
        such_as = "Authorization or X-Millis-Key" if is_secret else "X-Forwarded-User"
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", value):
            raise ValueError(f"expected the name of a header, such as {such_as}")
        if not is_secret and value.lower() in _NAMES_NOBODY:
            raise ValueError(f"expected a header that only the proxy sets, such as {such_as}")
        return value

    @field_validator("sign_in_proxies", mode="before")
    @classmethod
    def _read_networks(cls, value: object) -> object:
        is_one = isinstance(value, str) or not isinstance(value, Iterable)
        parts: Iterable[object] = str(value).split(",") if is_one else cast("Any", value)
        return [_network(text) for text in (str(each).strip() for each in parts) if text]

    @field_validator("prefix")
    @classmethod
    def _is_path(cls, value: str) -> str:
        trimmed = value.rstrip("/")
        if trimmed and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", trimmed):
            raise ValueError("expected a path, such as /millis")
        return trimmed

    @field_validator("public_url")
    @classmethod
    def _is_service_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value and service_address(value, info.data.get("prefix", ""))

    @field_validator("api_url")
    @classmethod
    def _is_web_address(cls, value: str | None) -> str | None:
        return value and web_address(value)

    @field_validator("database_url")
    @classmethod
    def _is_call_log(cls, value: str) -> str:
        if re.match(r"sqlite:///.", value) and ":memory:" not in value:
            return value
        if not re.match(r"postgres(ql)?(\+psycopg)?://[^/]*/[^/?]", value):
            raise ValueError(
                "expected a SQLite file, such as sqlite:///millis_hooks.db, or a database of "
                "PostgreSQL, such as postgresql://user@host/database"
            )
        _require_readable(value)
        return value


#: Headers that browsers or other parts of the way set.
_NAMES_NOBODY = frozenset({"authorization", "cookie", "host", "origin", "referer", "user-agent"})


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError(
            f"expected addresses or networks, such as 10.0.0.5 or 10.1.0.0/16, not {text!r}"
        ) from None
    if network.prefixlen == 0:
        raise ValueError("expected the addresses of proxies, not all there are")
    return network


NOT_EXPOSED = (
    "INSECURE and SANDBOX are for one machine. Unset them, or say that others are meant to reach "
    "the service: MILLIS_HOOKS_EXPOSED=1"
)
_JSON_EXAMPLES = {
    "agent_names": '{"<agent_id>": "Front desk"}',
    "agent_secrets": '{"<agent_id>": ["<secret>"]}',
    "prefetch_default": '{"metadata": {}, "extra_prompt": ""}',
}
_NO_SECRET = (
    "No secret is set, so anyone could post calls to the {hook} webhook. Set one:\n"
    "  export MILLIS_HOOKS_SECRETS=$(openssl rand -hex 32)\n"
    "or choose MILLIS_HOOKS_INSECURE=1 to run without."
)


class _RepeatedError(ValueError):
    """JSON names a key twice, of which Python keeps the last."""


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _RepeatedError(repr(name))
        fields[name] = value
    return fields


def _split(value: object) -> object:
    """Return the items of a list that is written with commas, or given as one; each is cleaned."""
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, SecretStr) or not isinstance(parts, Iterable):
        parts = [parts]
    return [part for part in map(cleaned, parts) if part is not None]


def _require_readable(url: str) -> None:
    """Raise `ValueError` where a database's address cannot be read in one way only.

    What follows an `@` or `/` of a password would be taken for the host, and appear in errors.
    """
    authority, slash, rest = url.partition("://")[2].partition("/")
    _user, colon, after = authority.partition(":")
    path = rest.partition("?")[0]
    hosts = authority.rpartition("@")[2].split(",")
    are_hosts = all(re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", host) for host in hosts)
    is_cut = after.count("@") > 1 or "@" in slash + path or (colon and "?" in authority)
    if is_cut or not are_hosts:
        raise ValueError(
            "expected postgresql://user:password@host/database. In a password, write @ as %40, "
            "/ as %2F, : as %3A, ? as %3F, # as %23 and % as %25"
        )
    if "@" in after:
        require_own(after.rpartition("@")[0], kind="the password in it")


def _explain(error: ErrorDetails, given: Mapping[str, Given]) -> str:
    name = str(error["loc"][0])
    field, one = Settings.model_fields[name], given[name]
    if error["type"] == "value_error":
        reason = error["msg"].removeprefix("Value error, ")
    else:
        reason = f"expected {expected(field)}"
    return f"{one.place}: {reason}{quoted(field, one.value)}."


#: The key in a scope's `extensions` with the address a request came from, where `millis-hooks`
#: serves: `client` may be what a proxy says.
PEER = "millis_hooks.peer"
#: The key in a scope's `state` by which the server tells the application that it will stop:
#: https://asgi.readthedocs.io/en/latest/specs/lifespan.html#lifespan-state
STOPPING = "millis_hooks.stopping"
