"""The conversation of a call: its messages, with tool calls where they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from ..masking.places import END_OF_CALL, Place
from ..masking.policy import MaskPolicy
from ..protocol.events import EndOfCall, Message
from .payloads import Room

#: Lines or tool calls that a page shows: a browser takes seconds for more.
MOST_LINES = 2_000
_MOST_NAME_CHARS = 200

Kind = Literal["user", "assistant", "tool", "other"]
_KINDS: Mapping[str, Kind] = {"user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Function:
    """A tool call of the agent, with its parameters and its result."""

    name: str
    params: JsonValue
    result: JsonValue


@dataclass(frozen=True, slots=True)
class Line:
    """A message or a tool call."""

    kind: Kind
    role: str
    text: str = ""
    tool: Function | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """What an end-of-call says of the conversation, masked: the first lines and tool calls.

    The counts `..._left_out` are of the others. `has_tools_in_place` if any line, also of those
    left out, is a tool call. `secrets_masked` counts those in `agent_config`.
    """

    lines: tuple[Line, ...] = ()
    lines_left_out: int = 0
    functions: tuple[Function, ...] = ()
    functions_left_out: int = 0
    has_tools_in_place: bool = False
    average_latency_ms: float | None = None
    agent_config: JsonValue = None
    secrets_masked: int = 0
    problems: tuple[str, ...] = ()


def conversation_of(event: EndOfCall, mask: MaskPolicy) -> Conversation:
    """Return the conversation of a call. Millis sends no times for its tool calls."""
    lines, room = tuple(_lines(event)), Room()
    config = mask.masked(Room().beginning(event.agent_config), END_OF_CALL["agent_config"])
    return Conversation(
        lines=tuple(_masked(line, mask, room) for line in lines[:MOST_LINES]),
        lines_left_out=max(len(lines) - MOST_LINES, 0),
        functions=tuple(_functions(event, mask)),
        functions_left_out=max(len(event.function_calls) - MOST_LINES, 0),
        has_tools_in_place=any(line.kind == "tool" for line in lines),
        average_latency_ms=event.average_latency_ms,
        agent_config=config.value,
        secrets_masked=config.count,
        problems=tuple(map(str, event.problems)),
    )


def _functions(event: EndOfCall, mask: MaskPolicy) -> Iterator[Function]:
    room = Room()
    for call in event.function_calls[:MOST_LINES]:
        name = call.name or "function"
        yield _masked_function(name, dict(call.params), call.result, mask, room)


def _lines(event: EndOfCall) -> Iterator[Line]:
    results: dict[str | None, str | None] = {
        message.tool_call_id: message.content
        for message in event.chat
        if message.role == "tool" and message.tool_call_id
    }
    called = {call.id for message in event.chat for call in message.tool_calls}
    for message in event.chat:
        if message.role != "tool":
            yield from _lines_of(message, results)
        elif message.tool_call_id not in called:
            yield Line("tool", "tool", tool=Function("result", None, message.content))


def _lines_of(message: Message, results: Mapping[str | None, str | None]) -> Iterator[Line]:
    role = message.role or "unknown"
    if message.content:
        yield Line(_KINDS.get(role, "other"), role, message.content)
    for call in message.tool_calls:
        tool = Function(call.name or "tool", call.arguments, results.get(call.id))
        yield Line("tool", role, tool=tool)


def _masked(line: Line, mask: MaskPolicy, room: Room) -> Line:
    if line.tool is not None:
        tool = line.tool
        masked = _masked_function(tool.name, tool.params, tool.result, mask, room)
        return replace(line, tool=masked)
    return Line(line.kind, line.role, mask.text(room.text(line.text)))


def _masked_function(
    name: str, params: JsonValue, result: JsonValue, mask: MaskPolicy, room: Room
) -> Function:
    masked = (mask.payload(room.beginning(each), Place.WORDS) for each in (params, result))
    return Function(name[:_MOST_NAME_CHARS], *masked)
