"""The form of the sandbox: a call that has not begun, in an address and as a client of Millis asks.

The snippet on the page is built from the body that the models of Millis' interface check, so what
that interface would refuse is refused here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlencode

from pydantic import JsonValue, TypeAdapter, ValidationError

from ...exceptions import PayloadError
from ...masking.secret_patterns import is_secret_name
from ...protocol.fields import as_text
from ...protocol.reading import read_json
from ...protocol.samples import AGENT_ID, CUSTOMER_PHONE, OWN_PHONE
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

#: Rows of metadata that the form takes.
MOST_ROWS = 20
_FAULTS = TypeAdapter(Faults)

#: The policy here, as the fields of the form have it; Millis' ten minutes are too long for a page.
_POLICY = {
    name: f"{value:g}" if isinstance(value, float) else as_text(value)
    for name, value in asdict(Policy(late_by_s=10.0, end_of_call_retry_after_s=5.0)).items()
}

#: Names that the address of a widget uses itself. Source: integration/embeddable-call-widget.
_WIDGET_NAMES = frozenset({"id", "k", "c"})
_WIDGET = "https://app.millis.ai/agents/embedded"
_API = "https://api-west.millis.ai"
_KEY = "YOUR_PUBLIC_KEY"
#: Of an agent without an id: Millis takes no configuration without a voice.
_VOICE: Mapping[str, JsonValue] = {"provider": "openai", "voice_id": "alloy"}

#: The other fields of the form, where nothing is typed. `slow_s` is the delay of a slow prefetch.
_BLANK = {
    "scenario": "",
    "agent": AGENT_ID,
    "from_phone": OWN_PHONE,
    "to_phone": CUSTOMER_PHONE,
    "include": "",
    "prompt": "",
    "first": "",
    "fault": "",
    "slow_s": "3",
    "llm": "",
    "dry": "",
}
#: What the page begins with: each variable in it is filled in.
_FIRST = {
    "way": "websocket",
    "key1": "customer_id",
    "value1": "C-20931",
    "key2": "customer_tier",
    "value2": "silver",
    "include": "1",
    "prompt": "You are the front desk. The caller's tier is {customer_tier}.",
    "first": "Hi, how may I help?",
}
#: Where what is refused of a request has its field in the form.
_FIELDS = {
    "agent_id": "agent",
    "custom_llm_websocket": "llm",
    "first_message": "first",
    "from_phone": "from_phone",
    "prompt": "prompt",
    "to_phone": "to_phone",
}


class _FieldError(PayloadError):
    """A field that cannot be used."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the call cannot begin, in a sentence, and the field to correct, empty for none."""

    text: str
    field: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A metadata key as typed. `is_json` tells how its value is read, `warning` what is unknown."""

    key: str = ""
    value: str = ""
    is_json: bool = False
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Snippet:
    """How a client of Millis would begin the call.

    `here` is an address at which a browser begins it in this sandbox, `endpoint` that for clients.
    """

    title: str
    text: str
    here: str | None = None
    endpoint: str | None = None


class Draft:
    """A call that has not begun, read from the fields of the form or of an address.

    A scenario alone gives the draft of that scenario, and nothing that of a new page, which greets
    the caller by name if the last prefetch `answered` one.
    """

    def __init__(self, fields: Mapping[str, str], answered: Iterable[str] = ()) -> None:
        """Read the fields; unknown ones are left out."""
        name = fields.get("scenario", "")
        #: A shipped one, and no other file.
        self.scenario = load_scenario(name) if name in SHIPPED else None
        if "way" not in fields:
            fields = _fields_of(self.scenario) if self.scenario else _first(answered)
        self.way: Way = next((way for way in get_args(Way) if way == fields["way"]), "websocket")
        typed = {name: fields[name].strip() for name in _BLANK if name in fields}
        scenario = self.scenario.name if self.scenario else ""
        self.fields = _turned({**_BLANK, **typed, "way": self.way, "scenario": scenario})
        self.rows = tuple(_rows(fields, self.way))
        typed = {name: fields.get(f"policy.{name}", "") for name in _POLICY}
        #: The typed settings of the policy that differ from its defaults.
        self.changed_policy = {
            name: text for name, text in typed.items() if text not in ("", _POLICY[name])
        }
        #: Every setting of the policy as its field shows it.
        self.policy = _POLICY | self.changed_policy

    @property
    def may_include(self) -> bool:
        """Tell whether this way has a flag that puts the metadata into the prompt."""
        return self.way not in {"widget", "inbound"}

    def problems(self) -> tuple[Problem, ...]:
        """Return why the call cannot begin."""
        try:
            self._requested()
            self._faults()
            self._read_policy()
        except _FieldError as error:
            return (Problem(f"{error}.", error.field),)
        except UnprocessableError as error:
            return tuple(_problem(each) for each in error.detail)
        return ()

    async def spec(self, sessions: SessionManager, base: str) -> SessionSpec:
        """Return the call of a draft without problems; `base` is the service's address.

        The caller is reached whatever the scenario says, as the operator is there.
        """
        choice, call = self._requested()
        phones = {name: self.fields[name] or None for name in ("from_phone", "to_phone")}
        spec = await sessions.spec_of(
            self.way,
            choice,
            call,
            Address(base, self.scenario),
            **(phones if self.way in PHONE_WAYS else {}),
        )
        return replace(
            spec,
            faults=replace(self._faults(), end_of_call=spec.faults.end_of_call),
            policy=self._read_policy(),
            dry_run=bool(self.fields["dry"]),
            unreached=None,
        )

    def params(self) -> dict[str, str]:
        """Return the draft as parameters of an address, without values that may be secrets."""
        params = dict(self.fields)
        for number, row in enumerate(self.rows, 1):
            value = "" if is_secret_name(row.key) else row.value
            params |= {f"key{number}": row.key, f"value{number}": value}
            params |= {f"json{number}": "1"} if row.is_json else {}
        params |= {f"policy.{name}": text for name, text in self.changed_policy.items()}
        kept_empty = {"agent", "prompt", "first"}
        return {name: text for name, text in params.items() if text or name in kept_empty}

    def snippet(self, base: str) -> Snippet:
        """Return how a client of Millis would begin the call; `base` is the service's address.

        Raises `PayloadError` for metadata that is not JSON.
        """
        emulator = base + API_PATH
        socket = f"ws{emulator.removeprefix('http')}/millis"
        if self.way == "widget":
            texts = {key: str(value) for key, value in self._metadata().items()}
            query = urlencode({**texts, "id": self.fields["agent"], "k": _KEY}, errors="replace")
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
        metadata = {row.key: _value(row, number) for number, row in enumerate(self.rows, 1)}
        if self.way == "widget":
            return {key: as_text(value) for key, value in metadata.items()}
        return metadata

    def _body(self) -> dict[str, Any]:
        """Return the body of the request by which a client begins the call."""
        metadata: dict[str, Any] = {"metadata": self._metadata()}
        if self.may_include:
            metadata["include_metadata_in_prompt"] = bool(self.fields["include"])
        if self.way == "outbound":
            numbers = {name: self.fields[name] for name in ("from_phone", "to_phone")}
            return {**numbers, **self._agent(), **metadata}
        return {"agent": self._agent(), **metadata}

    def _agent(self) -> dict[str, Any]:
        """Return the agent by its id with overrides, or one made up for this call."""
        texts = {
            "prompt": self.fields["prompt"],
            "first_message": self.fields["first"],
            "custom_llm_websocket": self.fields["llm"],
        }
        config = {name: text for name, text in texts.items() if text}
        if not self.fields["agent"]:
            return {"agent_config": {"prompt": "", **config, "voice": dict(_VOICE)}}
        return {"agent_id": self.fields["agent"]} | ({"agent_config": config} if config else {})

    def _faults(self) -> Faults:
        fields = self.fields
        faults = {"prefetch": fields["fault"] or None, "prefetch_slow_s": fields["slow_s"]}
        try:
            return _FAULTS.validate_python(faults)
        except ValidationError as error:
            raise _FieldError("slow_s", "The delay is a number of seconds, such as 3") from error

    def _read_policy(self) -> Policy:
        try:
            return read_policy(self.policy)
        except PayloadError as error:
            name = next((each for each in self.changed_policy if each in str(error)), "")
            value = self.changed_policy.get(name, "")
            raise _FieldError(f"policy.{name}", f"{name} cannot be {value!r}") from error


def _first(answered: Iterable[str]) -> Mapping[str, str]:
    name = next((each for each in answered if re.fullmatch(r"\w{0,30}name", each)), None)
    if name is None:
        return _FIRST
    prompt = f"{_FIRST['prompt']} The caller is {{{name}}}."
    return _FIRST | {"prompt": prompt, "first": f"Hi {{{name}}}, how may I help?"}


def _turned(fields: dict[str, str]) -> dict[str, str]:
    """Return the fields with the sample numbers in the direction of the call."""
    numbers = {"from_phone": OWN_PHONE, "to_phone": CUSTOMER_PHONE}
    if fields["way"] == "inbound" and numbers.items() <= fields.items():
        return fields | {"from_phone": CUSTOMER_PHONE, "to_phone": OWN_PHONE}
    return fields


def _problem(detail: Mapping[str, Any]) -> Problem:
    place = detail["loc"][1:]
    field = next((_FIELDS[each] for each in reversed(place) if each in _FIELDS), "")
    return Problem(f"{'.'.join(map(str, place)) or 'The request'}: {detail['msg']}.", field)


def _fields_of(scenario: Scenario) -> dict[str, str]:
    spec, config = scenario.spec, scenario.spec.agent_config
    fields = {
        "way": spec.way,
        "agent": spec.agent_id or "",
        "from_phone": spec.from_phone or "",
        "to_phone": spec.to_phone or "",
        "include": "1" if spec.include_metadata_in_prompt else "",
        "prompt": str(config.get("prompt", "")),
        "first": str(config.get("first_message", "")),
        "fault": spec.faults.prefetch or "",
        "slow_s": f"{spec.faults.prefetch_slow_s:g}",
        "dry": "1" if spec.dry_run else "",
    }
    for number, (key, value) in enumerate(spec.metadata.items(), 1):
        fields |= {f"key{number}": key, f"value{number}": as_text(value)}
        fields |= {} if isinstance(value, str) else {f"json{number}": "1"}
    return fields


def _rows(fields: Mapping[str, str], way: Way) -> Iterator[Row]:
    for number in range(1, MOST_ROWS + 1):
        if key := fields.get(f"key{number}", "").strip():
            is_json = f"json{number}" in fields
            value, warning = fields.get(f"value{number}", ""), _warning(key, way, is_json=is_json)
            yield Row(key, value, is_json, warning)


def _warning(key: str, way: Way, *, is_json: bool) -> str | None:
    """Return what is unknown or surprising about a metadata key."""
    if way == "inbound":
        return "Millis attaches no metadata to an inbound call; only the sandbox does."
    if key in RESERVED:
        return "Millis sends a field of this name itself; which of the two counts is unknown."
    if way == "widget" and key in _WIDGET_NAMES:
        return "The widget uses this name itself."
    return "In an address every value is text." if way == "widget" and is_json else None


def _value(row: Row, number: int) -> JsonValue:
    try:
        return read_json(row.value) if row.is_json else row.value
    except PayloadError as error:
        text = f"The value of {row.key!r} is not JSON. Put text into double quotes, or untick JSON"
        raise _FieldError(f"value{number}", text) from error


def _curl(body: Mapping[str, Any]) -> str:
    quoted = _pretty(body).replace("'", "'\\''")
    return (
        f"curl {_API}/start_outbound_call \\\n  -H 'Authorization: YOUR_PRIVATE_KEY' \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d '{quoted}'"
    )


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
