"""A draft as Millis' own clients would ask for it: what is shown as a snippet is what is read.

Each way has its interface's words, and goes through the models of that interface, so that what it
would refuse is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from pydantic import JsonValue

from ...sandbox.interfaces.asked import AgentChoice, Initiate, OutboundCall, check
from ...sandbox.interfaces.stand_in import PATH
from ...sandbox.interfaces.switchboard import Asked
from ...sandbox.spec import Faults, SessionSpec
from .draft import Draft

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


def asked_of(draft: Draft) -> Asked:
    """Return what is asked of the switchboard.

    Raises `UnprocessableError` for what the interface does not take, `PayloadError` for metadata
    that is no JSON.
    """
    if draft.way == "outbound":
        call = check(OutboundCall, _outbound(draft), "body")
        choice = AgentChoice(agent_id=call.agent_id, agent_config=call.agent_config)
        asked = Asked(
            way="outbound",
            choice=choice,
            metadata=call.metadata or {},
            include_metadata_in_prompt=bool(call.include_metadata_in_prompt),
            from_phone=call.from_phone,
            to_phone=call.to_phone,
        )
    else:
        initiate = check(Initiate, _initiate(draft), "data")
        asked = Asked(
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
