"""Requests as Millis sends them in a call: prefetches, functions and end-of-calls.

Source of prefetch and end-of-call: docs.millis.ai, core-concepts/webhooks. Of functions: `Function`
in Millis' OpenAPI file and its tutorials. The policy decides what is not documented.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from ..exceptions import PayloadError
from ..masking.policy import mask_secrets
from ..masking.secret_patterns import MASK
from ..protocol.call_status import CallStatus
from ..protocol.fields import as_text
from ..protocol.reading import Json, describe, finite, read_json
from ..protocol.samples import CallContent, Vintage, end_of_call_payload, prefetch_query
from ..webhooks import Marker
from .policy import Policy
from .scenario import UNREACHED, Ending, SessionSpec
from .steps import Clock, EndDelivered, FunctionCalled, HttpStep, Prefetched, Sent
from .transport import Answer, Request, Transport, TransportError, Webhook

H = TypeVar("H", bound=HttpStep)

#: Longer results of functions are cut before the agent gets them.
MAX_RESULT_CHARS = 64_000

#: Names in the query of a prefetch that are Millis' own.
RESERVED = frozenset({"session_id", "agent_id", "from", "to"})

#: Dollars a minute. Source: millis.ai/pricing; the model's share is a guess.
PER_MINUTE = {("millis", "millis"): 0.02, ("stt", "deepgram"): 0.0043, ("llm", "openai"): 0.003}
#: Dollars a thousand characters spoken; a guess.
TTS_PER_1000_CHARS = 0.03

_JSON_TYPE = ("content-type", "application/json")
_FAULTY_ANSWERS = {
    "error": Answer(500, b'{"error":"internal server error"}', "application/json"),
    "bad-json": Answer(200, b'{"metadata": {"caller": ', "application/json"),
}
_NO_WEBHOOK = "It has no webhook, and no answer in the scenario; it is only noted."
_UNKNOWN = "The agent has no function of this name, and the scenario no answer; it is only noted."
_ANSWERED = "Not sent: the scenario has the answer."
_TWICE = "The same body once more, on purpose."


@dataclass(frozen=True, slots=True)
class PrefetchAnswer:
    """What a call gets from its prefetch; nothing where there is a `failure`."""

    metadata: dict[str, Json] = field(default_factory=dict)
    extra_prompt: str | None = None
    failure: str | None = None
    notes: tuple[str, ...] = ()


class SimulatedCall:
    """A call as Millis has it, with made-up costs and recording; it changes during the call."""

    def __init__(self, spec: SessionSpec, *, session_id: str, call_id: str) -> None:
        self.spec = spec
        self.session_id = session_id
        self.call_id = call_id
        #: With the prefetch's keys, once it is over.
        self.metadata: Mapping[str, Json] = dict(spec.metadata)
        #: What was said, as Millis' messages: `role`, `content`, and those of functions.
        self.messages: list[dict[str, Any]] = []
        #: Each with `name`, `params` and `result`.
        self.function_calls: list[Mapping[str, Json]] = []
        #: How the conversation ended.
        self.ending = Ending(CallStatus.IN_PROGRESS)
        self.started_at = datetime.now(UTC)
        self.duration_s = 0.0
        #: Whether Millis' call logs have it as ended.
        self.is_logged = False

    def payload(self, vintage: Vintage) -> dict[str, Any]:
        """Return the end-of-call."""
        spec = self.spec
        chars = sum(len(each["content"]) for each in self.messages if each["role"] == "assistant")
        return end_of_call_payload(
            vintage,
            session_id=self.session_id,
            agent_id=spec.agent_id,
            call_id=self.call_id,
            from_phone=spec.from_phone,
            to_phone=spec.to_phone,
            metadata=self.metadata,
            call_status=self.ending.call_status,
            started_at=self.started_at,
            duration_s=int(self.duration_s + 0.5),
            content=CallContent(
                chat=self._chat(vintage),
                function_calls=self.function_calls,
                agent_config=spec.agent_config,
                cost_breakdown=_costs(self.duration_s, chars),
                chars_used=chars,
                recording_url=self._recording_url(),
                error_message=self.ending.error_message,
                extra_fields=spec.extra_fields,
            ),
        )

    def log_entry(self) -> dict[str, Any]:
        """Return the entry in Millis' call logs, its `CallHistory`: little before the end."""
        entry = self.payload("v2")
        del entry["error_message"]
        if not self.is_logged:
            entry["call_status"] = CallStatus.IN_PROGRESS
            entry |= dict.fromkeys(("duration", "chars_used", "function_calls"))
        if not self.is_logged or self.ending.call_status in UNREACHED:
            entry |= dict.fromkeys(("chat", "cost_breakdown", "recording"))
        return entry

    def _chat(self, vintage: Vintage) -> list[Mapping[str, Any]]:
        policy = self.spec.policy
        chat = [*(self.spec.earlier if policy.earlier_turns_in_chat else ()), *self.messages]
        if vintage in {"v1a", "v1b"} or policy.tool_turns_in_chat:
            return chat
        return [each for each in chat if each.get("role") != "tool" and "tool_calls" not in each]

    def _recording_url(self) -> str | None:
        settings = self.spec.agent_config.get("call_settings")
        if not (isinstance(settings, dict) and settings.get("enable_recording") is True):
            return None
        return f"https://recordings.example/{self.session_id}.wav"


def _costs(duration_s: float, chars: int) -> list[dict[str, Json]]:
    costs = {key: duration_s / 60 * price for key, price in PER_MINUTE.items()}
    costs["tts", "elevenlabs"] = chars / 1000 * TTS_PER_1000_CHARS
    return [
        {"type": type_, "provider": provider, "credit": round(credit, 6)}
        for (type_, provider), credit in costs.items()
    ]


class WebhookClient:
    """Sends the requests of one call, and measures them."""

    def __init__(
        self, transport: Transport, call: SimulatedCall, clock: Clock, mark: Marker | None
    ) -> None:
        """`mark` makes the header that tells a receiver that the call is simulated."""
        self._transport = transport
        self._call = call
        self._clock = clock
        self._mark = mark

    async def prefetch(self, webhook: Webhook) -> tuple[Prefetched, PrefetchAnswer]:
        """Call the prefetch webhook, under the spec's fault, and read the answer as Millis does."""
        spec, session_id = self._call.spec, self._call.session_id
        request = self._marked(prefetch_request(spec, webhook, session_id), session_id)
        step = await self._send(Prefetched, request, timeout_s=spec.policy.prefetch_timeout_s)
        step = await self._with_fault(step)
        answer = PrefetchAnswer(failure=step.failure)
        if step.answered is not None and step.failure is None:
            answer = read_prefetch_answer(step.answered, spec.policy)
        notes = (*_notes_on_prefetch(spec), *step.notes, *answer.notes)
        return replace(step, failure=answer.failure, notes=notes), answer

    async def call_function(
        self,
        name: str,
        tool: Mapping[str, Any],
        webhook: Webhook | None,
        params: Mapping[str, Json],
    ) -> FunctionCalled:
        """Call a function by its filled-in webhook; send nothing if the scenario has the answer.

        `tool` is empty for a function that the agent does not have.
        """
        spec, kind = self._call.spec, partial(FunctionCalled, name=name, params=params)
        request = None
        if webhook is not None:
            metadata, policy = self._call.metadata, spec.policy
            request = function_request(tool, webhook, params, metadata=metadata, policy=policy)
        if (answer := spec.function_answers.get(name)) is not None:
            sent, failure = None if request is None else _sent(request), _refusal(answer)
            step = kind(sent=sent, answered=answer, failure=failure, notes=(_ANSWERED,))
        elif request is None:
            step = kind(notes=(_NO_WEBHOOK if tool else _UNKNOWN,))
        else:
            timeout_s = _positive(tool.get("timeout")) or spec.policy.tool_timeout_s
            request = self._marked(
                request, self._call.session_id if "session_id" in params else None
            )
            step = await self._send_for_success(kind, request, timeout_s=timeout_s)
        result = step.answered.text if step.answered else ""
        result = f"Failed: {step.failure}" if step.failure else result
        return replace(step, result=result[:MAX_RESULT_CHARS])

    async def end_of_call(self, webhook: Webhook) -> AsyncIterator[EndDelivered]:
        """Send the end-of-call as often, and as late, as the spec says."""
        spec, policy = self._call.spec, self._call.spec.policy
        body = json.dumps(self._call.payload(spec.vintage)).encode()
        request = Request("POST", webhook.url, (*webhook.headers, _JSON_TYPE), body=body)
        times = spec.faults.end_of_call
        first_notes: tuple[str, ...] = ()
        if times == "late":
            await self._clock.pass_time(policy.late_by_s)
            first_notes = (f"It is {policy.late_by_s:g} s late, on purpose.",)
        for notes in [first_notes, (_TWICE,)] if times == "twice" else [first_notes]:
            async for step in self._until_accepted(self._marked(request, self._call.session_id)):
                yield replace(step, notes=step.notes or notes)

    async def _until_accepted(self, request: Request) -> AsyncIterator[EndDelivered]:
        kind, policy = (
            partial(EndDelivered, vintage=self._call.spec.vintage),
            self._call.spec.policy,
        )
        for attempt in range(1, policy.end_of_call_attempts + 1):
            notes = (f"Attempt {attempt}.",) if attempt > 1 else ()
            if attempt > 1:
                await self._clock.pass_time(policy.end_of_call_retry_after_s)
            timeout_s = policy.end_of_call_timeout_s
            step = await self._send_for_success(kind, request, timeout_s=timeout_s)
            yield replace(step, notes=notes)
            if step.failure is None:
                return

    async def _send(self, kind: Callable[..., H], request: Request, *, timeout_s: float) -> H:
        answer, failure = None, None
        began_s = time.perf_counter()
        try:
            answer = await self._transport.send(request, timeout_s=timeout_s)
        except TransportError as error:
            failure = str(error)
        took_ms = round((time.perf_counter() - began_s) * 1000, 3)
        return kind(sent=_sent(request), answered=answer, took_ms=took_ms, failure=failure)

    async def _send_for_success(
        self, kind: Callable[..., H], request: Request, *, timeout_s: float
    ) -> H:
        step = await self._send(kind, request, timeout_s=timeout_s)
        return replace(step, failure=step.failure or _refusal(step.answered))

    def _marked(self, request: Request, session_id: str | None) -> Request:
        if self._mark is None:
            return request
        mark = self._mark(session_id, request.url, request.headers)
        return replace(request, headers=(*request.headers, *mark.items()))

    async def _with_fault(self, step: Prefetched) -> Prefetched:
        """Return what Millis would see of a prefetch under the spec's fault, with a note of it."""
        fault = self._call.spec.faults.prefetch
        if fault is None:
            return step
        if fault == "slow":
            return await self._slowed(step)
        if fault == "unreachable":
            notes = ("The answer was lost on purpose.",)
            return replace(step, answered=None, failure="could not be reached", notes=notes)
        notes = ("The answer was replaced on purpose.",)
        return replace(step, answered=_FAULTY_ANSWERS[fault], failure=None, notes=notes)

    async def _slowed(self, step: Prefetched) -> Prefetched:
        spec = self._call.spec
        slow_s, timeout_s = spec.faults.prefetch_slow_s, spec.policy.prefetch_timeout_s
        left_s = max(timeout_s - step.took_ms / 1000, 0.0)
        await self._clock.pass_time(min(slow_s, left_s))
        notes = (f"The answer was held back for {slow_s:g} s on purpose.",)
        if slow_s <= left_s:
            return replace(step, took_ms=step.took_ms + slow_s * 1000, notes=notes)
        late, failure = timeout_s * 1000, f"no answer within {timeout_s:g} s"
        return replace(step, answered=None, took_ms=late, failure=failure, notes=notes)


def _positive(value: Json) -> float | None:
    number = finite(value)
    return number if number and number > 0 else None


def _refusal(answer: Answer | None) -> str | None:
    if answer is None or answer.is_success:
        return None
    return f"answered with status {answer.status_code}"


def _sent(request: Request) -> Sent:
    query = request.query.decode("ascii", "replace")
    joint = ("&" if "?" in request.url else "?") if query else ""
    return Sent(
        request.method,
        _without_secrets(f"{request.url}{joint}{query}"),
        {
            name: value if name.lower() in {"content-type", "accept"} else MASK
            for name, value in request.headers
        },
        None if request.body is None else _masked_body(request.body),
    )


def _masked_body(body: bytes) -> str:
    try:
        return json.dumps(mask_secrets(read_json(body)).value)
    except PayloadError:
        return _without_secrets(body.decode("utf-8", "replace"))


def _without_secrets(text: str) -> str:
    return str(mask_secrets(text).value)


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


def _notes_on_prefetch(spec: SessionSpec) -> tuple[str, ...]:
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
    notes: list[str] = []
    if "application/json" not in (answer.content_type or ""):
        notes.append("The content type is not application/json, which Millis asks for.")
    metadata: dict[str, Json] = {}
    flat = {key: item for key, item in value.items() if key not in {"metadata", "extra_prompt"}}
    if flat:
        notes.append(f"Flat keys, the form of 2024, are {policy.flat_keys}: {', '.join(flat)}.")
        metadata |= flat if policy.flat_keys == "merged" else {}
    answered, extra_prompt = value.get("metadata"), value.get("extra_prompt")
    if isinstance(answered, dict):
        metadata |= answered
    elif answered is not None:
        notes.append(f"metadata is not an object but {describe(answered)}, and is left out.")
    if extra_prompt is not None and not isinstance(extra_prompt, str):
        notes.append(f"extra_prompt is not text but {describe(extra_prompt)}, and is left out.")
        extra_prompt = None
    return PrefetchAnswer(metadata, extra_prompt or None, notes=tuple(notes))


def function_request(
    tool: Mapping[str, Any],
    webhook: Webhook,
    params: Mapping[str, Json],
    *,
    metadata: Mapping[str, Json],
    policy: Policy,
) -> Request:
    """Return the request that calls a function.

    Without a method it is GET with the parameters in the query, beside what the address has of
    one; a POST carries them as JSON.
    """
    url, headers = webhook
    fields = _with_metadata(tool, params, metadata, policy)
    method = tool.get("method")
    method = method.upper() if isinstance(method, str) and method else policy.tool_method
    if method in {"GET", "DELETE", "HEAD"}:
        texts = {key: as_text(value) for key, value in fields.items()}
        query = urlencode(texts, quote_via=quote, errors="replace")
        return Request(method, url, headers, query.encode())
    if not any(name.lower() == "content-type" for name, _ in headers):
        headers = (*headers, _JSON_TYPE)
    return Request(method, url, headers, body=json.dumps(fields).encode())


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
