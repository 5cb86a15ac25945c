"""Agents that follow a script or echo, and callers: a person who types or speaks, or a script."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from ..protocol.call_status import CallStatus
from ..protocol.reading import Json
from .scenario import Ending, Line, Script, ToolUse
from .session import Caller, Session


class ScriptedAgent:
    """Follows a script, whatever is answered."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def converse(self, session: Session) -> Ending:
        """Say and do what the script has, in order."""
        await session.greet()
        for turn in self._script.turns:
            if isinstance(turn, ToolUse):
                await session.call_function(turn.name, turn.params)
            else:
                await session.pause(turn.pause_s)
                await session.speak(turn.role, turn.text)
        ending = self._script.ending
        if ending.duration_s is not None:
            await session.pause(ending.duration_s - session.lasted_s)
        return ending


class EchoAgent:
    """Answers with `replies`, and then with what it hears: the sandbox has no model."""

    def __init__(self, caller: Caller, replies: Iterable[str] = ()) -> None:
        self._caller = caller
        self._replies = iter(replies)

    async def converse(self, session: Session) -> Ending:
        """Answer the caller until the end."""
        await session.greet()
        while (turn := await self._caller.next()) is not None:
            if isinstance(turn, ToolUse):
                result = await session.call_function(turn.name, turn.params)
                await session.speak("assistant", f"{turn.name} answered: {result}")
            elif turn.is_final:
                await session.speak("user", turn.text)
                await session.speak("assistant", next(self._replies, None) or echo(turn.text))
        return self._caller.ending


def echo(text: str) -> str:
    """Return what the agent without a model answers."""
    return f"You said: {text}"


class LiveCaller:
    """A person: says things when `say` is called."""

    waits = False
    ending = Ending(CallStatus.USER_ENDED)

    def __init__(self) -> None:
        #: Set while the agent has dealt with everything and waits for the caller.
        self.is_awaited = asyncio.Event()
        self._queue: asyncio.Queue[Line | ToolUse] = asyncio.Queue()

    def say(self, text: str, *, is_final: bool = True) -> None:
        """Have the caller say `text`."""
        self._put(Line("user", text, is_final=is_final))

    def call_function(self, name: str, params: Mapping[str, Json]) -> None:
        """Have the agent call one of its functions, after what was said before."""
        self._put(ToolUse(name, params))

    async def next(self) -> Line | ToolUse:
        """Wait for what the caller says."""
        if self._queue.empty():
            self.is_awaited.set()
        return await self._queue.get()

    def _put(self, turn: Line | ToolUse) -> None:
        self.is_awaited.clear()
        self._queue.put_nowait(turn)


class ScriptedCaller:
    """Says the caller's lines of a script, in order."""

    waits = True

    def __init__(self, script: Script) -> None:
        self.ending = script.ending
        self._lines = iter(
            [turn for turn in script.turns if isinstance(turn, Line) and turn.role == "user"]
        )

    async def next(self) -> Line | None:
        """Return the next line."""
        return next(self._lines, None)
