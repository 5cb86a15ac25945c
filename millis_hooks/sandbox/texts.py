"""The texts of a call: metadata merged, the extra prompt appended, variables filled in.

What Millis documents of it: keys of a prefetch's metadata replace those attached and new ones are
added; `extra_prompt` is appended to the system prompt; `{name}` is filled in prompt, messages,
descriptions of parameters and webhook parameters. Source: docs.millis.ai, core-concepts/webhooks
and core-concepts/variables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from urllib.parse import quote

from ..protocol.reading import Json
from ..protocol.variables import fill, variables_of
from .policy import Policy
from .steps import Merged, Rendered
from .transport import END_OF_CALL, Webhook, webhook_of, webhook_of_tool

#: Keys of what the agent says, or is told about when to say it. Source: Millis' OpenAPI file.
_SPOKEN = frozenset({"message", "messages", "instruction", "description"})
#: Descriptions that the agent gets with its functions.
_OF_TOOLS = re.compile(r"tools\..*description\Z", re.DOTALL)
#: Nothing that Millis documents is nested deeper in a configuration.
_DEEPEST = 8

#: Parts of an agent that would change how a call goes at Millis, and do nothing here.
IGNORED = (
    "app_functions",
    "call_settings.background",
    "custom_vocabulary",
    "flow.agent_terminate_call",
    "flow.auto_fill_responses",
    "flow.call_transfer",
    "flow.dtmf_dial",
    "flow.inactivity_handling",
    "flow.interruption",
    "flow.response_delay",
    "flow.voicemail.continue_on_voice_activity",
    "knowledge_base",
    "llm.history_settings",
    "memory",
    "millis_functions",
    "privacy_settings.do_not_call_detection",
    "session_timeout.max_idle",
    "speech_to_text",
    "switch_language",
    "timezone",
    "tools.execute_after_message",
    "tools.response_mode",
    "vad_threshold",
)


def merge_metadata(
    attached: Mapping[str, Json],
    answered: Mapping[str, Json],
    policy: Policy,
    extra_prompt: str | None = None,
) -> Merged:
    """Return `answered` merged over `attached`: known keys are replaced, new ones added."""
    removed = [key for key, value in answered.items() if policy.null_removes and value is None]
    merged = dict(attached)
    for key, value in answered.items():
        merged[key] = _merged(merged.get(key), value) if policy.merge == "deep" else value
    for key in removed:
        del merged[key]
    kept = [key for key in answered if key not in removed]
    return Merged(
        metadata=merged,
        added=tuple(key for key in kept if key not in attached),
        changed=tuple(key for key in kept if key in attached and attached[key] != merged[key]),
        removed=tuple(key for key in removed if key in attached),
        extra_prompt=extra_prompt,
    )


def _merged(old: Json, new: Json) -> Json:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


class Filling:
    """Fills variables in, and remembers the unknown names by place."""

    def __init__(self, variables: Mapping[str, object], policy: Policy) -> None:
        #: What `{name}` stands for; replaced when the prefetch has added to the metadata.
        self.variables = variables
        self.unresolved: dict[str, tuple[str, ...]] = {}
        self._policy = policy

    def fill(self, text: str, place: str) -> str:
        """Return `text` filled in; `place` names it in `unresolved`."""
        return self._fill(text, self.variables, place)

    def fill_all(self, value: Json, place: str) -> Json:
        """Fill in every text within a JSON value."""
        if isinstance(value, str):
            return self.fill(value, place)
        if isinstance(value, list):
            return [self.fill_all(item, place) for item in value]
        if isinstance(value, dict):
            return {key: self.fill_all(item, place) for key, item in value.items()}
        return value

    def fill_webhook(self, webhook: Webhook, place: str) -> Webhook:
        """Fill in the address, with escaped values, and by the policy the headers."""
        escaped = {name: _escaped(value) for name, value in self.variables.items()}
        url = self._fill(webhook.url, escaped, place)
        if not self._policy.variables_in_headers:
            return Webhook(url, webhook.headers)
        headers = ((name, self.fill(text, f"{place}.{name}")) for name, text in webhook.headers)
        return Webhook(url, tuple(headers))

    def _fill(self, text: str, variables: Mapping[str, object], place: str) -> str:
        filled = fill(text, variables)
        if not filled.unknown:
            return filled.text
        names = (*self.unresolved.get(place, ()), *filled.unknown)
        self.unresolved[place] = tuple(dict.fromkeys(names))
        if self._policy.missing_variables == "blank":
            blank = dict.fromkeys(filled.unknown, "")
            return fill(text, {**blank, **variables}).text
        return filled.text


def render(
    agent_config: Mapping[str, Json],
    filling: Filling,
    *,
    extra_prompt: str | None,
    metadata_in_prompt: Mapping[str, Json] | None,
) -> Rendered:
    """Return the texts of an agent. Metadata that is not None is put into the prompt."""
    prompt = filling.fill(_text(agent_config.get("prompt")), "prompt")
    if extra_prompt:
        prompt += "\n\n" + filling.fill(extra_prompt, "extra_prompt")
    if metadata_in_prompt is not None:
        metadata = json.dumps(metadata_in_prompt, ensure_ascii=False, indent=2)
        prompt += f"\n\nMetadata of this session:\n{metadata}"
    first_message = agent_config.get("first_message")
    if end_of_call := webhook_of(agent_config.get(END_OF_CALL)):
        filling.fill_webhook(end_of_call, END_OF_CALL)
    return Rendered(
        prompt=prompt.strip(),
        first_message=(
            filling.fill(first_message, "first_message") if isinstance(first_message, str) else None
        ),
        tools=tuple(_tool(tool, filling) for tool in tools_of(agent_config)),
        messages=_messages(agent_config, filling),
        unresolved=dict(filling.unresolved),
    )


def unknown_variables(
    agent_config: Mapping[str, Json], declared: Mapping[str, object]
) -> dict[str, tuple[str, ...]]:
    """Return the variables in the texts of an agent that are not `declared`, by their place.

    Millis gives `FromPhone` and `ToPhone` on the phone.
    """
    variables = variables_of(declared, from_phone="", to_phone="")
    filling = Filling(variables, Policy())
    render(agent_config, filling, extra_prompt=None, metadata_in_prompt=None)
    return filling.unresolved


def undeclared(agent_config: Mapping[str, Json], declared: Mapping[str, object]) -> Iterator[str]:
    """Say which variables of an agent's texts are not declared, if any are declared at all."""
    unknown = unknown_variables(agent_config, declared) if declared else {}
    if names := ", ".join(dict.fromkeys(chain.from_iterable(unknown.values()))):
        yield f"Not declared in variables=, so some calls may lack them: {names}."


def tools_of(agent_config: Mapping[str, Json]) -> list[dict[str, Any]]:
    """Return the functions of an agent that have a name, as they are configured."""
    tools = agent_config.get("tools")
    candidates = tools if isinstance(tools, list) else []
    return [
        tool for tool in candidates if isinstance(tool, dict) and isinstance(tool.get("name"), str)
    ]


def _messages(agent_config: Mapping[str, Json], filling: Filling) -> dict[str, tuple[str, ...]]:
    """Return every text below a key of `_SPOKEN`, by its place in the configuration."""
    messages: dict[str, tuple[str, ...]] = {}
    for place, text in _spoken(dict(agent_config), "", _DEEPEST):
        if not _OF_TOOLS.match(place):
            messages[place] = (*messages.get(place, ()), filling.fill(text, place))
    return messages


def _spoken(value: Json, place: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and depth:
        for key, item in value.items():
            inner = f"{place}.{key}" if place else key
            if key in _SPOKEN:
                texts = item if isinstance(item, list) else [item]
                yield from ((inner, text) for text in texts if isinstance(text, str))
            else:
                yield from _spoken(item, inner, depth - 1)
    elif isinstance(value, list):
        for item in value:
            name = item.get("name") if isinstance(item, dict) else None
            yield from _spoken(item, f"{place}.{name}" if isinstance(name, str) else place, depth)


def _tool(tool: Mapping[str, Any], filling: Filling) -> dict[str, Any]:
    """Return what the agent knows of a function: neither its address nor its headers."""
    place = f"tools.{tool['name']}"
    if webhook := webhook_of_tool(tool):
        filling.fill_webhook(webhook, f"{place}.webhook")
    params = tool.get("params")
    return {
        "name": tool["name"],
        "description": filling.fill(_text(tool.get("description")), f"{place}.description"),
        "params": [
            param
            | {"description": filling.fill(_text(param.get("description")), f"{place}.params")}
            for param in (params if isinstance(params, list) else [])
            if isinstance(param, dict)
        ],
    }


def _escaped(value: object) -> str:
    return quote(fill("{value}", {"value": value}).text, safe="", errors="replace")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def ignored_parts(agent_config: Mapping[str, Json]) -> list[str]:
    """Return the parts of an agent that are set and have no effect in the sandbox."""
    return [path for path in IGNORED if _has(agent_config, path.split("."))]


def _has(value: Json | Mapping[str, Json], path: Sequence[str]) -> bool:
    """Return whether a part of a configuration is set; in a list, of any of its items."""
    if isinstance(value, list):
        return any(_has(item, path) for item in value)
    if not path:
        return value is not None
    return isinstance(value, Mapping) and _has(value.get(path[0]), path[1:])
