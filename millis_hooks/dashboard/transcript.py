"""What was said, as bubbles grouped by speaker, with the tool calls where they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from ..events import EndOfCall, Message
from ..masking import MaskPolicy
from ..payload_places import Place

LINES_SHOWN = 2_000
_LINE_CHARS = 100_000

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


def lines_of(event: EndOfCall, mask: MaskPolicy) -> tuple[Line, ...]:
    """Return the transcript as lines, all of them, as far as they may be seen."""
    results: dict[str | None, str | None] = {
        message.tool_call_id: message.content
        for message in event.chat
        if message.role == "tool" and message.tool_call_id
    }
    called = {call.id for message in event.chat for call in message.tool_calls}
    lines: list[Line] = []
    for message in event.chat:
        if message.role != "tool":
            lines += _said(message, results, mask)
        elif message.tool_call_id not in called:
            result = mask.payload(message.content, Place.WORDS)
            lines.append(Line("tool", "tool", tool=Function("result", None, result)))
    return tuple(grouped(lines))


def functions_of(event: EndOfCall, mask: MaskPolicy) -> tuple[Function, ...]:
    """Return the tools that were called, in order; Millis sends no times for them."""
    return tuple(
        _function(call.name or "function", dict(call.params), call.result, mask)
        for call in event.function_calls
    )


def _said(
    message: Message, results: Mapping[str | None, str | None], mask: MaskPolicy
) -> Iterator[Line]:
    role = message.role or "unknown"
    if message.content:
        yield Line(_KINDS.get(role, "other"), role, mask.text(message.content[:_LINE_CHARS]))
    for call in message.tool_calls:
        tool = _function(call.name or "tool", call.arguments, results.get(call.id), mask)
        yield Line("tool", role, tool=tool)


def grouped(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield the lines, knowing which of them begin and end what one speaker says in a row."""
    speakers = [None, *((line.kind, line.role) for line in lines), None]
    for line, before, own, after in zip(lines, speakers, speakers[1:], speakers[2:], strict=False):
        yield replace(line, first=before != own, last=own != after)


def _function(name: str, params: JsonValue, result: JsonValue, mask: MaskPolicy) -> Function:
    return Function(name, mask.payload(params, Place.WORDS), mask.payload(result, Place.WORDS))
