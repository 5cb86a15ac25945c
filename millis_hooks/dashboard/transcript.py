"""The conversation of a call: its messages, with tool calls where they were made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from ..masking.places import END_OF_CALL, PREFETCH_QUERY, Place
from ..masking.policy import MaskPolicy
from ..protocol.events import EndOfCall, Message
from .formats import as_text
from .payloads import Payload, Room

#: Lines or tool calls that a page shows: a browser takes seconds for more.
MOST_LINES = 2_000
_MOST_NAME_CHARS = 200

Kind = Literal["user", "assistant", "tool", "other"]
_KINDS: Mapping[str, Kind] = {"user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Function:
    """A tool call of the agent, with its parameters and its result as Millis has them.

    `ours` is the request that this application answered, if it was one of its functions.
    """

    name: str
    params: JsonValue
    result: JsonValue
    ours: Payload | None = None


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
    left out, is a tool call. `ours_alone` are requests that we answered and Millis does not tell
    of, or not yet. `secrets_masked` counts those in `agent_config`.
    """

    lines: tuple[Line, ...] = ()
    lines_left_out: int = 0
    functions: tuple[Function, ...] = ()
    functions_left_out: int = 0
    ours_alone: tuple[Function, ...] = ()
    has_tools_in_place: bool = False
    average_latency_ms: float | None = None
    agent_config: JsonValue = None
    secrets_masked: int = 0
    problems: tuple[str, ...] = ()

    @property
    def all_functions(self) -> tuple[Function, ...]:
        """The tool calls that Millis tells of, and then those that only we know."""
        return self.functions + self.ours_alone

    @property
    def apart(self) -> tuple[Function, ...]:
        """The tool calls that stand in no line."""
        return self.ours_alone if self.has_tools_in_place else self.all_functions


def conversation_of(
    event: EndOfCall | None, payloads: Sequence[Payload], mask: MaskPolicy
) -> Conversation:
    """Return the conversation of a call, with the requests for functions among its deliveries.

    Millis sends no times for its tool calls, and nothing at all until the call has ended.
    """
    in_lines, in_order = _Answered(payloads), _Answered(payloads)
    if event is None:
        return Conversation(ours_alone=tuple(in_order.rest()))
    lines, room = tuple(_lines(event)), Room()
    shown = tuple(_masked(line, mask, room, in_lines) for line in lines[:MOST_LINES])
    has_tools_in_place = any(line.kind == "tool" for line in lines)
    functions = tuple(_functions(event, mask, in_order))
    config = mask.masked(Room().beginning(event.agent_config), END_OF_CALL["agent_config"])
    return Conversation(
        lines=shown,
        lines_left_out=max(len(lines) - MOST_LINES, 0),
        functions=functions,
        functions_left_out=max(len(event.function_calls) - MOST_LINES, 0),
        ours_alone=tuple((in_lines if has_tools_in_place else in_order).rest()),
        has_tools_in_place=has_tools_in_place,
        average_latency_ms=event.average_latency_ms,
        agent_config=config.value,
        secrets_masked=config.count,
        problems=tuple(map(str, event.problems)),
    )


class _Answered:
    """The requests for functions that we answered; each belongs to one tool call."""

    def __init__(self, payloads: Iterable[Payload]) -> None:
        self._left = [each for each in payloads if each.delivery.kind == "function"]

    def take(self, name: str, params: JsonValue) -> Payload | None:
        """Return the first of this name that had these parameters, else the first of this name."""
        named = [each for each in self._left if each.delivery.function == name]
        found = next((each for each in named if _fits(each, params)), next(iter(named), None))
        if found is not None:
            self._left.remove(found)
        return found

    def rest(self) -> Iterator[Function]:
        """Yield those that belong to none."""
        for each in self._left:
            yield Function(each.delivery.function or "function", each.content, None, each)


def _fits(payload: Payload, params: JsonValue) -> bool:
    sent = payload.content
    if not isinstance(sent, dict) or not isinstance(params, dict):
        return False
    return all(as_text(sent.get(name)) == as_text(value) for name, value in params.items())


def _functions(event: EndOfCall, mask: MaskPolicy, answered: _Answered) -> Iterator[Function]:
    room = Room()
    for call in event.function_calls[:MOST_LINES]:
        name = call.name or "function"
        yield _masked_function(name, dict(call.params), call.result, mask, room, answered)


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


def _masked(line: Line, mask: MaskPolicy, room: Room, answered: _Answered) -> Line:
    if line.tool is not None:
        tool = line.tool
        masked = _masked_function(tool.name, tool.params, tool.result, mask, room, answered)
        return replace(line, tool=masked)
    return Line(line.kind, line.role, mask.text(room.text(line.text)))


def _masked_function(
    name: str,
    params: JsonValue,
    result: JsonValue,
    mask: MaskPolicy,
    room: Room,
    answered: _Answered,
) -> Function:
    # As our request is masked, so that the two can be compared.
    given = mask.payload(room.beginning(params), PREFETCH_QUERY)
    gave = mask.payload(room.beginning(result), Place.WORDS)
    return Function(name[:_MOST_NAME_CHARS], given, gave, answered.take(name, given))
