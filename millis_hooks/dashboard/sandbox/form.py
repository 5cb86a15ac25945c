"""The form of the sandbox: a call that has not begun, in an address and as a client of Millis asks.

The snippet that the page shows is built from the same body that is checked by the models of
Millis' interface, so what that interface would refuse is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlencode

from pydantic import JsonValue, TypeAdapter, ValidationError

from ...exceptions import PayloadError
from ...masking.secret_patterns import is_secret_name
from ...protocol.reading import read_json
from ...protocol.samples import AGENT_ID, CUSTOMER_PHONE, OWN_PHONE
from ...protocol.typed_metadata import as_text
from ...sandbox.emulator.schemas import (
    AgentChoice,
    CallFields,
    Initiate,
    OutboundCall,
    UnprocessableError,
    check,
)
from ...sandbox.emulator.sessions import Address, SessionManager
from ...sandbox.policy import Policy, read_policy
from ...sandbox.scenario import (
    PHONE_WAYS,
    PREFETCH_FAULTS,
    SHIPPED,
    Faults,
    Scenario,
    SessionSpec,
    load_scenario,
)
from ...sandbox.transport import API_PATH
from ...sandbox.webhook_client import RESERVED

#: How a call can begin here. In reality, an inbound call has no metadata.
Way: TypeAlias = Literal["widget", "web-sdk", "websocket", "outbound", "inbound"]

#: Rows of metadata that the form takes, and empty ones that it shows.
MOST_ROWS = 20
_SPARE_ROWS = 2
#: The policy here; Millis' ten minutes are too long for a page.
_POLICY = Policy(late_by_s=10, end_of_call_retry_after_s=5)

_FAULTS = TypeAdapter(Faults)

#: Names that the address of a widget uses itself. Source: integration/embeddable-call-widget.
_WIDGET_NAMES = frozenset({"id", "k", "c"})
_WIDGET = "https://app.millis.ai/agents/embedded"
_API = "https://api-west.millis.ai"
_KEY = "YOUR_PUBLIC_KEY"
#: Of an agent without an id: Millis takes no configuration without a voice.
_VOICE: Mapping[str, JsonValue] = {"provider": "openai", "voice_id": "alloy"}

_TEXTS = ("agent", "from_phone", "to_phone", "prompt", "first", "llm", "slow_s")


@dataclass(frozen=True, slots=True)
class Row:
    """A metadata key as typed; `is_json` tells how its value is read."""

    key: str = ""
    value: str = ""
    is_json: bool = False


@dataclass(frozen=True, slots=True)
class Snippet:
    """How a client of Millis would begin the call.

    `here` is an address at which a browser begins it in this sandbox, `endpoint` that for clients.
    """

    title: str
    text: str
    here: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A call that has not begun. `slow_s` is the delay of a slow prefetch."""

    way: Way = "websocket"
    scenario: str = ""
    agent: str = AGENT_ID
    from_phone: str = OWN_PHONE
    to_phone: str = CUSTOMER_PHONE
    rows: tuple[Row, ...] = ()
    include: bool = False
    prompt: str = ""
    first: str = ""
    llm: str = ""
    fault: str = ""
    slow_s: str = "3"
    dry: bool = False
    #: The typed settings of the policy that differ from its defaults.
    policy: Mapping[str, str] = field(default_factory=dict)

    @property
    def may_include(self) -> bool:
        """Tell whether this way has a flag that puts the metadata into the prompt."""
        return self.way not in {"widget", "inbound"}

    @property
    def shown_rows(self) -> tuple[Row, ...]:
        """The rows, and some empty ones."""
        spare = min(_SPARE_ROWS, MOST_ROWS - len(self.rows))
        return (*self.rows, *[Row()] * spare)

    def loaded(self) -> Scenario | None:
        """Return the scenario of the draft."""
        return load_scenario(self.scenario) if self.scenario else None

    def warning(self, row: Row) -> str | None:
        """Return what is unknown or surprising about a row."""
        if self.way == "inbound":
            return "Millis attaches no metadata to an inbound call; only the sandbox does."
        if row.key in RESERVED:
            return "Millis sends a field of this name itself; which of the two counts is unknown."
        if self.way == "widget" and row.key in _WIDGET_NAMES:
            return "The widget uses this name itself."
        if self.way == "widget" and row.is_json:
            return "In an address every value is text."
        return None

    def problems(self) -> tuple[str, ...]:
        """Return why the call cannot begin, in sentences."""
        try:
            self._requested()
            self._faults()
            self._read_policy()
        except PayloadError as error:
            return (f"{error}.",)
        except UnprocessableError as error:
            return tuple(
                f"{'.'.join(map(str, each['loc'][1:])) or 'The request'}: {each['msg']}."
                for each in error.detail
            )
        return ()

    async def spec(self, sessions: SessionManager, base: str) -> SessionSpec:
        """Return the call of a draft without problems; `base` is the service's address.

        The caller is reached whatever the scenario says, as the operator is there.
        """
        choice, call = self._requested()
        phones = {"from_phone": self.from_phone or None, "to_phone": self.to_phone or None}
        spec = await sessions.spec_of(
            self.way,
            choice,
            call,
            Address(base, self.loaded()),
            **(phones if self.way in PHONE_WAYS else {}),
        )
        faults = replace(self._faults(), end_of_call=spec.faults.end_of_call)
        policy = self._read_policy()
        return replace(spec, faults=faults, policy=policy, dry_run=self.dry, unreached=None)

    def params(self) -> dict[str, str]:
        """Return the draft as parameters of an address, without values that may be secrets."""
        params: dict[str, str] = {"way": self.way}
        params |= {name: str(getattr(self, name)) for name in ("scenario", *_TEXTS, "fault")}
        params |= {name: "1" for name in ("include", "dry") if getattr(self, name)}
        for number, row in enumerate(self.rows, 1):
            value = "" if is_secret_name(row.key) else row.value
            params |= {f"key{number}": row.key, f"value{number}": value}
            params |= {f"json{number}": "1"} if row.is_json else {}
        params |= {f"policy.{name}": text for name, text in self.policy.items()}
        kept_empty = {"agent", "prompt", "first"}
        return {name: text for name, text in params.items() if text or name in kept_empty}

    def policy_texts(self) -> dict[str, str]:
        """Return every setting of the policy as its field shows it."""
        return _spelled(_default_policy(self.loaded())) | dict(self.policy)

    def snippet(self, base: str) -> Snippet:
        """Return how a client of Millis would begin the call; `base` is the service's address.

        Raises `PayloadError` for metadata that is not JSON.
        """
        emulator = base + API_PATH
        socket = f"ws{emulator.removeprefix('http')}/millis"
        if self.way == "widget":
            texts = {key: str(value) for key, value in self._metadata().items()}
            query = urlencode({**texts, "id": self.agent, "k": _KEY}, errors="replace")
            here = f"{emulator}/agents/embedded?{query}"
            return Snippet("Equivalent address of the widget", f"{_WIDGET}?{query}", here)
        if self.way == "web-sdk":
            client = f'const msClient = Millis.createClient({{ publicKey: "{_KEY}" }});'
            text = f"{client}\nmsClient.start({_pretty(self._body())});"
            return Snippet("Equivalent call of the Web SDK", text, endpoint=socket)
        if self.way == "outbound":
            text = _curl(self._body())
            return Snippet("Equivalent request to the API", text, endpoint=emulator)
        if self.way == "inbound":
            return Snippet("Equivalent", "A caller dials the number of your agent.")
        message = {"method": "initiate", "data": {**self._body(), "public_key": _KEY}}
        return Snippet("Equivalent initiate message", _pretty(message), endpoint=socket)

    def _requested(self) -> tuple[AgentChoice, CallFields]:
        """Return the agent and the fields of the request that a client would send.

        Raises `UnprocessableError` and `PayloadError`.
        """
        if self.way == "outbound":
            call = check(OutboundCall, self._body(), "body")
            return call, call
        initiate = check(Initiate, self._body(), "data")
        return initiate.agent, initiate

    def _metadata(self) -> dict[str, JsonValue]:
        metadata = {row.key: _value(row) for row in self.rows}
        if self.way == "widget":
            return {key: as_text(value) for key, value in metadata.items()}
        return metadata

    def _body(self) -> dict[str, Any]:
        """Return the body of the request by which a client begins the call."""
        metadata: dict[str, Any] = {"metadata": self._metadata()}
        if self.may_include:
            metadata["include_metadata_in_prompt"] = self.include
        if self.way == "outbound":
            numbers = {"from_phone": self.from_phone, "to_phone": self.to_phone}
            return {**numbers, **self._agent(), **metadata}
        return {"agent": self._agent(), **metadata}

    def _agent(self) -> dict[str, Any]:
        """Return the agent by its id with overrides, or one made up for this call."""
        texts = {
            "prompt": self.prompt,
            "first_message": self.first,
            "custom_llm_websocket": self.llm,
        }
        config = {name: text for name, text in texts.items() if text}
        if not self.agent:
            return {"agent_config": {"prompt": "", **config, "voice": dict(_VOICE)}}
        return {"agent_id": self.agent} | ({"agent_config": config} if config else {})

    def _faults(self) -> Faults:
        faults = {"prefetch": self.fault or None, "prefetch_slow_s": self.slow_s}
        try:
            return _FAULTS.validate_python(faults)
        except ValidationError as error:
            raise PayloadError("The delay of a slow answer is a number of seconds") from error

    def _read_policy(self) -> Policy:
        return read_policy(asdict(_default_policy(self.loaded())) | dict(self.policy))


#: What the page begins with; only a handler can fill in `{first_name}`.
_FIRST_DRAFT = Draft(
    rows=(Row("customer_id", "C-20931"), Row("customer_tier", "silver")),
    include=True,
    prompt="You are the front desk. The caller is {first_name}, tier {customer_tier}.",
    first="Hi {first_name}, how may I help?",
)


def read_draft(fields: Mapping[str, str]) -> Draft:
    """Read the draft of a form or an address; invalid values are left out.

    A scenario alone gives the draft of that scenario, and nothing that of a new page.
    """
    name = fields.get("scenario", "")
    scenario = load_scenario(name) if name in SHIPPED else None
    if "way" not in fields:
        return _FIRST_DRAFT if scenario is None else _draft_of(scenario)
    fault = fields.get("fault", "")
    texts = {name: fields[name].strip() for name in _TEXTS if name in fields}
    defaults = _spelled(_default_policy(scenario))
    typed = {name: fields.get(f"policy.{name}", "") for name in defaults}
    return Draft(
        way=_way(fields["way"]),
        scenario=scenario.name if scenario else "",
        rows=tuple(_rows(fields)),
        include="include" in fields,
        fault=fault if fault in PREFETCH_FAULTS else "",
        dry="dry" in fields,
        policy={name: text for name, text in typed.items() if text not in ("", defaults[name])},
        **texts,
    )


def _draft_of(scenario: Scenario) -> Draft:
    spec, config = scenario.spec, scenario.spec.agent_config
    return Draft(
        way=_way(spec.way),
        scenario=scenario.name,
        agent=spec.agent_id or "",
        from_phone=spec.from_phone or "",
        to_phone=spec.to_phone or "",
        rows=tuple(_row(key, value) for key, value in spec.metadata.items()),
        include=spec.include_metadata_in_prompt,
        prompt=str(config.get("prompt", "")),
        first=str(config.get("first_message", "")),
        fault=spec.faults.prefetch or "",
        slow_s=f"{spec.faults.prefetch_slow_s:g}",
        dry=spec.dry_run,
    )


def _way(text: str) -> Way:
    return next((way for way in get_args(Way) if way == text), "websocket")


def _rows(fields: Mapping[str, str]) -> Iterator[Row]:
    for number in range(1, MOST_ROWS + 1):
        if key := fields.get(f"key{number}", "").strip():
            yield Row(key, fields.get(f"value{number}", ""), f"json{number}" in fields)


def _row(key: str, value: JsonValue) -> Row:
    return Row(key, value) if isinstance(value, str) else Row(key, json.dumps(value), True)


def _value(row: Row) -> JsonValue:
    try:
        return read_json(row.value) if row.is_json else row.value
    except PayloadError as error:
        raise PayloadError(f"The value of {row.key!r} is not JSON: {error}") from error


def _default_policy(scenario: Scenario | None) -> Policy:
    """Return the policy of the page, with what the scenario changes."""
    if scenario is None:
        return _POLICY
    policy, unchanged = asdict(scenario.spec.policy), asdict(Policy())
    changes = {name: value for name, value in policy.items() if value != unchanged[name]}
    return replace(_POLICY, **changes)


def _spelled(policy: Policy) -> dict[str, str]:
    """Return the settings as the fields of the form have them."""
    return {
        name: f"{value:g}" if isinstance(value, float) else as_text(value)
        for name, value in asdict(policy).items()
    }


def _curl(body: Mapping[str, Any]) -> str:
    quoted = _pretty(body).replace("'", "'\\''")
    return (
        f"curl {_API}/start_outbound_call \\\n  -H 'Authorization: YOUR_PRIVATE_KEY' \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d '{quoted}'"
    )


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
