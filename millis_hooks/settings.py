"""Settings: their names, defaults, units and meaning.

A value comes from an argument of `MillisHooks`, else from `MILLIS_HOOKS_<NAME>` in the environment,
else from a `.env` file in the working directory, else from the default written here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args
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

from .environment.addresses import is_loopback, service_address
from .environment.sources import (
    ENV_FILE,
    ENV_PREFIX,
    Given,
    as_text,
    cleaned,
    expected,
    is_in_use_and_public,
    quoted,
    read_sources,
)
from .environment.values import (
    DatabaseUrl,
    Networks,
    Numbers,
    OneSecret,
    OwnKey,
    PrefixPath,
    Secrets,
    WebAddress,
    read_object,
    split,
)
from .exceptions import ConfigError
from .protocol.agent_names import check_agent, check_unique
from .protocol.variables import check_variables

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
    variables: Mapping[str, object]
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
        (), description="Accepted secrets, separated by commas. Several while you rotate one."
    )
    prefetch_secrets: Secrets = Field(
        (), description="Accepted on prefetch instead of SECRETS, separated by commas."
    )
    end_of_call_secrets: Secrets = Field(
        (), description="Accepted on end-of-call instead of SECRETS, separated by commas."
    )
    function_secrets: Secrets = Field(
        (), description="Accepted on functions instead of SECRETS, separated by commas."
    )
    agent_secrets: dict[str, Secrets] = Field(
        {},
        description='Accepted for one agent only, as JSON: {"<agent_id>": ["<secret>"]}.'
        " Two agents cannot share a secret.",
    )
    secret_header: str = Field(
        "Authorization",
        description="Header with the secret. In Authorization it is `Bearer <secret>`.",
    )
    secret_in_path: bool = Field(
        False,
        description="Also accept the secret in the path, {prefix}/{secret}/prefetch, for a URL "
        "without headers.",
    )
    insecure: bool = Field(
        False, description="Run without secrets: anyone who can reach the service can send calls."
    )
    exposed: bool = Field(
        False,
        description="Listen on addresses other than loopback although INSECURE or SANDBOX is set.",
    )

    # Where
    prefix: PrefixPath = Field(
        "/millis", description="Path before the webhooks, such as /millis in /millis/prefetch."
    )
    public_url: str | None = Field(
        None,
        description="URL at which Millis reaches the service, such as https://hooks.example.com. "
        "If it is mounted or served below a path, include that path, so that links, redirects "
        "and cookies have it.",
    )
    database_url: DatabaseUrl = Field(
        "sqlite:///millis_hooks.db",
        description="The call log: a SQLite file, or postgresql://user:password@host/database.",
    )

    # Prefetch
    prefetch_budget_s: float = Field(
        2.0,
        gt=0,
        le=60,
        description="Seconds that prefetch handlers have before the fallback is sent.",
    )
    prefetch_fallback: Literal["empty", "default", "last_good"] = Field(
        "empty",
        description="Answer if prefetch handlers fail or are late: nothing (empty), "
        "PREFETCH_DEFAULT (default), or the last answer for this caller (last_good; without one, "
        "PREFETCH_DEFAULT).",
    )
    prefetch_default: dict[str, Any] = Field(
        {}, description='The default answer, as JSON: {"metadata": {}, "extra_prompt": ""}.'
    )
    variables: dict[str, Any] = Field(
        {},
        description="Variables of the agents' prompts and their defaults, as JSON. They complete "
        "every answer to a prefetch.",
    )
    extra_prompt_max_chars: int = Field(
        8_000,
        gt=0,
        description="Maximum length of extra_prompt in characters. Longer ones are cut.",
    )

    # End-of-call
    max_body_bytes: int = Field(
        10 * 1024 * 1024,
        gt=0,
        description="Maximum size of a body in bytes, before and after decompression.",
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Maximum time for a body to arrive, in seconds. Only with the server of "
        "`millis-hooks`.",
    )

    # Handlers
    own_numbers: Numbers = Field(
        frozenset(),
        description="Your own phone numbers with + and country code, separated by commas. The "
        "other number of a call is the customer's.",
    )
    isolate_handlers: bool = Field(
        True, description="Run handlers on a separate thread and event loop."
    )
    handler_threads: int = Field(
        32, gt=0, le=1000, description="Number of threads for prefetch handlers that are not async."
    )
    handler_concurrency: int = Field(
        16, gt=0, le=1000, description="Number of end-of-call handlers that run at the same time."
    )
    take_calls_when_damaged: bool = Field(
        True,
        description="Acknowledge end-of-calls although the call log is damaged, because much of "
        "it can be recovered. 0 answers 503 instead.",
    )
    run_handlers: bool = Field(
        True,
        description="Run end-of-call handlers in this process. With 0, `millis-hooks worker` "
        "runs them.",
    )
    handler_grace_s: float = Field(
        5.0,
        ge=0,
        le=3600,
        description="Seconds that running end-of-call handlers get to finish at shutdown.",
    )
    drain_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="At shutdown, keep serving for this many seconds with /readyz at 503, so "
        "that load balancers stop sending requests. Only with `millis-hooks run`.",
    )

    # Agents
    agent_names: dict[str, str] = Field(
        {},
        description='Names of agents, shown instead of their IDs, as JSON: {"<agent_id>": "Front '
        'desk"}. Names from `hooks.agent` take precedence; names at Millis are used last.',
    )

    # What is hidden
    mask_numbers: Level = Field(
        "none",
        description="Hide phone numbers on pages, in output and in exports: none, partial "
        "(+1415•••••34) or full. Your own numbers are always shown.",
    )
    mask_text: Level = Field(
        "none",
        description="Hide transcripts and metadata: none, partial (long numbers and e-mail "
        "addresses) or full.",
    )
    redact_before_store: bool = Field(
        False,
        description="Mask before storing, so that masked values are never written to disk and "
        "end-of-call handlers do not get them. If neither MASK_NUMBERS nor MASK_TEXT is set, "
        "both are full.",
    )

    # What is kept
    retention_days: int = Field(
        90,
        ge=0,
        le=36_500,
        description="Days after which calls and their data are removed. 0 keeps them forever.",
    )
    pack_after_days: int = Field(
        7,
        ge=0,
        le=36_500,
        description="Days after which raw bodies are compressed in the database. Pages, commands "
        "and exports do not change. 0 never compresses.",
    )

    # The sandbox
    sandbox: bool = Field(
        False,
        description="Serve the sandbox, which simulates calls without a phone. `dev` always does.",
    )
    sandbox_key: OneSecret | None = Field(
        None,
        description="Private and public key of the sandbox's API. Without it, the API accepts "
        "any key, but only from the same machine.",
    )
    sandbox_anywhere: bool = Field(
        False,
        description="Let simulated calls use functions and models on other machines.",
    )
    sandbox_pace: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="Playback speed of scripted calls of the sandbox's API and of the answers of "
        "your own model. 1 is real time.",
    )

    # Millis' own interface
    api_key: OwnKey | None = Field(
        None,
        description="Private key of your Millis account, to start calls and to fetch missing "
        "end-of-calls.",
    )
    api_region: Literal["us", "eu"] = Field(
        "us", description="Region of your Millis account: us or eu."
    )
    api_url: WebAddress | None = Field(
        None,
        description="URL of an API to use instead of the region's, such as the sandbox's.",
    )
    reconcile_minutes: int = Field(
        15,
        ge=0,
        le=24 * 60,
        description="Minutes between two checks of the Millis API logs for missing end-of-calls. "
        "Needs API_KEY. 0 turns the checks off.",
    )

    # The dashboard
    dashboard: bool = Field(
        True,
        description="Serve the pages. With 0, only webhooks, health checks and metrics are served.",
    )
    dashboard_password: OneSecret | None = Field(
        None,
        description="Password of the operator `admin`. `millis-hooks operator add` adds other "
        "operators.",
    )
    session_key: OneSecret | None = Field(
        None,
        description="Key that signs operators' cookies. By default it is generated and stored in "
        "the call log.",
    )
    session_idle_hours: int = Field(
        12,
        gt=0,
        le=8760,
        description="Hours without activity after which an operator has to sign in again, unless "
        "they chose to stay signed in.",
    )
    session_days: int = Field(
        30,
        gt=0,
        le=365,
        description="Days after which an operator has to sign in again in any case.",
    )

    sign_in_header: str | None = Field(
        None,
        description="Header in which a proxy sends the name of the signed-in operator, such as "
        "X-Forwarded-User. Needs SIGN_IN_PROXIES.",
    )
    sign_in_proxies: Networks = Field(
        (),
        description="Addresses and networks of these proxies, separated by commas: 10.0.0.5, "
        "10.1.0.0/16. Requests with this header from other addresses are rejected.",
    )
    sign_in_role_header: str | None = Field(
        None, description="Header in which the proxy sends the operator's role: view or operate."
    )
    sign_in_role: Literal["view", "operate"] = Field(
        "view", description="Role of operators if the proxy sends none."
    )

    # What watches the service
    log_format: Literal["console", "json"] = Field(
        "console",
        description="Format of log lines: console for people, json for log collectors.",
    )
    metrics_token: OneSecret | None = Field(
        None,
        description="Token for /metrics, sent as `Authorization: Bearer <token>`. Signed-in "
        "operators need no token.",
    )
    metrics_open: bool = Field(
        False,
        description="Make /metrics public. It contains handler names and traffic counts.",
    )
    tracing: bool = Field(
        False,
        description="Trace calls with OpenTelemetry, from the prefetch to the last handler. "
        "Needs the extra `otel`. The OTEL_* variables configure the exporter.",
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
            yield f"{self.name_of('sandbox')} is set: calls can be simulated {where}"
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

    @field_validator("agent_secrets", "agent_names", "prefetch_default", "variables", mode="before")
    @classmethod
    def _read_json(cls, value: object, info: ValidationInfo) -> object:
        such_as = _JSON_EXAMPLES[str(info.field_name)]
        if isinstance(value, str):
            value = read_object(value, such_as)
        if not isinstance(value, Mapping):
            raise ValueError(f"expected JSON, such as {such_as}")
        if info.field_name == "agent_secrets":
            return {cleaned(agent_id) or "": split(secrets) for agent_id, secrets in value.items()}
        if info.field_name == "agent_names":
            names = dict(check_agent(*each) for each in value.items())
            check_unique(names)
            return names
        if info.field_name == "variables":
            return check_variables(value)
        return dict(value)

    @field_validator("agent_secrets")
    @classmethod
    def _are_strong_for_agents(cls, value: dict[str, Secrets]) -> dict[str, Secrets]:
        owners: dict[SecretStr, str] = {}
        for agent_id, secrets in value.items():
            for secret in secrets:
                owner = owners.setdefault(secret, agent_id)
                if owner != agent_id:
                    raise ValueError(
                        f"agents {owner} and {agent_id} have the same secret; give each its own, "
                        "or put it into SECRETS, which hold for all agents"
                    )
        return value

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

    @field_validator("public_url")
    @classmethod
    def _is_service_address(cls, value: str | None, info: ValidationInfo) -> str | None:
        return value and service_address(value, info.data.get("prefix", ""))


#: Headers that browsers or other parts of the way set.
_NAMES_NOBODY = frozenset({"authorization", "cookie", "host", "origin", "referer", "user-agent"})


NOT_EXPOSED = (
    "INSECURE and SANDBOX are for one machine. Unset them, or say that others are meant to reach "
    "the service: MILLIS_HOOKS_EXPOSED=1"
)
_JSON_EXAMPLES = {
    "agent_names": '{"<agent_id>": "Front desk"}',
    "agent_secrets": '{"<agent_id>": ["<secret>"]}',
    "prefetch_default": '{"metadata": {}, "extra_prompt": ""}',
    "variables": '{"first_name": "there"}',
}
_NO_SECRET = (
    "No secret is set, so anyone could post calls to the {hook} webhook. Set one:\n"
    "  export MILLIS_HOOKS_SECRETS=$(openssl rand -hex 32)\n"
    "or choose MILLIS_HOOKS_INSECURE=1 to run without."
)


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
