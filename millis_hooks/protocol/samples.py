"""Sample payloads in every vintage of Millis' format, for `millis-hooks send` and tests.

The vintages follow the history of Millis' webhook documentation (docs.millis.ai,
core-concepts/webhooks) and the payloads that public receivers handle: v1a of August 2024, v1b with
metadata, v2 of December 2024, v2-extras with undocumented fields, and hostile, with all that a
receiver has to survive.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, get_args
from urllib.parse import quote, urlencode

from .call_status import CallStatus
from .reading import Json

Vintage: TypeAlias = Literal["v1a", "v1b", "v2", "v2-extras", "hostile"]
VINTAGES: tuple[Vintage, ...] = get_args(Vintage)

AGENT_ID = "-Ox1sampleAgent00001"
CUSTOMER_PHONE = "+14155550134"
OWN_PHONE = "+14155550199"

#: In the order of ASCII, so that ids sort by time.
_ID_ALPHABET = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"

_CHAT: list[Json] = [
    {"role": "assistant", "content": "Good morning, how may I help?"},
    {"role": "user", "content": "Is there a table for two on Tuesday?"},
    {"role": "assistant", "content": "There is one at half past ten. Shall I book it?"},
    {"role": "user", "content": "Yes, please."},
]

_AGENT_CONFIG: dict[str, Json] = {
    "prompt": "You take bookings.",
    "voice": {"provider": "openai", "voice_id": "alloy"},
    "language": "en-US",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContent:
    """What happened in a call of one's own, for its end-of-call to tell instead of the sample's."""

    chat: Sequence[Mapping[str, Json]] = ()
    #: Each with `name`, `params` and `result`.
    function_calls: Sequence[Mapping[str, Json]] = ()
    agent_config: Mapping[str, Json] = field(default_factory=dict)
    #: In dollars.
    cost_breakdown: Sequence[Mapping[str, Json]] = ()
    chars_used: int = 0
    recording_url: str | None = None
    error_message: str | None = None
    #: Fields beside the documented ones, in v2-extras only.
    extra_fields: Mapping[str, Json] = field(default_factory=dict)


def push_id(at: datetime, *, bits: Callable[[int], int] = secrets.randbits) -> str:
    """Return an id of the kind Millis gives sessions: 20 characters, the first of them a dash."""
    number = int(at.timestamp() * 1000) << 72 | bits(72)
    return "".join(_ID_ALPHABET[number >> shift & 63] for shift in range(114, -1, -6))


def prefetch_query(
    vintage: Vintage = "v2",
    *,
    session_id: str | None = None,
    agent_id: str | None = AGENT_ID,
    from_phone: str | None = CUSTOMER_PHONE,
    to_phone: str | None = OWN_PHONE,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Return the query string of a prefetch; without phone numbers it is of a web session.

    v1a has no metadata, and of a name that is Millis' own it comes second. hostile adds a second
    `from`, a key that repeats, bytes that are not UTF-8 and a `+` that was not escaped.
    """
    fields = [
        ("session_id", session_id or push_id(datetime.now(UTC))),
        ("agent_id", agent_id),
        ("from", from_phone),
        ("to", to_phone),
        *({} if vintage == "v1a" else metadata or {}).items(),
    ]
    present = [(name, value) for name, value in fields if value is not None]
    if vintage != "hostile":
        return urlencode(present, errors="replace", quote_via=quote)
    return (
        urlencode(present, safe="+", errors="replace")
        + "&from=Springfield&tag=a&tag=b&name=%ff%00&&=&{x}"
    )


class PayloadOptions(TypedDict, total=False):
    """What an end-of-call says, where it is not to be what it says by default."""

    session_id: str | None
    agent_id: str | None
    call_id: str | None
    from_phone: str | None
    to_phone: str | None
    metadata: Mapping[str, Json] | None
    call_status: str
    started_at: datetime | None
    duration_s: float
    content: CallContent | None


def end_of_call_body(vintage: Vintage = "v2", **options: Unpack[PayloadOptions]) -> bytes:
    """Return the body of an end-of-call; the options are those of `end_of_call_payload`."""
    return json.dumps(end_of_call_payload(vintage, **options)).encode()


def end_of_call_payload(
    vintage: Vintage = "v2",
    *,
    session_id: str | None = None,
    agent_id: str | None = AGENT_ID,
    call_id: str | None = None,
    from_phone: str | None = CUSTOMER_PHONE,
    to_phone: str | None = OWN_PHONE,
    metadata: Mapping[str, Json] | None = None,
    call_status: str = CallStatus.USER_ENDED,
    started_at: datetime | None = None,
    duration_s: float = 41,
    content: CallContent | None = None,
) -> dict[str, Any]:
    """Return what an end-of-call says; without phone numbers it is of a web session.

    By default the call has just ended. v1a has no metadata; it and v1b have neither `call_id` nor
    `call_status`. hostile keeps the ids and is wrong in all the rest; its body is not even strict
    JSON.
    """
    started_at = started_at or datetime.now(UTC) - timedelta(seconds=duration_s + 1)
    session_id = session_id or push_id(started_at)
    payload: dict[str, Any] = {
        "session_id": session_id,
        "agent_id": agent_id,
        "duration": duration_s,
        "chars_used": 188,
        "agent_config": _AGENT_CONFIG,
        "voip": _voip(vintage, from_phone, to_phone),
    }
    if vintage in {"v1a", "v1b"}:
        payload |= _first_format(started_at)
    else:
        payload |= _second_format(session_id, call_id, call_status, started_at)
    if vintage != "v1a":
        payload["metadata"] = dict(metadata or {})
    if vintage == "v2-extras":
        payload |= _EXTRAS if content is None else {"call_metrics": _EXTRAS["call_metrics"]}
    if content is not None:
        payload |= _fields_of(vintage, content)
    if vintage == "hostile":
        payload |= _HOSTILE
        del payload["function_calls"]
    return payload


def _voip(vintage: Vintage, from_phone: str | None, to_phone: str | None) -> dict[str, Any] | None:
    if from_phone is None and to_phone is None:
        return None
    provider = {} if vintage in {"v1a", "v1b"} else {"provider": "twilio"}
    return {**provider, "from": from_phone, "to": to_phone}


def _first_format(started_at: datetime) -> dict[str, Any]:
    timestamp = started_at.astimezone(UTC).isoformat(timespec="milliseconds")
    return {
        "chat": [*_CHAT[:2], {"role": "tool", "content": '{"free": true}'}, *_CHAT[2:]],
        "ts": timestamp.replace("+00:00", "Z"),
        "cost_breakdown": [
            {"type": "millis", "provider": "", "credit": 2},
            {"type": "tts", "provider": "elevenlabs", "credit": 5},
            {"type": "stt", "provider": "deepgram", "credit": 1},
            {"type": "llm", "provider": "openai", "credit": 1},
        ],
    }


def _second_format(
    session_id: str, call_id: str | None, call_status: str, started_at: datetime
) -> dict[str, Any]:
    return {
        "call_id": call_id or push_id(started_at),
        "chat": json.dumps(_CHAT),
        "function_calls": [
            {"name": "find_slot", "params": {"day": "tuesday", "session_id": session_id}}
        ],
        "ts": started_at.timestamp(),
        "cost_breakdown": [
            {"type": "stt", "provider": "deepgram", "credit": 0.0043},
            {"type": "tts", "provider": "elevenlabs", "credit": 0.0125},
        ],
        "recording": {"recording_url": "https://files.example/recording.wav"},
        "call_status": call_status,
        "error_message": None,
    }


def _fields_of(vintage: Vintage, content: CallContent) -> dict[str, Any]:
    """Return the fields of a call that take the place of the sample's."""
    chat = list(map(dict, content.chat))
    fields = {"agent_config": dict(content.agent_config), "chars_used": content.chars_used}
    if vintage in {"v1a", "v1b"}:
        costs = [{**item, "credit": _whole(item.get("credit"))} for item in content.cost_breakdown]
        return {**fields, "chat": chat, "cost_breakdown": costs}
    with_extras = vintage == "v2-extras"
    url = content.recording_url
    fields |= {
        "chat": json.dumps(chat),
        "function_calls": [
            {key: value for key, value in call.items() if key != "result" or with_extras}
            for call in content.function_calls
        ],
        "cost_breakdown": list(map(dict, content.cost_breakdown)),
        "recording": None if url is None else {"recording_url": url},
        "error_message": content.error_message,
    }
    if with_extras:
        fields |= {"call_analysis": {"opt_out_detection": False}, **content.extra_fields}
    return fields


def _whole(credit: Json) -> int:
    """Return dollars as the whole credits of the first format."""
    return max(round(credit * 100), 1) if isinstance(credit, int | float) else 0


_EXTRAS: dict[str, Any] = {
    "function_calls": [
        {"name": "book_slot", "params": {"slot": "10:00"}, "result": "Failed: taken"},
        {"name": "book_slot", "params": {"slot": "10:30"}, "result": "Booked 10:30"},
    ],
    "cost_breakdown": [
        {"type": "millis", "provider": "millis", "credit": 0.0137},
        {
            "type": "llm",
            "provider": "openai",
            "credit": 0.002,
            "prompt_tokens": 900,
            "completion_tokens": 60,
        },
    ],
    "call_analysis": {"opt_out_detection": False, "summary": "Books a table for two."},
    "call_metrics": {"utterance_latency": {"avg": 812.5, "p95": 1430}},
    "sentiment": "neutral",
}

#: Nulls, wrong types, unknown values, and text that terminals, pages and databases may obey.
_HOSTILE: dict[str, Any] = {
    "call_id": None,
    "chat": [
        None,
        "Hello",
        {"role": "narrator", "content": "\x1b[2J\x1b]0;title\x07 [bold]<script>alert(1)</script>"},
        {"role": "user", "content": ["not", "text"]},
        {"role": "user", "content": "half a pair \ud83d, a NUL \x00 and a \u202ebackward turn"},
        {"content": 42},
    ],
    "ts": 1e300,
    "duration": "forty",
    "chars_used": -(10**30),
    "agent_config": None,
    "cost_breakdown": [
        {"type": "tts", "credit": "0.5"},
        {"type": "llm", "credit": True},
        {"type": "millis", "credit": float("inf")},
        7,
    ],
    "recording": {"recording_url": "javascript:alert(1)"},
    "metadata": None,
    "call_status": "ABDUCTED_by-aliens",
    "error_message": {"code": 7},
    "call_analysis": "",
    "call_metrics": {"utterance_latency": {"avg": "fast"}},
}
