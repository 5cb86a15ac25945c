"""End-of-calls, typed, and their parts.

Every vintage of the format is accepted: each field may be missing or null, unknown fields are kept,
and a field that cannot be read becomes its default and a `Problem`. Only bytes that are no Millis
payload at all raise. Several ends of one call are merged: an end-of-call that is over takes
precedence over one of a call in progress, a later end over an earlier one, and a value over none.
Source: docs.millis.ai, core-concepts/webhooks, and the payloads that public receivers handle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, Self, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializeAsAny,
    SkipValidation,
)
from typing_extensions import TypeVar

from ..exceptions import PayloadError
from .call_status import UNDER_WAY, CallStatus, Outcome, outcome_of, spell_status
from .fields import (
    MOST_PROBLEMS,
    Count,
    Items,
    MaybeObject,
    Model,
    Number,
    Object,
    Reading,
    Seconds,
    WireModel,
    not_bool,
    read_model,
)
from .memory import AnsweredPrefetch
from .phones import Channel, Direction, customer_of, direction_of
from .reading import (
    Json,
    Problem,
    describe,
    finite,
    identifier,
    read_json,
    read_uncounted_json,
    utc_time,
    web_url,
)
from .results import plain_metadata
from .test_marks import Received, State
from .variables import variables_of

#: What `metadata` is after a call: a dict, or the pydantic model in an annotation.
CallMetadata = TypeVar("CallMetadata", default=dict[str, Json])


class ToolFunction(WireModel):
    """The function a model asked for, and its arguments as the JSON text the model wrote."""

    _where = "chat[].tool_calls[].function."

    name: str | None = None
    arguments: Annotated[
        str, BeforeValidator(lambda value: json.dumps(value) if isinstance(value, dict) else value)
    ] = ""


class ToolCall(WireModel):
    """A tool call within an assistant's message."""

    _where = "chat[].tool_calls[]."

    id: str | None = None
    type: str | None = None
    function: ToolFunction = Field(default_factory=ToolFunction)

    @property
    def name(self) -> str | None:
        """The function's name."""
        return self.function.name

    @property
    def arguments(self) -> Json:
        """The function's arguments, parsed; the text itself where it is not JSON."""
        try:
            return read_json(self.function.arguments)
        except PayloadError:
            return self.function.arguments


class Message(WireModel):
    """One turn of the conversation. `role` is `user`, `assistant` or `tool`, or what comes next."""

    _where = "chat[]."

    role: str | None = None
    content: str | None = None
    tool_calls: Items[ToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None


class FunctionCall(WireModel):
    """A function the agent called. A model wrote `params`: a boolean may come as `"true"`."""

    _where = "function_calls[]."

    name: str | None = None
    params: Object = Field(default_factory=dict)
    result: SkipValidation[Json] = None


class CostItem(WireModel):
    """One item of a call's costs. `credit` is in US dollars, by Millis' price list."""

    _where = "cost_breakdown[]."

    type: str | None = None
    provider: str | None = None
    credit: Number = None
    prompt_tokens: Count = None
    completion_tokens: Count = None


class Voip(WireModel):
    """The telephone side of a call; web sessions have none."""

    _where = "voip."

    provider: str | None = None
    from_phone: str | None = Field(default=None, alias="from")
    to_phone: str | None = Field(default=None, alias="to")


class Recording(WireModel):
    """Where the recording is, as sent. Use `EndOfCall.recording_url`, which is safe to link to."""

    _where = "recording."

    recording_url: str | None = None


def _agent_id(value: object) -> str | None:
    """Return the agent as `identify` does: what admits a delivery and what handles it agree."""
    agent_id = identifier(value)
    if agent_id is None and value not in (None, ""):
        raise ValueError("Input should be an id: text of 1 to 255 characters, or a whole number")
    return agent_id


class EndOfCall(WireModel, Received[State], Generic[CallMetadata, State]):
    """A call that has ended, as Millis' end-of-call webhook reports it.

    Fields keep Millis' names and may all be empty; properties are what teams otherwise work out by
    hand. Fields Millis adds later are in `model_extra`. `metadata` is a dict, or your pydantic
    model where the handler is annotated `EndOfCall[YourModel]`; `EndOfCall[YourModel, YourState]`
    also gives `state` the type of what your `lifespan` yields.
    """

    session_id: str
    agent_id: Annotated[str | None, BeforeValidator(_agent_id)] = None
    call_id: str | None = None
    chat: Items[Message] = Field(default_factory=list)
    function_calls: Items[FunctionCall] = Field(default_factory=list)
    ts: Annotated[float | str | None, BeforeValidator(not_bool)] = None
    duration: Seconds = None
    chars_used: Count = None
    agent_config: MaybeObject = None
    cost_breakdown: Items[CostItem] = Field(default_factory=list)
    voip: Voip | None = None
    recording: Recording | None = None
    if TYPE_CHECKING:
        metadata: CallMetadata = Field(default_factory=dict)  # type: ignore[assignment]
    else:
        metadata: SerializeAsAny[Object] = Field(default_factory=dict)
    call_status: Annotated[str, AfterValidator(spell_status)] | None = None
    error_message: str | None = None
    call_analysis: MaybeObject = None
    call_metrics: MaybeObject = None

    _problems: list[Problem] = PrivateAttr(default_factory=list)
    _raw: dict[str, Json] = PrivateAttr(default_factory=dict)
    _own_numbers: frozenset[str] = PrivateAttr(default=frozenset())
    _state: Any = PrivateAttr(default=None)
    _handler: str | None = PrivateAttr(default=None)
    _change: str | None = PrivateAttr(default=None)
    _prefetch: AnsweredPrefetch | None = PrivateAttr(default=None)
    _source: str | None = PrivateAttr(default=None)
    _dry_run: bool = PrivateAttr(default=False)

    if not TYPE_CHECKING:

        def __class_getitem__(cls, arguments):
            """Return an annotation: the metadata of a call becomes a model in `typed` only."""
            return GenericAlias(cls, arguments)

    @classmethod
    def parse(cls, body: bytes, *, own_numbers: frozenset[str] = frozenset()) -> Self:
        """Read the body of an end-of-call delivery.

        `own_numbers` are the team's own phone numbers, by which direction and customer are told.
        Raises `PayloadError` for what is not a JSON object and for one with neither a `session_id`
        nor a `call_id`; everything else that is wrong ends up in `problems`.
        """
        reading = Reading()
        raw = _read_object(body, partial(read_json, left_out=reading.note_left_out))
        return cls._read(raw, reading, own_numbers)

    @classmethod
    def from_raw(cls, raw: dict[str, Json], *, own_numbers: frozenset[str] = frozenset()) -> Self:
        """Read an end-of-call payload, or an entry of Millis' call logs, that is already parsed.

        Raises `PayloadError` for one with neither a `session_id` nor a `call_id`.
        """
        return cls._read(raw, Reading(), own_numbers)

    @classmethod
    def _read(cls, raw: dict[str, Json], reading: Reading, own_numbers: frozenset[str]) -> Self:
        session_id = _identity(raw).session_id
        if identifier(raw.get("session_id")) is None:
            found = describe(raw.get("session_id"))
            reading.note("session_id", found, "the call_id stands in for it")
        call = cls.model_validate({**raw, "session_id": session_id}, context=reading)
        call._raw, call._own_numbers = raw, own_numbers
        if reading.problems:
            reading.problems.sort(key=_place_of)
        call._note_unusable(reading)
        call._problems = reading.close()
        return call

    def _note_unusable(self, reading: Reading) -> None:
        """Note what could be read and still is not what it should be."""
        if self.ts is not None and self.started_at is None:
            reading.note("ts", describe(self.ts), "no time from 2000 to 2099")
        url = self.recording and self.recording.recording_url
        if url and self.recording_url is None:
            reading.note("recording.recording_url", describe(url), "no http or https address")
        if (latency := self._latency) is not None and self.average_latency_ms is None:
            name = "call_metrics.utterance_latency.avg"
            reading.note(name, describe(latency), "no number of milliseconds from 0 to 1e12")

    @property
    def raw(self) -> dict[str, Json]:
        """The payload as it was received; of one with absurdly many parts, what was read of it."""
        return self._raw

    @property
    def problems(self) -> list[Problem]:
        """What could not be read, and what is left out because there is too much of it.

        The first 50; one more says how many others there are.
        """
        return self._problems

    @property
    def idempotency_key(self) -> str:
        """What names this work: `session_id:handler`, the same in every attempt and replay.

        A run because a later end changed the call has `session_id:handler:change`, with a key of
        the change. Hand it to systems that should do a thing once. Outside of a run it is the
        session's id.
        """
        return ":".join(filter(None, (self.session_id, self._handler, self._change)))

    @property
    def is_change(self) -> bool:
        """Whether the handler is called again, because a later end changed what is known."""
        return self._change is not None

    @property
    def prefetch(self) -> AnsweredPrefetch | None:
        """What the last prefetch of the call was answered, and what was kept of it; None where
        none was seen, and outside of a run."""
        return self._prefetch

    @property
    def started_at(self) -> datetime | None:
        """When the call started, by Millis' clock, aware and in UTC."""
        return utc_time(self.ts)

    @property
    def duration_s(self) -> float | None:
        """How long the call took, in seconds."""
        return self.duration

    @property
    def cost_total(self) -> float | None:
        """The sum of all credits; None where no item has one, which is not the same as 0."""
        credit = [item.credit for item in self.cost_breakdown if item.credit is not None]
        return math.fsum(credit) if credit else None

    @property
    def channel(self) -> Channel:
        """How the conversation was held."""
        if self.call_status == CallStatus.CHAT_COMPLETION:
            return "chat"
        return "phone" if self.from_phone or self.to_phone else "web"

    @property
    def from_phone(self) -> str | None:
        """The number that called; None on the web."""
        return (self.voip.from_phone or None) if self.voip else None

    @property
    def to_phone(self) -> str | None:
        """The number that was called; None on the web."""
        return (self.voip.to_phone or None) if self.voip else None

    @property
    def direction(self) -> Direction | None:
        """Direction of a phone call; None on web calls and if no number is one of `own_numbers`."""
        return direction_of(self.from_phone, self.to_phone, self._own_numbers)

    @property
    def customer_phone(self) -> str | None:
        """The side of a phone call that is not ours.

        Where neither number is known to be ours it is `from`, which Millis' documentation calls
        the caller. On outbound calls that is the agent's own: set `MILLIS_HOOKS_OWN_NUMBERS`.
        """
        return customer_of(self.from_phone, self.to_phone, self._own_numbers)

    @property
    def outcome(self) -> Outcome:
        """What became of the call; `unknown` for a status that says nothing, or is new.

        Before December 2024 Millis sent no status, and nothing at all unless there was a session:
        where words were exchanged, such a call is `completed`.
        """
        if self.call_status is None and self.chat:
            return Outcome.COMPLETED
        return outcome_of(self.call_status)

    @property
    def recording_url(self) -> str | None:
        """The recording's address if it is one a page may link to: `http` or `https`."""
        url = self.recording.recording_url if self.recording else None
        return web_url(url) if url else None

    @property
    def opted_out(self) -> bool:
        """Whether the caller asked not to be called again (`call_analysis.opt_out_detection`)."""
        detected = (self.call_analysis or {}).get("opt_out_detection")
        if isinstance(detected, str):
            return detected.strip().lower() not in {"", "false", "no", "none", "null", "0"}
        return bool(detected)

    @property
    def average_latency_ms(self) -> float | None:
        """How long the agent took to answer on average (`call_metrics.utterance_latency.avg`)."""
        average = finite(self._latency)
        return average if average is not None and average >= 0 else None

    @property
    def _latency(self) -> Json:
        latency = (self.call_metrics or {}).get("utterance_latency")
        return latency.get("avg") if isinstance(latency, dict) else None

    @property
    def variables(self) -> dict[str, object]:
        """What `{name}` stands for in this call's texts: its metadata and the two numbers."""
        metadata = plain_metadata(self.metadata)
        return variables_of(metadata, from_phone=self.from_phone, to_phone=self.to_phone)

    def typed(self, model: type[Model]) -> EndOfCall[Model, State]:
        """Return this call with its metadata as a pydantic model.

        A value that does not fit is reported in `problems` and left out: the field is then its
        default, or None.
        """
        metadata, problems = read_model(model, plain_metadata(self.metadata))
        call = self.model_copy(update={"metadata": metadata})
        call._problems = [*self.problems, *problems[:MOST_PROBLEMS]]
        return cast("EndOfCall[Model, State]", call)

    def function_result(self, name: str) -> Json:
        """Return what the last call of this function gave; None if it was not called."""
        results = [call.result for call in self.function_calls if call.name == name]
        return results[-1] if results else None


class Identity(NamedTuple):
    """Which session an end-of-call is about, and whose."""

    session_id: str
    agent_id: str | None


def identify(body: bytes) -> Identity:
    """Read the ids of an end-of-call; raises what `EndOfCall.parse` raises."""
    return _identity(_read_object(body, read_uncounted_json))


def _identity(raw: dict[str, Json]) -> Identity:
    session_id = identifier(raw.get("session_id")) or identifier(raw.get("call_id"))
    if session_id is None:
        raise PayloadError("neither a session_id nor a call_id")
    return Identity(session_id, identifier(raw.get("agent_id")))


def _read_object(body: bytes, read: Callable[[bytes | str], Json] = read_json) -> dict[str, Json]:
    raw = read(body)
    if isinstance(raw, str):  # JSON in JSON, as some relays make it
        raw = read(raw)
    if not isinstance(raw, dict):
        raise PayloadError(f"not a JSON object but {describe(raw)}")
    return raw


_NOTHING: tuple[Json, ...] = (None, "", [], {})


def rank_of(call: EndOfCall) -> int:
    """Return how much an end tells by its status: of a call under way the least."""
    if call.call_status in UNDER_WAY:
        return 0
    return 1 if call.call_status == CallStatus.UNKNOWN else 2


def merged(lower: EndOfCall, higher: EndOfCall) -> EndOfCall:
    """Return what two end-of-calls come to; where both say something, `higher` counts."""
    raw = dict(lower.raw)
    for name, value in _said(higher):
        before = _value(lower, name)
        raw[name] = _joined(before, value) if _says(before) else value
    call = EndOfCall.from_raw(raw, own_numbers=higher._own_numbers)
    left_out = [each for end in (lower, higher) for each in end.problems if _is_of_parts(each)]
    call._problems = list(dict.fromkeys([*left_out, *call.problems]))[: MOST_PROBLEMS + 1]
    return call


def _said(call: EndOfCall) -> Iterator[tuple[str, Json]]:
    for name in call.raw:
        value = _value(call, name)
        if _says(value) and not (name == "ts" and call.started_at is None):
            yield name, value


def _value(call: EndOfCall, name: str) -> Json:
    """Return a field as it was sent, None where it could not be read; what came as text is read."""
    sent = call.raw.get(name)
    if name not in EndOfCall.model_fields:
        return sent
    read = getattr(call, name)
    if read is None:
        return None
    if isinstance(read, dict):
        return cast("Json", read)
    return sent if read or isinstance(read, int | float) else None


def _joined(lower: Json, higher: Json) -> Json:
    if not isinstance(lower, dict) or not isinstance(higher, dict):
        return higher
    joined = dict(lower)
    for name, value in higher.items():
        if _says(value):
            joined[name] = _joined(lower[name], value) if _says(lower.get(name)) else value
        else:
            joined.setdefault(name, value)
    return joined


def _says(value: Json) -> bool:
    return isinstance(value, bool | int | float) or value not in _NOTHING


def _place_of(problem: Problem) -> int:
    """Return where a problem comes: first what is left out, then in the order of fields."""
    name = problem.field.partition(".")[0].removesuffix("[]")
    is_first = _is_of_parts(problem) or name not in EndOfCall.model_fields
    return -1 if is_first else list(EndOfCall.model_fields).index(name)


def _is_of_parts(problem: Problem) -> bool:
    return problem.why.startswith("the first ")
