"""Who calls, and an agent that needs no model. A caller types, speaks, or has a script."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ...protocol.call_status import CallStatus
from ...protocol.reading import Json
from ..agent import Conversation, Ending, Line, Script, ToolUse


@dataclass(frozen=True, slots=True)
class Heard:
    """What the caller says; while it goes on, `is_final` is not set."""

    text: str
    is_final: bool = True


class Caller(Protocol):
    """The other side of a conversation."""

    #: Whether the caller lets the agent finish.
    waits: bool
    #: How the call ends once the caller has nothing more to say.
    ending: Ending

    async def next(self) -> Heard | ToolUse | None:
        """Return what the caller says next, when it is said; None at the end.

        A function comes in between that the agent is to call: nothing here decides that by itself.
        """


class LiveCaller:
    """Says what it is given when it is given it."""

    waits = False
    ending = Ending(CallStatus.USER_ENDED)

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Heard | ToolUse | None] = asyncio.Queue()

    def say(self, text: str, *, is_final: bool = True) -> None:
        """Have the caller say `text`."""
        self._queue.put_nowait(Heard(text, is_final))

    def call_function(self, name: str, params: Mapping[str, Json]) -> None:
        """Have the agent call one of its functions, after what was said before."""
        self._queue.put_nowait(ToolUse(name, params))

    def hang_up(self) -> None:
        """Have the caller say nothing more."""
        self._queue.put_nowait(None)

    async def next(self) -> Heard | ToolUse | None:
        """Wait for what the caller says."""
        return await self._queue.get()


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
    """Greets, and says what it has heard: there is no model in the sandbox."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def converse(self, conversation: Conversation) -> Ending:
        """Answer the caller until the end."""
        await conversation.greet()
        while (heard := await self._caller.next()) is not None:
            if isinstance(heard, ToolUse):
                result = await conversation.call_function(heard.name, heard.params)
                await conversation.say(f"{heard.name} answered: {result}")
            elif heard.is_final:
                await conversation.hear(heard.text)
                await conversation.say(echo(heard.text))
        return self._caller.ending


def echo(text: str) -> str:
    """Return what the agent without a model answers."""
    return f"You said: {text}"
