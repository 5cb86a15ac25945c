"""The end-of-call on its way: once, twice, late or never, and again where it was not taken.

What the parts of a session share: one call's identity, its log, and the way out.

The prefetch as Millis asks for it, and what it takes from the answer.

The end of a call: what its webhook and Millis' call logs tell of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from ..exceptions import PayloadError
from ..protocol.call_status import CallStatus
from ..protocol.reading import Json, describe, read_json
from ..protocol.samples import (
    CallContent,
    Vintage,
    end_of_call_body,
    end_of_call_payload,
    prefetch_query,
)
from ..protocol.typed_metadata import as_text
from ..webhooks import Marker
from .agent import Ending, Filling
from .call_spec import SessionSpec
from .clock import Clock
from .policy import Policy
from .steps import Answered, EndDelivered, Sent, Step, StepLog
from .transport import END_OF_CALL, Answer, Request, Transport, TransportError, Webhook, webhook_of


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that was sent, and how it was answered or why not."""

    sent: Sent | None
    answer: Answer | None
    failure: str | None
    took_ms: float

    def refusal(self) -> str | None:
        """Return why it was not taken: no answer, or a status that is none of success."""
        if self.failure is not None or self.answer is None or self.answer.is_success:
            return self.failure
        return f"answered with status {self.answer.status_code}"

    def fields(self) -> dict[str, Any]:
        """Return it as the fields that steps have of it."""
        return {
            "sent": self.sent,
            "answered": None if self.answer is None else Answered.of(self.answer),
            "took_ms": round(self.took_ms, 3),
            "failure": self.failure,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where the parts of a session do their work."""

    spec: SessionSpec
    session_id: str
    call_id: str
    transport: Transport
    clock: Clock
    log: StepLog
    #: Makes the header by which a receiver knows a request of this call as made up.
    mark: Marker | None
    began_s: float

    def add(self, step: Step) -> None:
        """Put a step into the log."""
        self.log.add(step, at_s=self.clock.elapsed_s() - self.began_s)

    def _marked(self, request: Request) -> Request:
        if self.mark is None:
            return request
        mark = self.mark(self.session_id, request.url, request.headers)
        return replace(request, headers=(*request.headers, *mark.items()))

    async def send(self, request: Request, *, timeout_s: float, marked: bool = False) -> Exchange:
        """Send a request and measure it; `marked` ones say that the call is rehearsed."""
        if marked:
            request = self._marked(request)
        sent = Sent.of(request)
        began_s = self.clock.measured_s()
        answer, failure = None, None
        try:
            answer = await self.transport.send(request, timeout_s=timeout_s)
        except TransportError as error:
            failure = str(error)
        return Exchange(sent, answer, failure, (self.clock.measured_s() - began_s) * 1000)


#: Names of the query that are Millis' own.
RESERVED = frozenset({"session_id", "agent_id", "from", "to"})


@dataclass(frozen=True, slots=True)
class Taken:
    """What a call gets from the answer to its prefetch."""

    metadata: dict[str, Json] = field(default_factory=dict)
    extra_prompt: str | None = None
    #: Why it gets nothing.
    failure: str | None = None
    notes: tuple[str, ...] = ()


def prefetch_request(spec: SessionSpec, webhook: Webhook, session_id: str) -> Request:
    """Return the request that asks about a call that is about to begin."""
    query = prefetch_query(
        spec.vintage,
        session_id=session_id,
        agent_id=spec.agent_id,
        from_phone=spec.from_phone,
        to_phone=spec.to_phone,
        metadata={key: as_text(value) for key, value in spec.metadata.items()},
    )
    return Request("GET", webhook.url, webhook.headers, query.encode())


def notes_on_request(spec: SessionSpec) -> tuple[str, ...]:
    """Return what Millis does not document about the metadata of this call."""
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


def read_answer(answer: Answer, policy: Policy) -> Taken:
    """Return what the call gets from `answer`, or why it gets nothing."""
    if answer.status_code != 200:
        return Taken(failure=f"answered with status {answer.status_code}")
    try:
        value = read_json(answer.body)
    except PayloadError as error:
        return Taken(failure=f"no JSON: {error}")
    if not isinstance(value, dict):
        return Taken(failure=f"not a JSON object but {describe(value)}")
    return _read_object(value, answer, policy)


def _read_object(value: Mapping[str, Json], answer: Answer, policy: Policy) -> Taken:
    notes: list[str] = []
    if "application/json" not in (answer.content_type or ""):
        notes.append("The content type is not application/json, which Millis asks for.")
    metadata: dict[str, Json] = {}
    flat = {key: item for key, item in value.items() if key not in {"metadata", "extra_prompt"}}
    if flat:
        notes.append(f"Flat keys, the form of 2024, are {policy.flat_keys}: {', '.join(flat)}.")
        metadata |= flat if policy.flat_keys == "merged" else {}
    given = value.get("metadata")
    if isinstance(given, dict):
        metadata |= given
    elif given is not None:
        notes.append(f"metadata is not an object but {describe(given)}, and is left out.")
    extra_prompt = value.get("extra_prompt")
    if extra_prompt is not None and not isinstance(extra_prompt, str):
        notes.append(f"extra_prompt is not text but {describe(extra_prompt)}, and is left out.")
        extra_prompt = None
    return Taken(metadata, extra_prompt or None, notes=tuple(notes))


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


_JSON = ("content-type", "application/json")
_UNREACHED = "A call that never connected: Millis most likely tells nobody."
_TWICE = "The same body once more, on purpose."


async def deliver(desk: Desk, call: EndedCall, variables: Mapping[str, object]) -> None:
    """Send the end of a call as often as its specification says; `variables` fill its address."""
    webhook = webhook_of(desk.spec.agent_config.get(END_OF_CALL))
    if webhook is None:
        _withhold(desk, "The agent has no end-of-call webhook.")
    elif desk.spec.faults.end_of_call == "never":
        _withhold(desk, "It is not sent, on purpose.")
    elif call.ending.call_status in UNREACHED and not desk.spec.policy.end_of_call_if_unreached:
        _withhold(desk, _UNREACHED)
    else:
        filling = Filling(variables, desk.spec.policy)
        await _deliver(desk, filling.webhook(webhook, END_OF_CALL), call)


def _withhold(desk: Desk, note: str) -> None:
    desk.add(EndDelivered(vintage=desk.spec.vintage, notes=(note,)))


async def _deliver(desk: Desk, webhook: Webhook, call: EndedCall) -> None:
    times, late_by_s = desk.spec.faults.end_of_call, desk.spec.policy.late_by_s
    request = Request("POST", webhook.url, (*webhook.headers, _JSON), body=call.body())
    if times == "late":
        await desk.clock.pass_time(late_by_s)
        await _insist(desk, request, f"It is {late_by_s:g} s late, on purpose.")
    else:
        await _insist(desk, request)
    if times == "twice":
        await _insist(desk, request, _TWICE)


async def _insist(desk: Desk, request: Request, *notes: str) -> None:
    """Send it until it is acknowledged, as often as the policy says."""
    policy = desk.spec.policy
    for attempt in range(1, policy.end_of_call_attempts + 1):
        if attempt > 1:
            await desk.clock.pass_time(policy.end_of_call_retry_after_s)
            notes = (f"Attempt {attempt}.",)
        exchange = await desk.send(request, timeout_s=policy.end_of_call_timeout_s, marked=True)
        failure = exchange.refusal()
        fields = exchange.fields() | {"failure": failure}
        desk.add(EndDelivered(vintage=desk.spec.vintage, notes=notes, **fields))
        if failure is None:
            return
