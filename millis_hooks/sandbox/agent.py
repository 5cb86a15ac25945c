"""Who talks. A script here; a person or the team's own model elsewhere, by the same protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from ..call_status import CallStatus
from ..wire import Json

if TYPE_CHECKING:
    from .conversation import Conversation

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
