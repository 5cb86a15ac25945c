"""Requests as Millis sends them: prefetches, ends-of-call and functions.

Source of prefetch and end-of-call: docs.millis.ai, core-concepts/webhooks. Of functions: `Function`
in Millis' OpenAPI file and its tutorials. The policy decides what is not documented.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode

from ..exceptions import PayloadError
from ..protocol.reading import Json, describe, finite, read_json
from ..protocol.samples import CallContent, Vintage, prefetch_query
from ..protocol.typed_metadata import as_text
from ..webhooks import Marker
from .policy import Policy
from .scenario import SessionSpec
from .steps import Answered, Sent
from .texts import Filling
from .transport import Answer, Request, Transport, TransportError, Webhook, webhook_of_tool

#: Names in the query of a prefetch that are Millis' own.
RESERVED = frozenset({"session_id", "agent_id", "from", "to"})

#: Dollars a minute. Source: millis.ai/pricing; the model's share is a guess.
PER_MINUTE = {("millis", "millis"): 0.02, ("stt", "deepgram"): 0.0043, ("llm", "openai"): 0.003}
#: Dollars a thousand characters spoken; a guess.
TTS_PER_1000_CHARS = 0.03

JSON_TYPE = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request with its answer, or with the reason why there is none."""

    sent: Sent | None = None
    answer: Answer | None = None
    failure: str | None = None
    took_ms: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def refusal(self) -> str | None:
        """Why the request was not accepted: no answer, or a status other than 2xx."""
        if self.failure is not None or self.answer is None or self.answer.is_success:
            return self.failure
        return f"answered with status {self.answer.status_code}"

    def fields(self, failure: str | None) -> dict[str, Any]:
        """Return the fields of an `HttpStep`."""
        return {
            "sent": self.sent,
            "answered": None if self.answer is None else Answered.of(self.answer),
            "took_ms": round(self.took_ms, 3),
            "failure": failure,
            "notes": self.notes,
        }


class WebhookClient:
    """Sends the requests of one session, and measures them."""

    def __init__(self, transport: Transport, session_id: str, mark: Marker | None) -> None:
        """`mark` makes the header that tells a receiver that the call is simulated."""
        self._transport = transport
        self._session_id = session_id
        self._mark = mark

    async def call_webhook(self, request: Request, *, timeout_s: float) -> Exchange:
        """Send a request to a webhook, with the mark."""
        if self._mark is not None:
            mark = self._mark(self._session_id, request.url, request.headers)
            request = replace(request, headers=(*request.headers, *mark.items()))
        return await self.send(request, timeout_s=timeout_s)

    async def send(self, request: Request, *, timeout_s: float) -> Exchange:
        """Send a request that carries no mark."""
        answer, failure = None, None
        began_s = time.perf_counter()
        try:
            answer = await self._transport.send(request, timeout_s=timeout_s)
        except TransportError as error:
            failure = str(error)
        took_ms = (time.perf_counter() - began_s) * 1000
        return Exchange(Sent.of(request), answer, failure, took_ms)


def prefetch_request(spec: SessionSpec, webhook: Webhook, session_id: str) -> Request:
    """Return the prefetch request of a call."""
    query = prefetch_query(
        spec.vintage,
        session_id=session_id,
        agent_id=spec.agent_id,
        from_phone=spec.from_phone,
        to_phone=spec.to_phone,
        metadata={key: as_text(value) for key, value in spec.metadata.items()},
    )
    return Request("GET", webhook.url, webhook.headers, query.encode())


def notes_on_prefetch(spec: SessionSpec) -> tuple[str, ...]:
    """Return what Millis does not document about sending the metadata of this call."""
    notes = [
        f"Metadata named {key!r} meets a field of Millis' own; which of the two counts is not "
        "documented."
        for key in spec.metadata
        if key in RESERVED
    ]
    nested = [key for key, value in spec.metadata.items() if not isinstance(value, str)]
    if nested:
        notes.append(f"Sent as JSON, because Millis does not say how: {', '.join(nested)}.")
    return tuple(notes)


@dataclass(frozen=True, slots=True)
class PrefetchAnswer:
    """What a call gets from its prefetch; nothing where there is a `failure`."""

    metadata: dict[str, Json] = field(default_factory=dict)
    extra_prompt: str | None = None
    failure: str | None = None
    notes: tuple[str, ...] = ()


def read_prefetch_answer(answer: Answer, policy: Policy) -> PrefetchAnswer:
    """Read the answer to a prefetch as Millis does."""
    if answer.status_code != 200:
        return PrefetchAnswer(failure=f"answered with status {answer.status_code}")
    try:
        value = read_json(answer.body)
    except PayloadError as error:
        return PrefetchAnswer(failure=f"no JSON: {error}")
    if not isinstance(value, dict):
        return PrefetchAnswer(failure=f"not a JSON object but {describe(value)}")
    read = _read_object(value, policy)
    if "application/json" in (answer.content_type or ""):
        return read
    note = "The content type is not application/json, which Millis asks for."
    return replace(read, notes=(note, *read.notes))


def _read_object(value: Mapping[str, Json], policy: Policy) -> PrefetchAnswer:
    notes: list[str] = []
    metadata: dict[str, Json] = {}
    flat = {key: item for key, item in value.items() if key not in {"metadata", "extra_prompt"}}
    if flat:
        notes.append(f"Flat keys, the form of 2024, are {policy.flat_keys}: {', '.join(flat)}.")
        metadata |= flat if policy.flat_keys == "merged" else {}
    answered = value.get("metadata")
    if isinstance(answered, dict):
        metadata |= answered
    elif answered is not None:
        notes.append(f"metadata is not an object but {describe(answered)}, and is left out.")
    extra_prompt = value.get("extra_prompt")
    if extra_prompt is not None and not isinstance(extra_prompt, str):
        notes.append(f"extra_prompt is not text but {describe(extra_prompt)}, and is left out.")
        extra_prompt = None
    return PrefetchAnswer(metadata, extra_prompt or None, notes=tuple(notes))


def function_request(
    tool: Mapping[str, Any],
    params: Mapping[str, Json],
    *,
    metadata: Mapping[str, Json],
    filling: Filling,
    policy: Policy,
) -> Request | None:
    """Return the request that calls a function; None if it has no webhook.

    Without a method it is GET with the parameters in the query, beside what the address has of
    one; a POST carries them as JSON.
    """
    webhook = webhook_of_tool(tool)
    if webhook is None:
        return None
    url, headers = filling.fill_webhook(webhook, "webhook")
    fields = _with_metadata(tool, params, metadata, policy)
    method = tool.get("method")
    method = method.upper() if isinstance(method, str) and method else policy.tool_method
    if method in {"GET", "DELETE", "HEAD"}:
        texts = {key: as_text(value) for key, value in fields.items()}
        query = urlencode(texts, quote_via=quote, errors="replace")
        return Request(method, url, headers, query.encode())
    if not any(name.lower() == "content-type" for name, _ in headers):
        headers = (*headers, JSON_TYPE)
    return Request(method, url, headers, body=json.dumps(fields).encode())


def function_timeout_s(tool: Mapping[str, Any], policy: Policy) -> float:
    """Return how many seconds the function may take."""
    timeout_s = finite(tool.get("timeout"))
    return timeout_s if timeout_s and timeout_s > 0 else policy.tool_timeout_s


def _with_metadata(
    tool: Mapping[str, Any],
    params: Mapping[str, Json],
    metadata: Mapping[str, Json],
    policy: Policy,
) -> dict[str, Json]:
    """Add the metadata, if the function gets it; a parameter of the same name wins."""
    included = tool.get("include_metadata")
    gets_metadata = {
        "always": True,
        "unless-excluded": included is not False,
        "if-included": included is True,
        "never": False,
    }
    if not gets_metadata[policy.tool_metadata]:
        return dict(params)
    if policy.tool_metadata_as == "object":
        return {"metadata": dict(metadata), **params}
    return {**metadata, **params}


def call_content(
    spec: SessionSpec,
    vintage: Vintage,
    *,
    session_id: str,
    messages: Sequence[Mapping[str, Any]],
    function_calls: Sequence[Mapping[str, Json]],
    duration_s: float,
    error_message: str | None,
) -> CallContent:
    """Return the content of a call's end-of-call, with made-up costs and recording."""
    spoken = [m["content"] for m in messages if m["role"] == "assistant"]
    chars = sum(map(len, spoken))
    return CallContent(
        chat=_chat(spec, vintage, messages),
        function_calls=function_calls,
        agent_config=spec.agent_config,
        cost_breakdown=_costs(duration_s, chars),
        chars_used=chars,
        recording_url=_recording_url(spec, session_id),
        error_message=error_message,
        extra_fields=spec.extra_fields,
    )


def _chat(
    spec: SessionSpec, vintage: Vintage, messages: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    earlier = spec.earlier if spec.policy.earlier_turns_in_chat else ()
    chat = [*earlier, *messages]
    if vintage in {"v1a", "v1b"} or spec.policy.tool_turns_in_chat:
        return chat
    return [m for m in chat if m.get("role") != "tool" and "tool_calls" not in m]


def _recording_url(spec: SessionSpec, session_id: str) -> str | None:
    settings = spec.agent_config.get("call_settings")
    if not (isinstance(settings, dict) and settings.get("enable_recording") is True):
        return None
    return f"https://recordings.example/{session_id}.wav"


def _costs(duration_s: float, chars: int) -> list[dict[str, Json]]:
    costs = {key: duration_s / 60 * price for key, price in PER_MINUTE.items()}
    costs["tts", "elevenlabs"] = chars / 1000 * TTS_PER_1000_CHARS
    return [
        {"type": type_, "provider": provider, "credit": round(credit, 6)}
        for (type_, provider), credit in costs.items()
    ]
