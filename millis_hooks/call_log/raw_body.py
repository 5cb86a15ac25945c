"""The column type of bodies: stored as received, or compressed.

New bodies are stored as they come, since compressing takes longer than writing and senders wait;
`upkeep/file.py` compresses old ones. `RawBytes` reads both alike.

The compression begins with a dictionary of what stands in most end-of-calls and tells nothing of a
person: the names of fields, and usual words. That saves a third, since bodies are short.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Integer,
    LargeBinary,
    String,
    TypeDecorator,
    case,
    func,
    literal,
    type_coerce,
)
from sqlalchemy import cast as sql_cast

from .dialects import Either

#: No JSON begins like this. What follows is the body's length in ten digits, and its zlib stream.
MARK = b"\0zlib"
_DIGITS = 10
_HEAD_BYTES = len(MARK) + _DIGITS
_LEVEL = 6

#: A dictionary of zlib: the likeliest stand last. It must never change, because what was packed
#: with it can only be unpacked with it.
_WORDS = (
    "because something anything everything nothing information number address email phone account "
    "order service problem question customer agent office business company available booking "
    "schedule morning afternoon evening Monday Tuesday Wednesday Thursday Friday Saturday Sunday "
    "yesterday tomorrow week month year hour minutes one two three four five six seven eight nine "
    "ten hundred Good morning, Good afternoon, Hello, this is Hi, my name is speaking. Thank you "
    "for calling. How can I help you today? I would like to make an appointment. I am calling "
    "about Could you please tell me what is your I'm sorry, I don't I didn't you're it's that's "
    "we're I'll Let me check that for you. One moment, please. Is there anything else I can help "
    "you with? No, thank you. That would be great. Yes, please. Okay, perfect. Of course. All "
    "right. Have a great day! Goodbye. Bye. You are a helpful assistant answering the phone. Do "
    "not ask for the caller's name when the caller asks. Use this to "
)
_PARAM = {"name": "", "type": "string", "description": "", "required": True}
_TOOL: Mapping[str, Any] = {
    "name": "",
    "description": "",
    "params": [_PARAM, _PARAM | {"required": False}],
    "webhook": "https://",
    "header": {},
    "method": "POST",
    "timeout": None,
    "messages": [],
    "response_mode": "strict",
}
_CONFIG: Mapping[str, Any] = {
    "prompt": "",
    "voice": {"provider": "elevenlabs", "voice_id": "", "model": "", "settings": {}},
    "language": "en-US",
    "llm": {"model": "gpt-4o-mini", "temperature": 0.2, "history_settings": {}},
    "first_message": "",
    "flow": None,
    "vad_threshold": None,
    "custom_llm_websocket": None,
    "session_timeout": {"max_duration": 3600, "max_idle": 60, "message": ""},
    "session_data_webhook": {"url": "https://", "headers": {}},
    "extra_prompt_webhook": None,
    "privacy_settings": {"opt_out_data_collection": False, "do_not_call_detection": True},
    "custom_vocabulary": {"keywords": {}},
    "switch_language": {"languages": []},
    "knowledge_base": {"files": [], "messages": None},
    "speech_to_text": {"provider": "deepgram", "multilingual": False, "model": ""},
    "call_settings": {"enable_recording": True},
    "memory": {"user_identifier_key": ""},
    "timezone": "America/New_York",
    "millis_functions": [],
    "app_functions": [{"name": "", "credentials": {}}],
    "tools": [_TOOL],
}
_MESSAGES = [
    {"role": "assistant", "content": "", "tool_calls": [{"name": "", "arguments": "{}"}]},
    {"role": "tool", "content": "", "tool_call_id": ""},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": ""},
]
_END = {
    "function_calls": [{"name": "", "params": {"session_id": "-O"}, "result": ""}],
    "ts": 1760000000.0,
    "duration": 60,
    "chars_used": 400,
    "agent_config": _CONFIG,
    "cost_breakdown": [
        {"type": "millis", "provider": "millis", "credit": 0.01},
        {"type": "stt", "provider": "deepgram", "credit": 0.0043},
        {"type": "tts", "provider": "openai", "credit": 0.0},
        {"type": "tts", "provider": "elevenlabs", "credit": 0.02},
        {"type": "llm", "provider": "openai", "credit": 0.0, "prompt_tokens": 1000,
         "completion_tokens": 100},
    ],
    "voip": {"provider": "twilio", "from": "+1", "to": "+1"},
    "recording": {"recording_url": "https://"},
    "call_analysis": {"opt_out_detection": False, "summary": ""},
    "call_metrics": {"utterance_latency": {"avg": 0, "p95": 0}},
    "call_status": "agent-ended",
    "error_message": None,
}  # fmt: skip


def _written(separators: tuple[str, str]) -> str:
    """Write an end-of-call without blanks, or with them; its transcript is JSON within JSON."""
    begin = {"session_id": "-O", "agent_id": "-O", "metadata": {}, "call_id": "-O"}
    chat = {"chat": json.dumps(_MESSAGES, separators=separators)}
    return json.dumps(begin | chat | _END, separators=separators)


_DICTIONARY = (
    _WORDS
    + _written((",", ":"))
    + _written((", ", ": "))
    + '"call_status": "user-ended", "error_message": null}'
).encode()


class RawBytes(TypeDecorator[bytes]):
    """Bytes that may be packed."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        return None if value is None else storable(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> bytes | None:
        return None if value is None else unpack(value)


def storable(body: bytes) -> bytes:
    """Return the body as it can be stored: packed only if it would be taken for a packed one."""
    return _packed(body) if body.startswith(MARK) else body


def pack(body: bytes) -> bytes | None:
    """Return the body as it is stored in less room; None if there is no less."""
    packed = _packed(body)
    return packed if len(packed) < len(body) else None


def unpack(stored: bytes) -> bytes:
    """Return the body as it was received."""
    if not stored.startswith(MARK):
        return stored
    with suppress(ValueError, zlib.error):
        length = int(stored[len(MARK) : _HEAD_BYTES])
        return zlib.decompressobj(zdict=_DICTIONARY).decompress(stored[_HEAD_BYTES:], length)
    return stored  # of before there were packed ones


def is_packed(column: ColumnElement[bytes]) -> ColumnElement[bool]:
    """Say of a column of `RawBytes` that it is packed."""
    return func.substr(_as_stored(column), 1, len(MARK)) == literal(MARK, LargeBinary)


def length_of(column: ColumnElement[bytes]) -> ColumnElement[int]:
    """Return the length of what was received, without reading all of it."""
    stored = _as_stored(column)
    digits = func.substr(stored, len(MARK) + 1, _DIGITS)
    as_text = Either(sqlite=sql_cast(digits, String), postgresql=func.encode(digits, "escape"))
    told = sql_cast(as_text, Integer)
    return case((is_packed(column), told), else_=func.length(stored))


def _as_stored(column: ColumnElement[bytes]) -> ColumnElement[bytes]:
    return type_coerce(column, LargeBinary)


def _packed(body: bytes) -> bytes:
    stream = zlib.compressobj(_LEVEL, zdict=_DICTIONARY)
    return b"%b%010d%b" % (MARK, len(body), stream.compress(body) + stream.flush())
