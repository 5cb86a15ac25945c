"""The texts of a call: metadata merged, the extra prompt appended, variables filled in.

What Millis documents of it: keys of a prefetch's metadata replace those attached and new ones are
added; `extra_prompt` is appended to the system prompt; `{name}` is filled in prompt, messages,
descriptions of parameters and webhook parameters. Source: docs.millis.ai, core-concepts/webhooks
and core-concepts/variables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from ..variables import fill
from ..wire import Json
from .policy import Policy
from .webhooks import END_OF_CALL, Webhook, webhook_of, webhook_of_tool

#: What the agent says, or is told of when to say it. Source: the keys in Millis' OpenAPI file.
_SPOKEN = frozenset({"message", "messages", "instruction", "description"})
#: Descriptions that the agent is told with its functions.
_TOLD_ELSEWHERE = re.compile(r"tools\..*description\Z", re.DOTALL)
#: Nothing that Millis documents stands deeper in a configuration.
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Texts:
    """What the agent is given, filled in. `unresolved` has the unknown names by place."""

    prompt: str
    first_message: str | None
    tools: tuple[dict[str, Any], ...]
    #: What the agent says beside its first message, or is told of when to say it, by place.
    messages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unresolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Merge(NamedTuple):
    """Metadata after the prefetch, and the keys it touched."""

    metadata: dict[str, Json]
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


def merge_metadata(
    attached: Mapping[str, Json], answered: Mapping[str, Json], policy: Policy
) -> Merge:
    """Return `answered` merged over `attached`: known keys are replaced, new ones added."""
    removed = [key for key, value in answered.items() if policy.null_removes and value is None]
    merged = dict(attached)
    for key, value in answered.items():
        merged[key] = _merged(merged.get(key), value) if policy.merge == "deep" else value
    for key in removed:
        del merged[key]
    kept = [key for key in answered if key not in removed]
    return Merge(
        merged,
        tuple(key for key in kept if key not in attached),
        tuple(key for key in kept if key in attached and attached[key] != merged[key]),
        tuple(key for key in removed if key in attached),
    )


def _merged(old: Json, new: Json) -> Json:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


class Filling:
    """Fills texts in, and remembers the names nothing was known of, by place."""

    def __init__(self, variables: Mapping[str, object], policy: Policy) -> None:
        self._variables = variables
        self._policy = policy
        self.unresolved: dict[str, tuple[str, ...]] = {}

    def fill(self, text: str, place: str) -> str:
        """Return `text` filled in; `place` names it."""
        return self._fill(text, self._variables, place)

    def webhook(self, webhook: Webhook, place: str) -> Webhook:
        """Return a webhook filled in: its address, and if the policy says so its headers."""
        quoted = {name: _quoted(value) for name, value in self._variables.items()}
        url = self._fill(webhook.url, quoted, place)
        if not self._policy.variables_in_headers:
            return Webhook(url, webhook.headers)
        headers = ((name, self.fill(text, f"{place}.{name}")) for name, text in webhook.headers)
        return Webhook(url, tuple(headers))

    def _fill(self, text: str, variables: Mapping[str, object], place: str) -> str:
        filled = fill(text, variables)
        if not filled.unknown:
            return filled.text
        known = self.unresolved.get(place, ())
        self.unresolved[place] = tuple(dict.fromkeys((*known, *filled.unknown)))
        if self._policy.missing_variables == "blank":
            blank = dict.fromkeys(filled.unknown, "")
            return fill(text, {**blank, **variables}).text
        return filled.text

    def fill_all(self, value: Json, place: str) -> Json:
        """Fill in every text within a JSON value."""
        if isinstance(value, str):
            return self.fill(value, place)
        if isinstance(value, list):
            return [self.fill_all(item, place) for item in value]
        if isinstance(value, dict):
            return {key: self.fill_all(item, place) for key, item in value.items()}
        return value


def render(
    agent_config: Mapping[str, Json],
    filling: Filling,
    *,
    extra_prompt: str | None,
    metadata_in_prompt: Mapping[str, Json] | None,
) -> Texts:
    """Return the texts of an agent. Metadata that is not None is put into the prompt."""
    prompt = filling.fill(_text(agent_config.get("prompt")), "prompt")
    if extra_prompt:
        prompt += "\n\n" + filling.fill(extra_prompt, "extra_prompt")
    if metadata_in_prompt is not None:
        shown = json.dumps(metadata_in_prompt, ensure_ascii=False, indent=2)
        prompt += f"\n\nMetadata of this session:\n{shown}"
    first_message = agent_config.get("first_message")
    if end_of_call := webhook_of(agent_config.get(END_OF_CALL)):
        filling.webhook(end_of_call, END_OF_CALL)
    return Texts(
        prompt.strip(),
        filling.fill(first_message, "first_message") if isinstance(first_message, str) else None,
        tuple(_tool(tool, filling) for tool in tools_of(agent_config)),
        _messages(agent_config, filling),
        filling.unresolved,
    )


def tools_of(agent_config: Mapping[str, Json]) -> list[dict[str, Any]]:
    """Return the functions of an agent that have a name, as they are configured."""
    tools = agent_config.get("tools")
    candidates = tools if isinstance(tools, list) else []
    return [
        tool for tool in candidates if isinstance(tool, dict) and isinstance(tool.get("name"), str)
    ]


def _messages(agent_config: Mapping[str, Json], filling: Filling) -> dict[str, tuple[str, ...]]:
    """Return every text below a key of `_SPOKEN`, wherever in the configuration that is."""
    messages: dict[str, tuple[str, ...]] = {}
    for place, text in _spoken(dict(agent_config), "", _DEEPEST):
        if not _TOLD_ELSEWHERE.match(place):
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
    """Return what the agent is told of a function: no address and no header."""
    place = f"tools.{tool['name']}"
    if webhook := webhook_of_tool(tool):
        filling.webhook(webhook, f"{place}.webhook")
    params = tool.get("params")
    return {
        "name": tool["name"],
        "description": filling.fill(_text(tool.get("description")), f"{place}.description"),
        "params": [
            {
                **param,
                "description": filling.fill(_text(param.get("description")), f"{place}.params"),
            }
            for param in (params if isinstance(params, list) else [])
            if isinstance(param, dict)
        ],
    }


def _quoted(value: object) -> str:
    """Return a variable's value as it stands in an address."""
    return quote(fill("{value}", {"value": value}).text, safe="", errors="replace")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
