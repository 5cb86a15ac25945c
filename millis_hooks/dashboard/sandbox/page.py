"""What the sandbox's page shows: a draft of a call, and the call that is looked at, if any.

A draft as Millis' own clients would ask for it: what is shown as a snippet is what is read.

Each way has its interface's words, and goes through the models of that interface, so that what it
would refuse is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from anyio import from_thread
from pydantic import JsonValue

from ...call_log.queries.requests import FoundHandler, found_handlers
from ...exceptions import PayloadError
from ...protocol.call_status import CallStatus
from ...protocol.samples import VINTAGES
from ...sandbox.emulator.app import PATH
from ...sandbox.emulator.rehearsals import Rehearsals
from ...sandbox.emulator.schemas import (
    AgentChoice,
    Initiate,
    OutboundCall,
    UnprocessableError,
    check,
)
from ...sandbox.emulator.sessions import SessionRequest
from ...sandbox.policy import PolicySetting, policy_settings
from ...sandbox.scenario import END_OF_CALL_TIMES, PREFETCH_FAULTS, Faults, SessionSpec
from ..pages import PageRequest
from .form import SCENARIOS, Draft, params_of, policy_texts, read_draft, warning_about
from .result import Rehearsed, rehearsed

_KEY = "YOUR_PUBLIC_KEY"
_WIDGET = "https://app.millis.ai/agents/embedded"
_API = "https://api-west.millis.ai"

#: The voice of an agent that has no id: without one Millis takes no configuration.
_VOICE: Mapping[str, JsonValue] = {"provider": "openai", "voice_id": "alloy"}


@dataclass(frozen=True, slots=True)
class Snippet:
    """The same call for real.

    `here` is the address by which a browser begins it in this sandbox, `endpoint` that for clients.
    """

    title: str
    text: str
    here: str | None = None
    endpoint: str | None = None


def asked_of(draft: Draft) -> SessionRequest:
    """Return what is asked of the switchboard.

    Raises `UnprocessableError` for what the interface does not take, `PayloadError` for metadata
    that is no JSON.
    """
    if draft.way == "outbound":
        call = check(OutboundCall, _outbound(draft), "body")
        choice = AgentChoice(agent_id=call.agent_id, agent_config=call.agent_config)
        asked = SessionRequest(
            way="outbound",
            choice=choice,
            metadata=call.metadata or {},
            include_metadata_in_prompt=bool(call.include_metadata_in_prompt),
            from_phone=call.from_phone,
            to_phone=call.to_phone,
        )
    else:
        initiate = check(Initiate, _initiate(draft), "data")
        asked = SessionRequest(
            way=draft.way,
            choice=initiate.agent,
            metadata=initiate.metadata or {},
            include_metadata_in_prompt=bool(initiate.include_metadata_in_prompt),
            from_phone=draft.from_phone or None if draft.way == "inbound" else None,
            to_phone=draft.to_phone or None if draft.way == "inbound" else None,
        )
    return replace(asked, scenario=draft.loaded())


def asked_for(draft: Draft, spec: SessionSpec) -> SessionSpec:
    """Return what the session is told, with what only the sandbox knows: faults and policy.

    A person is there, so the call is reached whatever its scenario says.
    """
    faults = Faults(
        prefetch=draft.fault or None,  # type: ignore[arg-type]  # one of them, or empty
        prefetch_slow_s=float(draft.slow_s),
        end_of_call=spec.faults.end_of_call,
    )
    return replace(
        spec, faults=faults, policy=draft.read_policy(), dry_run=draft.dry, unreached=None
    )


def snippet_of(draft: Draft, base: str) -> Snippet:
    """Return how a client of Millis would begin the call; `base` is our own address.

    Raises `PayloadError` for metadata that is no JSON.
    """
    doors = base + PATH
    socket = f"ws{doors.removeprefix('http')}/millis"
    if draft.way == "widget":
        query = urlencode(_widget(draft), errors="replace")
        here = f"{doors}/agents/embedded?{query}"
        return Snippet("Equivalent address of the widget", f"{_WIDGET}?{query}", here)
    if draft.way == "web-sdk":
        return Snippet("Equivalent call of the Web SDK", _sdk(draft), endpoint=socket)
    if draft.way == "outbound":
        return Snippet("Equivalent request to the API", _curl(_outbound(draft)), endpoint=doors)
    if draft.way == "inbound":
        return Snippet("Equivalent", "Somebody dials the number of your agent.")
    message = {"method": "initiate", "data": {**_initiate(draft), "public_key": _KEY}}
    return Snippet("Equivalent initiate message", _pretty(message), endpoint=socket)


def _config(draft: Draft) -> dict[str, JsonValue]:
    config: dict[str, JsonValue] = {}
    for name, text in (
        ("prompt", draft.prompt),
        ("first_message", draft.first),
        ("custom_llm_websocket", draft.llm),
    ):
        if text:
            config[name] = text
    return config


def _agent(draft: Draft) -> dict[str, Any]:
    """Return the agent by its id with what is changed of it, or one made up for this call."""
    config = _config(draft)
    if not draft.agent:
        return {"agent_config": {"prompt": "", **config, "voice": dict(_VOICE)}}
    return {"agent_id": draft.agent} | ({"agent_config": config} if config else {})


def _attached(draft: Draft) -> dict[str, Any]:
    metadata = draft.metadata()
    flag = {"include_metadata_in_prompt": draft.include} if draft.may_include else {}
    return {"metadata": metadata, **flag}


def _initiate(draft: Draft) -> dict[str, Any]:
    return {"agent": _agent(draft), **_attached(draft)}


def _outbound(draft: Draft) -> dict[str, Any]:
    numbers = {"from_phone": draft.from_phone, "to_phone": draft.to_phone}
    return {**numbers, **_agent(draft), **_attached(draft)}


def _widget(draft: Draft) -> dict[str, str]:
    metadata = {key: str(value) for key, value in draft.metadata().items()}
    return {**metadata, "id": draft.agent, "k": _KEY}


def _sdk(draft: Draft) -> str:
    options = {
        "agent": _agent(draft),
        "metadata": draft.metadata(),
        "include_metadata_in_prompt": draft.include,
    }
    client = f'const msClient = Millis.createClient({{ publicKey: "{_KEY}" }});'
    return f"{client}\nmsClient.start({_pretty(options)});"


def _curl(body: Mapping[str, Any]) -> str:
    quoted = _pretty(body).replace("'", "'\\''")
    return (
        f"curl {_API}/start_outbound_call \\\n  -H 'Authorization: YOUR_PRIVATE_KEY' \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d '{quoted}'"
    )


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


#: What became of a form that could not do what it is for, by the word in the address.
REFUSALS: Mapping[str, str] = {
    "gone": "The call is not at that point: it has not begun to talk, or it is over.",
    "params": "The parameters are no JSON object.",
    "busy": "There are as many calls at once as the sandbox connects. End one first.",
}

#: In what each vintage differs, as the form says it.
VINTAGE_LABELS: Mapping[str, str] = {
    "v2": "Current: text, float time",
    "v2-extras": "Current, with extras",
    "v1b": "2024: array, ISO time",
    "v1a": "2024, first: no metadata",
    "hostile": "Hostile: nulls, missing keys",
}
TIMES_LABELS: Mapping[str, str] = {
    "once": "Once",
    "twice": "Twice",
    "late": "Late",
    "never": "Never",
}
FAULT_LABELS: Mapping[str, str] = {
    "": "As it comes",
    "slow": "Slower by some seconds",
    "error": "Status 500",
    "bad-json": "JSON that breaks off",
    "unreachable": "No answer",
}


@dataclass(frozen=True, slots=True)
class Choices:
    """What the selects of the page offer."""

    scenarios: tuple[str, ...] = SCENARIOS
    statuses: tuple[str, ...] = tuple(CallStatus)
    vintages: tuple[tuple[str, str], ...] = tuple((each, VINTAGE_LABELS[each]) for each in VINTAGES)
    times: tuple[tuple[str, str], ...] = tuple(
        (each, TIMES_LABELS[each]) for each in END_OF_CALL_TIMES
    )
    faults: tuple[tuple[str, str], ...] = tuple(
        (each, FAULT_LABELS[each]) for each in ("", *PREFETCH_FAULTS)
    )
    policy: tuple[PolicySetting, ...] = tuple(policy_settings())


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxView:
    """What the page shows. `params` are the draft as the query of an address, without secrets."""

    draft: Draft
    warnings: tuple[str | None, ...]
    problems: tuple[str, ...]
    policy: Mapping[str, str]
    snippet: Snippet | None
    params: Mapping[str, str]
    choices: Choices
    call: Rehearsed | None
    #: The call that was asked for and is not known any more.
    forgotten: str | None
    #: How the End form is filled in: `status`, `vintage`, `times`.
    ending: Mapping[str, str]
    refusal: str | None
    handlers: tuple[FoundHandler, ...]
    #: For the pieces of the call's page.
    prints_all: bool = False


class Sandbox:
    """Builds the page. `rehearsals` gives what begins its calls, on the event loop of those."""

    def __init__(self, rehearsals: Callable[[], Coroutine[Any, Any, Rehearsals]]) -> None:
        self._rehearsals = rehearsals

    def rehearsals(self) -> Rehearsals:
        """Return what begins calls. From a thread of a page."""
        return from_thread.run(self._rehearsals)

    def show(self, asked: PageRequest) -> SandboxView:
        """Build the page."""
        session_id = asked.query.get("session")
        call, about = self._call(asked, session_id) if session_id else (None, {})
        given = about.get("draft")
        is_drafted = "way" in asked.query or "scenario" in asked.query
        draft = read_draft(asked.query if is_drafted or not isinstance(given, dict) else given)
        problems = problems_of(draft)
        return SandboxView(
            draft=draft,
            warnings=tuple(warning_about(row, draft.way) for row in draft.shown_rows),
            problems=problems,
            policy=policy_texts(draft),
            snippet=None if problems else snippet_of(draft, asked.address),
            params=params_of(draft),
            choices=Choices(),
            call=call,
            forgotten=session_id if session_id and call is None else None,
            ending=_ending(draft, asked.query),
            refusal=REFUSALS.get(asked.query.get("refused", "")),
            handlers=asked.log.ask(found_handlers),
        )

    def _call(
        self, asked: PageRequest, session_id: str
    ) -> tuple[Rehearsed | None, Mapping[str, object]]:
        rehearsals = self.rehearsals()
        live = rehearsals.live(session_id)
        note = rehearsals.rehearsal(session_id)
        if note is None:
            return None, {}
        call = rehearsed(
            session_id,
            note,
            is_live=live is not None,
            elapsed_s=(asked.now - live.began_at).total_seconds() if live else 0.0,
            record=asked.log.call(session_id),
            mask=asked.settings.mask,
        )
        return call, note.about


def problems_of(draft: Draft) -> tuple[str, ...]:
    """Return why no call can be begun so, in sentences."""
    problems = tuple(draft.problems())
    if problems:
        return problems
    try:
        asked_of(draft)
    except UnprocessableError as error:
        return tuple(
            f"{'.'.join(map(str, each['loc'][1:])) or 'The request'}: {each['msg']}."
            for each in error.detail
        )
    except PayloadError as error:
        return (f"{error}.",)
    return ()


def _ending(draft: Draft, query: Mapping[str, str]) -> dict[str, str]:
    """Return how the call ends by its scenario, unless the address says otherwise."""
    scenario = draft.loaded()
    usual = {"status": str(CallStatus.USER_ENDED), "vintage": "v2", "times": "once"}
    if scenario is not None:
        usual = {
            "status": str(scenario.script.ending.call_status),
            "vintage": scenario.spec.vintage,
            "times": scenario.spec.faults.end_of_call,
        }
    return {name: query.get(name, text) for name, text in usual.items()}
