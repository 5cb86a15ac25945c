"""The end of a call: what its webhook and Millis' call logs tell of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..call_status import CallStatus
from ..samples import CallContent, Vintage, end_of_call_body, end_of_call_payload
from ..wire import Json
from .agent import Ending
from .spec import SessionSpec

#: Calls that never connected.
UNREACHED = frozenset(
    {CallStatus.BUSY, CallStatus.NO_ANSWER, CallStatus.CANCELED, CallStatus.FAILED}
)

#: Dollars a minute. Source: millis.ai/pricing; the model's share is a guess.
PER_MINUTE = {("millis", "millis"): 0.02, ("stt", "deepgram"): 0.0043, ("llm", "openai"): 0.003}
#: Dollars a thousand characters spoken; a guess.
TTS_PER_1000_CHARS = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedCall:
    """All that is known of a call once it is over."""

    spec: SessionSpec
    session_id: str
    call_id: str
    metadata: Mapping[str, Json]
    ending: Ending
    started_at: datetime
    duration_s: float
    messages: Sequence[Mapping[str, Any]]
    function_calls: Sequence[Mapping[str, Json]]

    def body(self) -> bytes:
        """Return the body of its end-of-call."""
        return end_of_call_body(self.spec.vintage, **self._told(self.spec.vintage))

    def log_entry(self) -> dict[str, Any]:
        """Return what Millis' call logs have of it, as `CallHistory` in its OpenAPI file."""
        entry = end_of_call_payload("v2", **self._told("v2"))
        del entry["error_message"]
        if self.ending.call_status in UNREACHED:
            entry |= {"chat": None, "cost_breakdown": None, "recording": None}
        return entry

    def _told(self, vintage: Vintage) -> dict[str, Any]:
        spec = self.spec
        return {
            "session_id": self.session_id,
            "agent_id": spec.agent_id,
            "call_id": self.call_id,
            "from_phone": spec.from_phone,
            "to_phone": spec.to_phone,
            "metadata": self.metadata,
            "call_status": self.ending.call_status,
            "started_at": self.started_at,
            "duration_s": self._duration,
            "content": self._content(vintage),
        }

    @property
    def _duration(self) -> int:
        return math.floor(self.duration_s + 0.5)

    def _content(self, vintage: Vintage) -> CallContent:
        said = [m for m in self.messages if m["role"] == "assistant" and m["content"]]
        chars = sum(len(message["content"]) for message in said)
        return CallContent(
            chat=self._chat(vintage),
            function_calls=self.function_calls,
            agent_config=self.spec.agent_config,
            cost_breakdown=_costs(self.duration_s, chars),
            chars_used=chars,
            recording_url=self._recording_url(),
            error_message=self.ending.error_message,
            extra_fields=self.spec.extra_fields,
        )

    def _chat(self, vintage: Vintage) -> list[Mapping[str, Any]]:
        policy = self.spec.policy
        earlier = self.spec.earlier if policy.earlier_turns_in_chat else ()
        messages = [*earlier, *self.messages]
        if vintage in {"v1a", "v1b"} or policy.tool_turns_in_chat:
            return messages
        return [m for m in messages if m.get("role") != "tool" and "tool_calls" not in m]

    def _recording_url(self) -> str | None:
        settings = self.spec.agent_config.get("call_settings")
        if not (isinstance(settings, dict) and settings.get("enable_recording") is True):
            return None
        return f"https://recordings.example/{self.session_id}.wav"


def _costs(duration_s: float, chars: int) -> list[dict[str, Json]]:
    minutes = duration_s / 60
    costs = {key: minutes * price for key, price in PER_MINUTE.items()}
    costs["tts", "elevenlabs"] = chars / 1000 * TTS_PER_1000_CHARS
    return [
        {"type": type_, "provider": provider, "credit": round(credit, 6)}
        for (type_, provider), credit in costs.items()
    ]
