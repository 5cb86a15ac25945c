"""What a call's page hands on: a summary in Markdown, and a draft of its rehearsal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import tzinfo
from itertools import islice

from pydantic import JsonValue

from ..call_log.queries.records import Call, Run
from ..masking.policy import HIDDEN
from .formats import as_text, at, clock, contact, status_label
from .payloads import Entry
from .runs import cause_of, failure_of, read_traceback
from .transcript import Conversation

#: Failed handlers of a summary, and characters of one traceback.
_MOST_RUNS = 10
_MOST_TRACE_CHARS = 4_000
#: Rows of metadata of a draft, and characters of one text and of all: it is an address.
_MOST_ROWS = 20
_MOST_TEXT_CHARS = 1_000
_MOST_CHARS = 4_000

_WAYS = {"web": "web-sdk", "chat": "websocket"}
_MARKS = re.compile(r"[\\`*_\[\]<>#|~!&]")


def markdown_of(call: Call, agent: str, failed: Sequence[Run], address: str, zone: tzinfo) -> str:
    """Return who called, when, how it ended and what failed, with the team's own frames."""
    title = contact(call) + (f" with {agent}" if agent else "")
    when = at(call.started_at or call.received_at, "%b %d %Y, %H:%M:%S", zone)
    facts = [f"{when} {zone}", clock(call.duration_s), status_label(call.call_status)]
    lines = [f"**{_escaped(title)}**", _escaped(" · ".join(filter(None, facts)))]
    lines += [f"Session {_code(call.session_id)}", f"<{address}>"]
    if call.error_message:
        lines.append(f"Millis reported: {_escaped(call.error_message)}")
    for run in failed[:_MOST_RUNS]:
        lines += ["", f"**{_code(run.handler)} {failure_of(run)}**", *_block(_trace(run))]
    return "\n".join(lines)


def _trace(run: Run) -> str:
    last = run.attempts[-1] if run.attempts else None
    trace = read_traceback(last.traceback) if last and last.traceback else None
    own = [frame.text for frame in trace.own_frames] if trace else []
    return "\n".join([cause_of(run), *own])[:_MOST_TRACE_CHARS]


def _block(text: str) -> Iterator[str]:
    """Yield the text as a block of code, in a fence that it cannot end."""
    fence = "`" * max(3, _longest_fence(text) + 1)
    yield from (fence, text, fence)


def _code(text: str) -> str:
    fence = "`" * (_longest_fence(text) + 1)
    blank = " " if "`" in text else ""
    return f"{fence}{blank}{' '.join(text.split())}{blank}{fence}"


def _longest_fence(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _escaped(text: str) -> str:
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))


def rehearsal_of(
    call: Call, metadata: Sequence[Entry], conversation: Conversation
) -> Mapping[str, str]:
    """Return the fields of a sandbox draft that begins as the call did; what is hidden is empty."""
    inbound = "outbound" if call.direction == "outbound" else "inbound"
    config = conversation.agent_config if isinstance(conversation.agent_config, dict) else {}
    fields = {
        "way": _WAYS.get(call.channel or "", inbound),
        "agent": call.agent_id or "",
        "from_phone": call.from_phone or "",
        "to_phone": call.to_phone or "",
        "prompt": config.get("prompt"),
        "first": config.get("first_message"),
    }
    draft = {
        name: _short(value) if isinstance(value, str) else "" for name, value in fields.items()
    }
    room = _MOST_CHARS
    for number, (key, value) in enumerate(islice(_began_with(metadata), _MOST_ROWS), 1):
        text = _short(as_text(value))
        room -= len(key) + len(text)
        if room < 0:
            break
        draft |= {f"key{number}": key, f"value{number}": text}
        draft |= {} if isinstance(value, str) else {f"json{number}": "1"}
    return draft


def _began_with(metadata: Sequence[Entry]) -> Iterator[tuple[str, JsonValue]]:
    """Yield the metadata that the call began with, as far as it is known."""
    for entry in metadata:
        if entry.change in ("changed", "gone"):
            yield entry.key, entry.before
        elif entry.change is None:
            yield entry.key, entry.value


def _short(text: str) -> str:
    """Return the text; nothing of one that is hidden in part, or too long for an address."""
    is_hidden = HIDDEN in text or "••" in text
    return "" if is_hidden or len(text) > _MOST_TEXT_CHARS else text
