"""Agents, which do the talking in a call, and the conversation through which they do it.

An agent follows a script, echoes, or is the team's own model (`emulator.custom_llm`). The caller
types, speaks, or has a script, too.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from ..protocol.call_status import CallStatus
from ..protocol.reading import Json, finite
from .scenario import Ending, Line, Role, Script, SessionSpec, ToolUse
from .steps import Rendered, Said, Step
from .texts import tools_of

#: How fast people talk, in characters a second.
CHARS_PER_S = 15.0

#: Where an agent has what it says when a call ends, by its status. Source: the OpenAPI file.
_LAST_WORDS: Mapping[str, str] = {
    CallStatus.TIMEOUT: "session_timeout.message",
    CallStatus.VOICEMAIL_MESSAGE: "flow.voicemail.message",
}

#: Calls a function by its name and parameters, and returns its result as text.
CallFunction = Callable[[str, Mapping[str, Json]], Awaitable[str]]


class ConversationTimeoutError(Exception):
    """The call has lasted as long as the agent's `session_timeout` allows."""


class Clock:
    """Time as a session sees it: it runs at `pace` while the session waits; infinity skips waits.

    The time of day stays the real one, so that a receiver gets calls that have just ended, and
    none that end in the future. `is_live` says that a person talks, who takes the time of speaking
    by talking; the words of a script take it by `pass_time`.
    """

    def __init__(self, pace: float = math.inf, *, is_live: bool = False) -> None:
        self.is_live = is_live
        self._pace = pace
        self._skipped_s = 0.0

    def now(self) -> datetime:
        """Return the time of day, aware and in UTC."""
        return datetime.now(UTC)

    def elapsed_s(self) -> float:
        """Return seconds since some moment, those skipped included."""
        return time.perf_counter() + self._skipped_s

    async def pass_time(self, seconds: float) -> None:
        """Return when `seconds` have passed at the clock's pace."""
        real_s = seconds / self._pace
        await asyncio.sleep(real_s)
        self._skipped_s += seconds - real_s


class Conversation:
    """What an agent and a caller say and do in a session; each of it becomes a step."""

    def __init__(
        self,
        spec: SessionSpec,
        *,
        session_id: str,
        call_id: str,
        metadata: Mapping[str, Json],
        texts: Rendered,
        clock: Clock,
        add: Callable[[Step], None],
        call_function: CallFunction,
    ) -> None:
        self.spec = spec
        self.session_id = session_id
        self.call_id = call_id
        #: After the prefetch.
        self.metadata = metadata
        #: The prompt, the first message and the functions, filled in.
        self.texts = texts
        #: What was said, as Millis' messages: `role`, `content`, and those of functions.
        self.messages: list[dict[str, Any]] = []
        #: How long the call may last, in seconds; None is without limit.
        self.longest_s = _longest_s(spec.agent_config)
        self._clock = clock
        self._began_s = clock.elapsed_s()
        self._add = add
        self._call_function = call_function
        #: The message that `say_more` is adding to.
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
            await self.speak("assistant", self.texts.first_message)

    async def speak(self, role: Role, text: str) -> None:
        """Have the caller (`user`) or the agent (`assistant`) say `text`.

        In a script it takes the time of speaking.
        """
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
        """Complete the turn begun by `say_more`, if there is one."""
        if self._open_turn is not None:
            self._open_turn = None
            self._add(Said(role="assistant", text="", continues=True))

    async def call_function(self, name: str, params: Mapping[str, Json]) -> str:
        """Have the agent call one of its functions; return its result, also of a failure.

        Before it, the agent says the first of the messages that the function has.
        """
        self.end_turn()
        if not self._runs_after_call(name):
            for text in self.texts.messages.get(f"tools.{name}.messages", ())[:1]:
                await self.speak("assistant", text)
        result = await self._call_function(name, params)
        self.messages += _function_turns(name, params, result, len(self.messages))
        self._require_time()
        return result

    def say_last(self, call_status: str) -> None:
        """Have the agent say its message for such an end of the call, without a time limit."""
        for text in self.texts.messages.get(_LAST_WORDS.get(call_status, ""), ())[:1]:
            self.messages.append({"role": "assistant", "content": text})
            self._add(Said(role="assistant", text=text))

    def _runs_after_call(self, name: str) -> bool:
        tools = tools_of(self.spec.agent_config)
        return any(tool["name"] == name and tool.get("run_after_call") is True for tool in tools)

    async def pause(self, seconds: float) -> None:
        """Let time pass; raises `ConversationTimeoutError` if the call may not last that long."""
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


class Agent(Protocol):
    """Holds a conversation."""

    async def converse(self, conversation: Conversation) -> Ending:
        """Talk and call functions through `conversation`; return how it ended.

        It is cancelled when the session is ended from elsewhere. What it raises ends the call with
        status `error`.
        """


class ScriptedAgent:
    """Follows a script, whatever is answered."""

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


@dataclass(frozen=True, slots=True)
class Heard:
    """What the caller says; `is_final` is False while it goes on."""

    text: str
    is_final: bool = True


class Caller(Protocol):
    """The other side of a conversation."""

    #: Whether the caller lets the agent finish.
    waits: bool
    #: How the call ends once the caller has nothing more to say.
    ending: Ending

    async def next(self) -> Heard | ToolUse | None:
        """Return what the caller says next, once it is said; None at the end.

        A `ToolUse` is for the agent: without a model it does not decide by itself to call one.
        """


class LiveCaller:
    """A person: says things when `say` is called."""

    waits = False
    ending = Ending(CallStatus.USER_ENDED)

    def __init__(self) -> None:
        #: Set while the agent has dealt with everything and waits for the caller.
        self.is_awaited = asyncio.Event()
        self._queue: asyncio.Queue[Heard | ToolUse] = asyncio.Queue()

    def say(self, text: str, *, is_final: bool = True) -> None:
        """Have the caller say `text`."""
        self._put(Heard(text, is_final))

    def call_function(self, name: str, params: Mapping[str, Json]) -> None:
        """Have the agent call one of its functions, after what was said before."""
        self._put(ToolUse(name, params))

    async def next(self) -> Heard | ToolUse:
        """Wait for what the caller says."""
        if self._queue.empty():
            self.is_awaited.set()
        return await self._queue.get()

    def _put(self, item: Heard | ToolUse) -> None:
        self.is_awaited.clear()
        self._queue.put_nowait(item)


class ScriptedCaller:
    """Says the caller's lines of a script, in order."""

    waits = True

    def __init__(self, script: Script) -> None:
        self.ending = script.ending
        self._lines = iter(
            [turn for turn in script.turns if isinstance(turn, Line) and turn.role == "user"]
        )

    async def next(self) -> Heard | None:
        """Return the next line."""
        line = next(self._lines, None)
        return None if line is None else Heard(line.text)


class EchoAgent:
    """Answers with `replies`, and then with what it hears: the sandbox has no model."""

    def __init__(self, caller: Caller, replies: Iterable[str] = ()) -> None:
        self._caller = caller
        self._replies = iter(replies)

    async def converse(self, conversation: Conversation) -> Ending:
        """Answer the caller until the end."""
        await conversation.greet()
        while (heard := await self._caller.next()) is not None:
            if isinstance(heard, ToolUse):
                result = await conversation.call_function(heard.name, heard.params)
                await conversation.speak("assistant", f"{heard.name} answered: {result}")
            elif heard.is_final:
                await conversation.speak("user", heard.text)
                reply = next(self._replies, None) or echo(heard.text)
                await conversation.speak("assistant", reply)
        return self._caller.ending


def echo(text: str) -> str:
    """Return what the agent without a model answers."""
    return f"You said: {text}"
