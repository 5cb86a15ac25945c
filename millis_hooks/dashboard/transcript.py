"""The transcript of a call: messages grouped by speaker, with tool calls where they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from ..masking.places import Place
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
    """A message or a tool call. `first` and `last` bound the lines of one speaker in a row."""

    kind: Kind
    role: str
    text: str = ""
    tool: Function | None = None
    first: bool = True
    last: bool = True


@dataclass(frozen=True, slots=True)
class Transcript:
    """The first lines of a transcript, masked; `left_out` counts the others.

    `has_tools` if any line, also of those left out, is a tool call.
    """

    lines: tuple[Line, ...] = ()
    left_out: int = 0
    has_tools: bool = False


def transcript_of(event: EndOfCall, mask: MaskPolicy) -> Transcript:
    """Return the transcript of a call."""
    lines = tuple(_lines(event))
    room = Room()
    masked = tuple(_masked(line, mask, room) for line in lines[:MOST_LINES])
    return Transcript(
        grouped(masked),
        max(len(lines) - MOST_LINES, 0),
        any(line.kind == "tool" for line in lines),
    )


def functions_of(event: EndOfCall, mask: MaskPolicy) -> tuple[Function, ...]:
    """Return the first tool calls of the agent, in order; Millis sends no times for them."""
    room = Room()
    return tuple(
        _masked_function(call.name or "function", dict(call.params), call.result, mask, room)
        for call in event.function_calls[:MOST_LINES]
    )


def grouped(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Mark the lines that begin and end what one speaker says in a row."""
    speakers = [None, *((line.kind, line.role) for line in lines), None]
    triples = zip(speakers, speakers[1:], speakers[2:], strict=False)
    return tuple(
        line if before != own != after else replace(line, first=before != own, last=own != after)
        for line, (before, own, after) in zip(lines, triples, strict=True)
    )


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
