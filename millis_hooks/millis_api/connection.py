"""Connects an agent at Millis with a service: both webhooks and the tools, and nothing else.

Whether Millis merges a partial configuration or replaces the whole is not documented. So only the
keys that change are sent, the agent is read again, and a loss is put right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from ..exceptions import MillisApiError, MillisUnreachableError
from ..protocol.reading import Json
from . import Agent, MillisApi

#: Parts of a path from this length on that have a digit may be secrets.
_SECRET_CHARS = 16
_HIDDEN = "•"


@dataclass(frozen=True, slots=True)
class Connected:
    """What became of writing an agent's configuration, as Millis has it afterwards."""

    agent: Agent
    #: Keys that were sent, and are not as they were sent.
    not_taken: tuple[str, ...] = ()
    #: What was not sent, and was still lost or changed.
    lost: tuple[str, ...] = ()
    #: Whether the old configuration is there again, after a loss.
    is_put_back: bool = False


def changes_of(agent: Agent, config: Mapping[str, Json]) -> dict[str, Json]:
    """Return the keys to write: those of `config` that the agent has not.

    Its other tools stay, and so do keys of a tool of the same name that `config` has not.
    """
    merged = dict(config)
    if "tools" in config:
        merged["tools"] = _merged_tools(agent.config.get("tools"), config["tools"])
    return {key: value for key, value in merged.items() if not _has(agent.config.get(key), value)}


async def write(api: MillisApi, agent: Agent, changes: dict[str, Json]) -> Connected:
    """Write the keys to change, read the agent again, and undo a loss. Raises `MillisApiError`."""
    try:
        await api.change_agent(agent.id, agent.name, changes)
    except MillisUnreachableError as error:
        if not error.may_be_done:
            raise
    try:
        now = await api.agent(agent.id)
    except MillisApiError as error:
        raise MillisApiError(
            f"The configuration was sent, but could not be read again: {error} Run the same "
            "command again to see what Millis has now."
        ) from error
    not_taken = tuple(key for key, value in changes.items() if not _has(now.config.get(key), value))
    lost = _lost(agent, now, changes)
    if not lost:
        return Connected(now, not_taken)
    try:
        await api.change_agent(agent.id, agent.name, agent.config)
        now = await api.agent(agent.id)
    except MillisApiError:
        return Connected(now, not_taken, lost)
    return Connected(now, not_taken, lost, is_put_back=not _lost(agent, now, {}))


def difference(agent: Agent, changes: Mapping[str, Json]) -> Iterator[str]:
    """Yield what changes, in lines and without secrets."""
    for key, value in changes.items():
        if key != "tools":
            yield f"{key}: {_webhook(agent.config.get(key))} -> {_webhook(value)}"
    before = _by_name(agent.config.get("tools"))
    for name, tool in _by_name(changes.get("tools")).items():
        if name not in before:
            yield f"tools: + {name} -> {_webhook(tool)}"
        elif not _has(before[name], tool):
            keys = [key for key in tool if not _has(before[name].get(key), tool[key])]
            yield f"tools: ~ {name} ({', '.join(keys)}) -> {_webhook(tool)}"


def state(agent: Agent, config: Mapping[str, Json]) -> Iterator[str]:
    """Yield what an agent has of these keys and tools, in lines and without secrets."""
    for key in config:
        if key != "tools":
            yield f"{key}: {_webhook(agent.config.get(key))}"
    there = _by_name(agent.config.get("tools"))
    for name in _by_name(config.get("tools")):
        yield f"tools: {name} -> {_webhook(there.get(name))}"


def _webhook(value: Json) -> str:
    """Return address and headers of a webhook or a tool, without what may be a secret."""
    if isinstance(value, str):
        return _address(value)
    if not isinstance(value, dict):
        return "nothing"
    headers = value.get("headers") or value.get("header")
    names = [f"{name}: {_HIDDEN}" for name in headers] if isinstance(headers, dict) else []
    return " ".join([_address(str(value.get("url") or value.get("webhook") or "")), *names])


def _address(url: str) -> str:
    try:
        address = urlsplit(url)
        host = address.netloc.rpartition("@")[2]
    except ValueError:
        return _HIDDEN
    parts = [_HIDDEN if _may_be_secret(part) else part for part in address.path.split("/")]
    text = f"{address.scheme}://{host}{'/'.join(parts)}{f'?{_HIDDEN}' if address.query else ''}"
    return "".join(each if each.isprintable() else "?" for each in text)


def _may_be_secret(part: str) -> bool:
    return len(part) >= _SECRET_CHARS and any(map(str.isdigit, part))


def _merged_tools(before: Json, new: Json) -> list[Json]:
    ours = _by_name(new)
    tools: list[Json] = []
    for tool in before if isinstance(before, list) else []:
        name = tool.get("name") if isinstance(tool, dict) else None
        mine = ours.pop(name, {}) if isinstance(name, str) else {}
        tools.append({**tool, **mine} if isinstance(tool, dict) else tool)
    return [*tools, *ours.values()]


def _by_name(tools: Json) -> dict[str, dict[str, Json]]:
    entries = [each for each in tools if isinstance(each, dict)] if isinstance(tools, list) else []
    return {str(each.get("name")): each for each in entries}


def _has(actual: Json, expected: Json) -> bool:
    """Tell whether `actual` has all of `expected`; it may have more, and lack empty keys."""
    if isinstance(expected, dict):
        items = actual if isinstance(actual, dict) else {}
        return all(_has(items.get(key), value) for key, value in expected.items())
    if isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            return not expected and not actual
        return all(_has(one, other) for one, other in zip(actual, expected, strict=True))
    return actual == expected


def _lost(before: Agent, now: Agent, changes: Mapping[str, Json]) -> tuple[str, ...]:
    others = {key: value for key, value in before.config.items() if key not in changes}
    lost = tuple(key for key, value in others.items() if not _has(now.config.get(key), value))
    sent, there = _by_name(changes.get("tools")), _by_name(now.config.get("tools"))
    for name, tool in _by_name(before.config.get("tools")).items():
        if sent.get(name) == tool and not _has(there.get(name), tool):
            lost += (f"the tool {name}",)
    return lost if now.name == before.name else ("name", *lost)
