"""What was said, as bubbles grouped by speaker, with the tool calls where they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from ..masking.places import Place
from ..masking.policy import MaskPolicy
from ..protocol.events import EndOfCall, Message
from .payloads import Room

#: More lines, or more tools, are not shown: nobody reads them, and a page of them takes seconds.
MOST_SHOWN = 2_000
_NAME_CHARS = 200

Kind = Literal["user", "assistant", "tool", "other"]
_KINDS: Mapping[str, Kind] = {"user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Function:
    """A tool the agent called, with what it was asked and what it gave."""

    name: str
    params: JsonValue
    result: JsonValue


@dataclass(frozen=True, slots=True)
class Line:
    """One bubble, or one tool call. `first` and `last` bound what one speaker said in a row."""

    kind: Kind
    role: str
    text: str = ""
    tool: Function | None = None
    first: bool = True
    last: bool = True


@dataclass(frozen=True, slots=True)
class Transcript:
    """The first lines of what was said, as far as they may be seen; `left_out` counts the others.

    `has_tools` says that tools were called in it, be that among the lines left out.
    """

    lines: tuple[Line, ...] = ()
    left_out: int = 0
    has_tools: bool = False


def transcript_of(event: EndOfCall, mask: MaskPolicy) -> Transcript:
    """Return what was said in a call."""
    lines = tuple(_lines(event))
    room = Room()
    return Transcript(
        tuple(_masked(line, mask, room) for line in grouped(lines[:MOST_SHOWN])),
        max(len(lines) - MOST_SHOWN, 0),
        any(line.kind == "tool" for line in lines),
    )


def functions_of(event: EndOfCall, mask: MaskPolicy) -> tuple[Function, ...]:
    """Return the first of the tools that were called, in order; Millis sends no times for them."""
    room = Room()
    return tuple(
        _seen(Function(call.name or "function", dict(call.params), call.result), mask, room)
        for call in event.function_calls[:MOST_SHOWN]
    )


def grouped(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield the lines, knowing which of them begin and end what one speaker says in a row."""
    speakers = [None, *((line.kind, line.role) for line in lines), None]
    for line, before, own, after in zip(lines, speakers, speakers[1:], speakers[2:], strict=False):
        yield replace(line, first=before != own, last=own != after)


def _lines(event: EndOfCall) -> Iterator[Line]:
    results: dict[str | None, str | None] = {
        message.tool_call_id: message.content
        for message in event.chat
        if message.role == "tool" and message.tool_call_id
    }
    called = {call.id for message in event.chat for call in message.tool_calls}
    for message in event.chat:
        if message.role != "tool":
            yield from _said(message, results)
        elif message.tool_call_id not in called:
            yield Line("tool", "tool", tool=Function("result", None, message.content))


def _said(message: Message, results: Mapping[str | None, str | None]) -> Iterator[Line]:
    role = message.role or "unknown"
    if message.content:
        yield Line(_KINDS.get(role, "other"), role, message.content)
    for call in message.tool_calls:
        tool = Function(call.name or "tool", call.arguments, results.get(call.id))
        yield Line("tool", role, tool=tool)


def _masked(line: Line, mask: MaskPolicy, room: Room) -> Line:
    if line.tool is not None:
        return replace(line, tool=_seen(line.tool, mask, room))
    text = room.beginning(line.text)
    assert isinstance(text, str)  # noqa: S101 - the beginning of a text is one
    return replace(line, text=mask.text(text))


def _seen(tool: Function, mask: MaskPolicy, room: Room) -> Function:
    shown = (room.beginning(each) for each in (tool.params, tool.result))
    params, result = (mask.payload(each, Place.WORDS) for each in shown)
    return Function(tool.name[:_NAME_CHARS], params, result)
