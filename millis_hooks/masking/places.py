"""The one table of what stands where: in payloads, in rows of the call log, in sandbox steps.

Closed by default: a field that is not named here holds words. Source of the payloads' fields:
docs.millis.ai, core-concepts/webhooks, and its OpenAPI file.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import TypeAlias


class Place(Enum):
    """The kind of content that a field has, and so what is hidden of it."""

    KEPT = auto()  # ids, times and states, which other rows refer to: unchanged
    OPEN = auto()  # settings and figures: only secrets are hidden
    NUMBER = auto()  # a phone number, whatever it looks like
    LINE = auto()  # a program's message: secrets, and what has the shape of a number
    LINK = auto()  # the address of a recording
    WORDS = auto()  # what a person said or wrote, and what is known of a person
    TRACEBACK = auto()  # a traceback: where words are hidden, without its messages


#: A place, or those of an object's fields. The items of a list stand where the list does.
Places: TypeAlias = "Mapping[str, Places] | Place"

_AGENT_CONFIG: Places = {
    "call_settings": Place.OPEN,
    "language": Place.OPEN,
    "llm": Place.OPEN,
    "privacy_settings": Place.OPEN,
    "speech_to_text": Place.OPEN,
    "switch_language": Place.OPEN,
    "timezone": Place.OPEN,
    "tools": {"name": Place.OPEN},
    "vad_threshold": Place.OPEN,
    "voice": Place.OPEN,
}

END_OF_CALL: Mapping[str, Places] = {
    "agent_config": _AGENT_CONFIG,
    "agent_id": Place.KEPT,
    "call_analysis": {"opt_out_detection": Place.KEPT},
    "call_id": Place.KEPT,
    "call_metrics": Place.OPEN,
    "call_status": Place.KEPT,
    "chars_used": Place.KEPT,
    "chat": {
        "role": Place.OPEN,
        "tool_call_id": Place.KEPT,
        "tool_calls": {
            "id": Place.KEPT,
            "type": Place.OPEN,
            "function": {"name": Place.OPEN},
        },
    },
    "cost_breakdown": Place.OPEN,
    "duration": Place.KEPT,
    "error_message": Place.LINE,
    "function_calls": {"name": Place.OPEN},
    "recording": {"recording_url": Place.LINK},
    "session_id": Place.KEPT,
    "ts": Place.KEPT,
    "voip": {"provider": Place.OPEN, "from": Place.NUMBER, "to": Place.NUMBER},
}

#: The fields of a request during a call: of a prefetch, and of a function.
PREFETCH_QUERY: Mapping[str, Places] = {
    "agent_id": Place.KEPT,
    "from": Place.NUMBER,
    "session_id": Place.KEPT,
    "to": Place.NUMBER,
}

#: A handler's answer is about a person; an answer of our own is about the request.
PREFETCH_ANSWER: Mapping[str, Places] = {"error": Place.OPEN}

#: Why a delivery was answered as it was; where a handler answers it may quote what that raised.
DELIVERY_REASON: Mapping[str, Place] = {
    "prefetch": Place.WORDS,
    "function": Place.WORDS,
    "end_of_call": Place.LINE,
}

#: Columns of a call.
CALL: Mapping[str, Place] = {
    "agent_id": Place.KEPT,
    "call_id": Place.KEPT,
    "call_status": Place.KEPT,
    "channel": Place.KEPT,
    "customer_phone": Place.NUMBER,
    "direction": Place.KEPT,
    "error_message": Place.LINE,
    "from_phone": Place.NUMBER,
    "outcome": Place.KEPT,
    "prefetch_outcome": Place.KEPT,
    "provider": Place.KEPT,
    "recording_url": Place.LINK,
    "session_id": Place.KEPT,
    "snippet": Place.WORDS,
    "to_phone": Place.NUMBER,
}

#: Fields of runs and attempts: what a handler raised or gave up with may quote the call.
RUN: Mapping[str, Place] = {
    "customer_phone": Place.NUMBER,
    "error": Place.WORDS,
    "error_message": Place.WORDS,
    "reason": Place.WORDS,
    "traceback": Place.TRACEBACK,
}

#: A step of a sandbox call.
SANDBOX_STEP: Mapping[str, Places] = {
    "added": Place.LINE,
    "agent_id": Place.KEPT,
    "answered": {"status_code": Place.KEPT, "content_type": Place.OPEN},
    "at_s": Place.KEPT,
    "call_id": Place.KEPT,
    "call_status": Place.KEPT,
    "changed": Place.LINE,
    "continues": Place.KEPT,
    "duration_s": Place.KEPT,
    "entry": END_OF_CALL,
    "error_message": Place.LINE,
    "failure": Place.LINE,
    "from_phone": Place.NUMBER,
    "is_final": Place.KEPT,
    "kind": Place.KEPT,
    "name": Place.OPEN,
    "notes": Place.LINE,
    "number": Place.KEPT,
    "removed": Place.LINE,
    "role": Place.OPEN,
    "sent": {
        "method": Place.OPEN,
        "headers": {"accept": Place.KEPT, "content-type": Place.KEPT},
        "body": END_OF_CALL,
    },
    "session_id": Place.KEPT,
    "to_phone": Place.NUMBER,
    "took_ms": Place.KEPT,
    "tools": {"name": Place.OPEN},
    "unresolved": Place.LINE,
    "vintage": Place.OPEN,
    "way": Place.OPEN,
}
