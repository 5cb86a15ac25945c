"""What stands where in the payloads, as far as masking has to know.

Closed by default: a field that is not named here holds words. Source: docs.millis.ai,
core-concepts/webhooks, and its OpenAPI file.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import TypeAlias


class Place(Enum):
    """What a field holds, and what of it has to be hidden."""

    KEPT = auto()  # ids, times and states, which other things hang on: stays to the letter
    OPEN = auto()  # settings and figures: only secrets
    NUMBER = auto()  # a phone number, whatever it looks like
    LINE = auto()  # a program's words: what in them has the shape of a number
    LINK = auto()  # where the recording is
    WORDS = auto()  # what a person said or wrote, and what is known of one


#: A place, or those of an object's fields. A list's items stand where the list does.
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

PREFETCH_QUERY: Mapping[str, Places] = {
    "agent_id": Place.KEPT,
    "from": Place.NUMBER,
    "session_id": Place.KEPT,
    "to": Place.NUMBER,
}

#: What a handler answers is about a person; what we answer without one is about the request.
PREFETCH_ANSWER: Mapping[str, Places] = {"error": Place.OPEN}
