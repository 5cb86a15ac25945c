"""What the form of the sandbox says of a call, in an address or as it is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, get_args

from pydantic import JsonValue

from ...exceptions import PayloadError
from ...masking.secret_patterns import is_secret_name
from ...protocol.reading import read_json
from ...protocol.samples import AGENT_ID, CUSTOMER_PHONE, OWN_PHONE
from ...protocol.typed_metadata import as_text
from ...sandbox.policy import Policy, policy_settings, read_policy
from ...sandbox.scenario import (
    PHONE_WAYS,
    PREFETCH_FAULTS,
    SHIPPED,
    Scenario,
    load_scenario,
)
from ...sandbox.webhook_client import RESERVED

#: How a call can be begun here. Nothing is attached to one that comes in by phone.
Way: TypeAlias = Literal["widget", "web-sdk", "websocket", "outbound", "inbound"]
WAYS: tuple[Way, ...] = get_args(Way)

#: More metadata is not taken by the form.
MAX_ROWS = 20
#: Rows that are shown empty, to be filled in.
_SPARE_ROWS = 2
#: So long is waited at most, and so often tried: somebody looks on.
_LONGEST_S, _MOST_ATTEMPTS = 600.0, 10

#: What the address of a widget has of its own. Source: integration/embeddable-call-widget.
WIDGET_NAMES = frozenset({"id", "k", "c"})

#: Nobody waits ten minutes at a page.
POLICY = Policy(late_by_s=10, end_of_call_retry_after_s=5)


@dataclass(frozen=True, slots=True)
class Row:
    """A key of the metadata as it was typed; `is_json` says how to read the value."""

    key: str = ""
    value: str = ""
    is_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A call that was not begun yet. `slow_s` is by how much a slow prefetch is slower."""

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
    #: What was typed of the policy, by name; as it is on the page where nothing was.
    policy: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_on_the_phone(self) -> bool:
        """Whether it has numbers."""
        return self.way in PHONE_WAYS

    @property
    def may_include(self) -> bool:
        """Whether this way has a flag that puts the metadata into the prompt."""
        return self.way not in {"widget", "inbound"}

    @property
    def shown_rows(self) -> tuple[Row, ...]:
        """The rows with some to fill in."""
        spare = min(_SPARE_ROWS, MAX_ROWS - len(self.rows))
        return (*self.rows, *[Row()] * spare)

    def metadata(self) -> dict[str, JsonValue]:
        """Return the metadata as values; raises `PayloadError` for a row that is no JSON."""
        typed = {row.key: read_json(row.value) if row.is_json else row.value for row in self.rows}
        if self.way == "widget":
            return {key: as_text(value) for key, value in typed.items()}
        return typed

    def loaded(self) -> Scenario | None:
        """Return the scenario it goes by."""
        return load_shipped(self.scenario)

    def read_policy(self) -> Policy:
        """Return the policy; raises `PayloadError` for a value that is none."""
        known = _usual_policy(self.loaded())
        policy = read_policy(known | dict(self.policy))
        _require_bounds(policy)
        return policy

    def problems(self) -> Iterator[str]:
        """Yield why no call can be begun so."""
        for row in self.rows:
            try:
                if row.is_json:
                    read_json(row.value)
            except PayloadError as error:
                yield f"The value of {row.key!r} is no JSON: {error}."
        if not 0 <= _number(self.slow_s) <= _LONGEST_S:
            yield f"A slow answer is slower by 0 to {_LONGEST_S:g} seconds."
        try:
            self.read_policy()
        except PayloadError as error:
            yield f"{error}."


#: What the page begins with; of `{first_name}` nothing is known unless a handler tells.
FIRST_DRAFT = Draft(
    rows=(Row("customer_id", "C-20931"), Row("customer_tier", "silver")),
    include=True,
    prompt="You are the front desk. The caller is {first_name}, tier {customer_tier}.",
    first="Hi {first_name}, how may I help?",
)


def read_draft(given: Mapping[str, str]) -> Draft:
    """Read what a form or an address says; what it cannot mean is left out.

    A scenario alone is that scenario, and nothing is what the page begins with.
    """
    scenario = load_shipped(given.get("scenario", ""))
    if "way" not in given:
        return FIRST_DRAFT if scenario is None else draft_of(scenario)
    way, fault = given["way"], given.get("fault", "")
    words = {name: given[name].strip() for name in _WORDS if name in given}
    return Draft(
        way=way if way in WAYS else "websocket",
        scenario=scenario.name if scenario else "",
        rows=tuple(_rows(given)),
        include="include" in given,
        fault=fault if fault in PREFETCH_FAULTS else "",
        dry="dry" in given,
        policy=_typed_policy(given, scenario),
        **words,
    )


_WORDS = ("agent", "from_phone", "to_phone", "prompt", "first", "llm", "slow_s")


def draft_of(scenario: Scenario) -> Draft:
    """Return a draft of a shipped scenario."""
    spec, config = scenario.spec, scenario.spec.agent_config
    return Draft(
        way=spec.way if spec.way in WAYS else "websocket",
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


def params_of(draft: Draft) -> dict[str, str]:
    """Return a draft as the query of an address; without the values that look like secrets."""
    params: dict[str, str] = {"way": draft.way}
    params |= {name: str(getattr(draft, name)) for name in ("scenario", *_WORDS, "fault")}
    params |= {name: "1" for name in ("include", "dry") if getattr(draft, name)}
    for number, row in enumerate(draft.rows, 1):
        value = "" if is_secret_name(row.key) else row.value
        params |= {f"key{number}": row.key, f"value{number}": value}
        params |= {f"json{number}": "1"} if row.is_json else {}
    params |= {f"policy.{name}": text for name, text in draft.policy.items()}
    kept_empty = {"agent", "prompt", "first"}
    return {name: text for name, text in params.items() if text or name in kept_empty}


def warning_about(row: Row, way: Way) -> str | None:
    """Say what is unknown or surprising about a row."""
    if way == "inbound":
        return "Nothing is attached to a call that comes in by phone; only the sandbox does it."
    if row.key in RESERVED:
        return "Millis sends a field of this name itself. Which of the two counts is unknown."
    if way == "widget" and row.key in WIDGET_NAMES:
        return "The widget takes this name for itself."
    if way == "widget" and row.is_json:
        return "In an address every value is text."
    return None


#: The names of the shipped scenarios.
SCENARIOS = tuple(sorted(file.stem for file in SHIPPED.glob("*.toml")))


def load_shipped(name: str) -> Scenario | None:
    """Return a shipped scenario by its name, and no other file."""
    return load_scenario(name) if name in SCENARIOS else None


def policy_texts(draft: Draft) -> dict[str, str]:
    """Return every setting of the policy as its field shows it."""
    known = _usual_policy(draft.loaded())
    return {name: _spelled(value) for name, value in known.items()} | dict(draft.policy)


def _rows(given: Mapping[str, str]) -> Iterator[Row]:
    for number in range(1, MAX_ROWS + 1):
        if key := given.get(f"key{number}", "").strip():
            yield Row(key, given.get(f"value{number}", ""), f"json{number}" in given)


def _row(key: str, value: JsonValue) -> Row:
    is_text = isinstance(value, str)
    return Row(key, str(value) if is_text else json.dumps(value), not is_text)


def _typed_policy(given: Mapping[str, str], scenario: Scenario | None) -> dict[str, str]:
    usual = _usual_policy(scenario)
    typed = {each.name: given.get(f"policy.{each.name}", "") for each in policy_settings()}
    return {name: text for name, text in typed.items() if text and text != _spelled(usual[name])}


def _usual_policy(scenario: Scenario | None) -> dict[str, Any]:
    """Return the policy of the page, and of a scenario what it says of it."""
    if scenario is None:
        return _as_dict(POLICY)
    said, unsaid = _as_dict(scenario.spec.policy), _as_dict(Policy())
    return _as_dict(POLICY) | {name: said[name] for name in said if said[name] != unsaid[name]}


def _as_dict(policy: Policy) -> dict[str, Any]:
    return {each.name: getattr(policy, each.name) for each in fields(policy)}


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _require_bounds(policy: Policy) -> None:
    for name, value in _as_dict(policy).items():
        if name.endswith("_s") and not 0 <= value <= _LONGEST_S:
            raise PayloadError(f"{name} is 0 to {_LONGEST_S:g} seconds here")
    if not 1 <= policy.end_of_call_attempts <= _MOST_ATTEMPTS:
        raise PayloadError(f"end_of_call_attempts is 1 to {_MOST_ATTEMPTS} here")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
