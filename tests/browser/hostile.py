"""Hostile calls, as they arrive at the two webhooks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from millis_hooks.protocol.samples import end_of_call_body

#: Shows itself in `window.ran`, in an alert, in a request to elsewhere or in an element of its own.
MARKUP = (
    "<script>window.ran=1</script><img src=//foreign.example/x onerror=window.ran=1>"
    "\"'><svg/onload=alert(1)><style>body{display:none}</style>"
    "<a href='javascript:window.ran=1'>here</a>{{ 7 * 7 }}<!--"
)
#: Opens what it never closes: everything behind it would run from right to left.
BACKWARDS = "\u202e\u05e9\u05dc\u05d5\u05dd \u2067 \u0645\u0631\u062d\u0628\u0627"
BROKEN = "half a pair \ud83d, a NUL \x00, \x1b[2J, \ufffe and a\u2028line"
JAVASCRIPT = "javascript:window.ran=1//https://files.example/a.wav"
UNBROKEN = "w" * 10_000


@dataclass(frozen=True)
class Sent:
    """What came of one call: the query of its prefetch, if there was one, and the end's body."""

    query: str | None
    body: bytes | None


def calls() -> Iterator[Sent]:
    """Return every kind of call; the last is still going on."""
    for text in (MARKUP, BACKWARDS, BROKEN, JAVASCRIPT, UNBROKEN):
        yield _filled_with(text)
    for session_id in _AWKWARD_IDS:
        yield Sent(_query(session_id), end_of_call_body("v2-extras", session_id=session_id))
    yield Sent(_query("-hostile"), end_of_call_body("hostile", session_id="-hostile"))
    yield _ended("-numbers", **_NUMBERS)
    yield _ended("-deep", metadata={"deep": _nested(400)}, agent_config={"deep": _nested(400)})
    yield Sent(None, b'{"session_id": "-bottomless", "metadata": ' + b'{"a":' * 100_000)
    yield Sent(None, b"{broken " + MARKUP.encode())
    yield Sent(None, b"\xff\xfe\x00" + MARKUP.encode("utf-16"))
    yield Sent(None, end_of_call_body("v1a", session_id="-plain"))
    yield Sent(_query("-going-on"), None)


_AWKWARD_IDS = ("a/../b", "calls.json", "?q=#x%2f%00", " ", "é" * 255, "<b>", "-", "~")

_NUMBERS: dict[str, Any] = {
    "duration": 1e308,
    "chars_used": 2**63 - 1,
    "ts": 4102444799,
    "cost_breakdown": [
        {"type": MARKUP, "provider": MARKUP, "credit": 1e300, "prompt_tokens": 2**62},
        {"type": "llm", "provider": UNBROKEN, "credit": -1e-300, "completion_tokens": 2**62},
        {"type": "tts", "provider": "elevenlabs", "credit": 0.1},
    ],
    "metadata": {"large": 10**300, "small": 5e-324, "list": list(range(2000))},
    "call_metrics": {"utterance_latency": {"avg": 1e308}},
}


def _filled_with(text: str) -> Sent:
    """A call that has this text wherever text can be."""
    session_id = text[:240]
    tool = {"id": text, "type": text, "function": {"name": text, "arguments": json.dumps([text])}}
    body = {
        "agent_id": text[:240],
        "call_id": text,
        "chat": [
            {"role": "user", "content": text},
            {"role": text, "content": text},
            {"role": "assistant", "content": text, "tool_calls": [tool]},
            {"role": "tool", "content": text, "tool_call_id": text},
        ],
        "function_calls": [{"name": text, "params": {text: text}, "result": text}],
        "metadata": {text: text, "nested": {text: [text]}},
        "agent_config": {text: text, "api_key": text},
        "cost_breakdown": [{"type": text, "provider": text, "credit": 0.5}],
        "voip": {"provider": text, "from": text, "to": text},
        "recording": {"recording_url": text},
        "call_status": text,
        "error_message": text,
        text: text,
    }
    return _ended(session_id, **body)


def _ended(session_id: str, **sent: Any) -> Sent:
    ordinary = json.loads(end_of_call_body("v2-extras", session_id=session_id))
    return Sent(_query(session_id), json.dumps(ordinary | sent).encode())


def _query(session_id: str) -> str:
    fields = {"session_id": session_id, "agent_id": "-agent", "note": MARKUP, MARKUP: session_id}
    # A request line has its limits; the end-of-calls bring what is longer.
    return urlencode({key: value[:500] for key, value in fields.items()}, errors="replace")


def _nested(depth: int) -> Any:
    value: Any = MARKUP
    for _ in range(depth):
        value = {"in": [value]}
    return value
