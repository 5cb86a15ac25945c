"""The texts of a call: metadata merged, the extra prompt appended, variables filled in.

What Millis documents of it: keys of a prefetch's metadata replace those attached and new ones are
added; `extra_prompt` is appended to the system prompt; `{name}` is filled in prompt, messages,
descriptions of parameters and webhook parameters. Source: docs.millis.ai, core-concepts/webhooks
and core-concepts/variables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..variables import fill
from ..wire import Json
from .policy import Policy


@dataclass(frozen=True, slots=True)
class Texts:
    """What the agent is given, filled in. `unresolved` has the unknown names by place."""

    prompt: str
    first_message: str | None
    tools: tuple[dict[str, Any], ...]
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
        self._is_blank = policy.missing_variables == "blank"
        self.unresolved: dict[str, tuple[str, ...]] = {}

    def fill(self, text: str, place: str) -> str:
        """Return `text` filled in; `place` names it."""
        filled = fill(text, self._variables)
        if not filled.unknown:
            return filled.text
        known = self.unresolved.get(place, ())
        self.unresolved[place] = tuple(dict.fromkeys((*known, *filled.unknown)))
        if self._is_blank:
            blank = dict.fromkeys(filled.unknown, "")
            return fill(text, {**blank, **self._variables}).text
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
    return Texts(
        prompt.strip(),
        filling.fill(first_message, "first_message") if isinstance(first_message, str) else None,
        tuple(_tool(tool, filling) for tool in tools_of(agent_config)),
        filling.unresolved,
    )


def tools_of(agent_config: Mapping[str, Json]) -> list[dict[str, Any]]:
    """Return the functions of an agent that have a name, as they are configured."""
    tools = agent_config.get("tools")
    candidates = tools if isinstance(tools, list) else []
    return [
        tool for tool in candidates if isinstance(tool, dict) and isinstance(tool.get("name"), str)
    ]


def _tool(tool: Mapping[str, Any], filling: Filling) -> dict[str, Any]:
    """Return what the agent is told of a function: no address and no header."""
    place = f"tools.{tool['name']}"
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


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
