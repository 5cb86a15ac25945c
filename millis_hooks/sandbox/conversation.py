"""A conversation as who talks in it knows it: the texts, what was said, and the functions."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..call_status import CallStatus
from ..wire import Json, finite
from .agent import Role
from .clock import Clock
from .prompt import Texts, tools_of
from .spec import SessionSpec
from .steps import Said, Step

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
