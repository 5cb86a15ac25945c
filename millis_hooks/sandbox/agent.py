"""Who talks. A script here; a person or the team's own model elsewhere, by the same protocol.

The texts of a call: metadata merged, the extra prompt appended, variables filled in.

What Millis documents of it: keys of a prefetch's metadata replace those attached and new ones are
added; `extra_prompt` is appended to the system prompt; `{name}` is filled in prompt, messages,
descriptions of parameters and webhook parameters. Source: docs.millis.ai, core-concepts/webhooks
and core-concepts/variables.

A conversation as who talks in it knows it: the texts, what was said, and the functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias
from urllib.parse import quote

from ..protocol.call_status import CallStatus
from ..protocol.reading import Json, finite
from ..protocol.variables import fill
from .call_spec import SessionSpec
from .clock import Clock
from .policy import Policy
from .steps import Said, Step
from .transport import END_OF_CALL, Webhook, webhook_of, webhook_of_tool

#: Who says a line, as Millis names the two.
Role: TypeAlias = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a conversation ends: any of Millis' statuses, or one that is new."""

    call_status: str = CallStatus.USER_ENDED
    error_message: str | None = None


class Agent(Protocol):
    """Holds a conversation."""

    async def converse(self, conversation: Conversation) -> Ending:
        """Say, hear and call functions through `conversation`; return how it ended.

        It is cancelled when the session is ended from elsewhere. What it raises ends the call with
        status `error`.
        """


@dataclass(frozen=True, slots=True)
class Line:
    """Something to be said, after a pause in seconds."""

    role: Role
    text: str
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A function to be called. In `params` each `{name}` is filled in as in a prompt."""

    name: str
    params: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A whole conversation, both sides of it; the first message of the agent is not in it."""

    turns: Sequence[Line | ToolUse] = ()
    ending: Ending = Ending()
    #: How long the call shall have taken, in seconds; by default as long as its words take.
    duration_s: float | None = None


class ScriptedAgent:
    """Goes through a script, whatever is answered."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def converse(self, conversation: Conversation) -> Ending:
        """Say and do what the script has, in order."""
        await conversation.greet()
        for turn in self._script.turns:
            if isinstance(turn, ToolUse):
                await conversation.call_function(turn.name, turn.params)
            else:
                await conversation.pause(turn.pause_s)
                await conversation.speak(turn.role, turn.text)
        if self._script.duration_s is not None:
            await conversation.pause(self._script.duration_s - conversation.lasted_s)
        return self._script.ending


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


#: How fast people talk, in characters a second.
CHARS_PER_S = 15.0

#: What the agent says at the end of a call, by its status. Source: the schemas of the two.
_LAST_WORDS: Mapping[str, str] = {
    CallStatus.TIMEOUT: "session_timeout.message",
    CallStatus.VOICEMAIL_MESSAGE: "flow.voicemail.message",
}

#: Calls a function by its name and parameters, and returns what came of it as text.
CallFunction = Callable[[str, Mapping[str, Json]], Awaitable[str]]


class ConversationTimeoutError(Exception):
    """The call has lasted as long as the agent's `session_timeout` lets it."""


class Conversation:
    """What an `Agent` talks through; everything that passes here becomes a step of the session."""

    def __init__(
        self,
        *,
        spec: SessionSpec,
        session_id: str,
        call_id: str,
        metadata: Mapping[str, Json],
        texts: Texts,
        clock: Clock,
        add: Callable[[Step], None],
        call_function: CallFunction,
    ) -> None:
        #: What was asked of the session: agent, numbers, the earlier conversation.
        self.spec = spec
        self.session_id = session_id
        self.call_id = call_id
        #: What was attached, and what the prefetch made of it.
        self.metadata = metadata
        #: The prompt, the first message and the functions, filled in.
        self.texts = texts
        #: What was said, as Millis' messages: `role`, `content`, and those of functions.
        self.messages: list[dict[str, Any]] = []
        #: How long the call may last, in seconds; None is for ever.
        self.longest_s = _longest_s(spec.agent_config)
        self._clock = clock
        self._began_s = clock.elapsed_s()
        self._add = add
        self._call_function = call_function
        #: What the agent is about to say, piece by piece; None between such turns.
        self._open_turn: dict[str, Any] | None = None

    @property
    def lasted_s(self) -> float:
        """How long the call has lasted, in seconds."""
        return self._clock.elapsed_s() - self._began_s

    async def greet(self) -> None:
        """Say the first message, if the agent has one and does not let the caller begin."""
        flow = self.spec.agent_config.get("flow")
        waits = isinstance(flow, dict) and flow.get("user_start_first") is True
        if self.texts.first_message and not waits:
            await self.say(self.texts.first_message)

    async def hear(self, text: str) -> None:
        """Have the caller say `text`."""
        await self.speak("user", text)

    async def say(self, text: str) -> None:
        """Have the agent say `text`."""
        await self.speak("assistant", text)

    async def speak(self, role: Role, text: str) -> None:
        """Have one of the two say `text`. Where nobody types, it takes the time of speaking."""
        self.end_turn()
        self.messages.append({"role": role, "content": text})
        self._add(Said(role=role, text=text))
        if not self._clock.is_live:
            await self.pause(len(text) / CHARS_PER_S)

    def say_more(self, text: str) -> None:
        """Have the agent say the next piece of its turn; the first piece begins one."""
        continues = self._open_turn is not None
        if self._open_turn is None:
            self._open_turn = {"role": "assistant", "content": ""}
            self.messages.append(self._open_turn)
        self._open_turn["content"] += text
        self._add(Said(role="assistant", text=text, continues=continues, is_final=False))

    def end_turn(self) -> None:
        """Say that the turn begun by `say_more` is complete; without one nothing happens."""
        if self._open_turn is not None:
            self._open_turn = None
            self._add(Said(role="assistant", text="", continues=True))

    async def call_function(self, name: str, params: Mapping[str, Json]) -> str:
        """Have the agent call one of its functions; return what it is told, also of a failure.

        Before it, the agent says the first of the messages that the function has.
        """
        self.end_turn()
        if not self._is_for_later(name):
            for text in self.texts.messages.get(f"tools.{name}.messages", ())[:1]:
                await self.say(text)
        result = await self._call_function(name, params)
        self.messages += _function_turns(name, params, result, len(self.messages))
        self._require_time()
        return result

    def say_last(self, call_status: str) -> None:
        """Have the agent say what it has for such an end of the call; no limit is kept for it."""
        for text in self.texts.messages.get(_LAST_WORDS.get(call_status, ""), ())[:1]:
            self.messages.append({"role": "assistant", "content": text})
            self._add(Said(role="assistant", text=text))

    def _is_for_later(self, name: str) -> bool:
        tools = tools_of(self.spec.agent_config)
        return any(tool["name"] == name and tool.get("run_after_call") is True for tool in tools)

    async def pause(self, seconds: float) -> None:
        """Let time pass; raises `ConversationTimeoutError` if the call may not last so long."""
        if seconds > 0:
            left_s = seconds if self.longest_s is None else self.longest_s - self.lasted_s
            await self._clock.pass_time(max(min(seconds, left_s), 0.0))
        self._require_time()

    def _require_time(self) -> None:
        if self.longest_s is not None and self.lasted_s >= self.longest_s:
            raise ConversationTimeoutError


def _longest_s(agent_config: Mapping[str, Json]) -> float | None:
    limits = agent_config.get("session_timeout")
    longest_s = finite(limits.get("max_duration")) if isinstance(limits, dict) else None
    return longest_s if longest_s and longest_s > 0 else None


def _function_turns(
    name: str, params: Mapping[str, Json], result: str, number: int
) -> list[dict[str, Any]]:
    """Return the two messages that a function call leaves in a conversation."""
    function = {"name": name, "arguments": json.dumps(params)}
    call = {"id": f"call_{number}", "type": "function", "function": function}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result, "tool_call_id": call["id"]},
    ]
