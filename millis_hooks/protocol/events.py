"""The events of Millis, typed: prefetch requests and their answers, end-of-calls and their parts.

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
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from types import GenericAlias
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
    cast,
)

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    SkipValidation,
    field_validator,
)
from typing_extensions import TypeVar

from ..exceptions import PayloadError
from .call_status import UNDER_WAY, CallStatus, Outcome, outcome_of, spell_status
from .memory import Recall, Remembers
from .phones import Direction, customer_of, direction_of, repair_phone
from .plain_values import as_text, is_object, items_of
from .reading import (
    MOST_PROBLEMS,
    Count,
    Items,
    Json,
    MaybeObject,
    Model,
    Number,
    Object,
    Problem,
    Reading,
    Seconds,
    WireModel,
    describe,
    finite,
    identifier,
    not_bool,
    read_any_json,
    read_json,
    read_model,
    read_query,
    utc_time,
    web_url,
)
from .test_marks import AS_REAL_SOURCE, MADE_UP_SOURCES
from .typed_metadata import read_metadata
from .variables import variables_of

__all__ = [
    "AnsweredPrefetch",
    "CallStatus",
    "Channel",
    "CostItem",
    "Direction",
    "EndOfCall",
    "FunctionCall",
    "Json",
    "Message",
    "Outcome",
    "PrefetchRequest",
    "PrefetchResponse",
    "Problem",
    "Recording",
    "ToolCall",
    "ToolFunction",
    "Voip",
    "describe",
    "read_json",
]

Channel: TypeAlias = Literal["phone", "web", "chat"]
#: What `metadata` is before and after a call: a dict, or the pydantic model in an annotation.
Metadata = TypeVar("Metadata", default=dict[str, str])
CallMetadata = TypeVar("CallMetadata", default=dict[str, Json])
#: What `state` is: what the application's `lifespan` yields.
State = TypeVar("State", default=Any)


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


class Received(Generic[State]):
    """An event, and what the application knows of it beside what it says."""

    __slots__ = ()

    _state: State
    _source: str | None
    _dry_run: bool

    @property
    def state(self) -> State:
        """What the application's `lifespan` yielded."""
        return self._state

    @property
    def sandbox(self) -> bool:
        """Whether the call is simulated or a test request; False for every call from Millis, and in
        your tests unless they ask for `sandbox=True`."""
        return self._source in MADE_UP_SOURCES - {AS_REAL_SOURCE}

    @property
    def dry_run(self) -> bool:
        """Whether handlers should skip side effects; False for every call from Millis."""
        return self._dry_run

    @property
    def is_made_up(self) -> bool:
        """Whether Millis did not make the call: then `hooks.millis` does not reach it either."""
        return self._source in MADE_UP_SOURCES

    def mark(self, *, source: str | None, dry_run: bool) -> None:
        """Say who made the call up, if Millis did not make it; see `test_marks`."""
        self._source = source  # type: ignore[misc]  # the events have the slots
        self._dry_run = dry_run  # type: ignore[misc]


def _plain(metadata: object) -> dict[str, Any]:
    """Return metadata as a dict of plain values, also where it is a model."""
    if isinstance(metadata, BaseModel):
        return metadata.model_dump(mode="json")
    return cast("dict[str, Any]", metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredPrefetch:
    """A prefetch, as it was answered."""

    #: fresh, cached, last_good, default, late or failed.
    outcome: str
    received_at: datetime
    latency_ms: float | None
    #: What Millis was sent.
    metadata: dict[str, Json]
    extra_prompt: str | None
    #: What handlers kept: `PrefetchResponse(keep=...)`, and the choices of `variant`.
    keep: dict[str, Json]

    @classmethod
    def read(
        cls,
        answer: bytes | None,
        kept: str | None,
        *,
        outcome: str,
        received_at: datetime,
        latency_ms: float | None,
    ) -> Self:
        """Read what is stored of a prefetch; what cannot be read is left out."""
        sent = _object(answer)
        prompt = sent.get("extra_prompt")
        return cls(
            outcome=outcome,
            received_at=received_at,
            latency_ms=latency_ms,
            metadata=_object(sent.get("metadata")),
            extra_prompt=prompt if isinstance(prompt, str) else None,
            keep=_object(kept),
        )


def _object(value: Json | bytes) -> dict[str, Json]:
    """Return an object of JSON, also where it is written as text; {} for anything else."""
    if isinstance(value, str | bytes):
        try:
            value = read_json(value)
        except PayloadError:
            return {}
    return value if isinstance(value, dict) else {}


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
        """Who called whom; None on the web, and where no number is known to be ours."""
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
        metadata = _plain(self.metadata)
        return variables_of(metadata, from_phone=self.from_phone, to_phone=self.to_phone)

    def typed(self, model: type[Model]) -> EndOfCall[Model, State]:
        """Return this call with its metadata as a pydantic model.

        A value that does not fit is reported in `problems` and left out: the field is then its
        default, or None.
        """
        metadata, problems = read_model(model, _plain(self.metadata))
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
    return _identity(_read_object(body, read_any_json))


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


class PrefetchResponse(BaseModel):
    """What a prefetch handler tells Millis before the call begins.

    Values of `metadata` are sent in their plain form: a `datetime` as ISO 8601, a `Decimal` or a
    `UUID` as text, an `Enum` as its value, a set as a list. One that has none is left out, and the
    call's page says so. Raises pydantic's `ValidationError` for a name Millis does not read, and
    for `metadata` or an `extra_prompt` of another kind.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    #: Merged over the session's metadata: known keys are replaced, new ones added.
    metadata: dict[str, Any] = Field(default_factory=dict)
    #: Appended to the system prompt.
    extra_prompt: str | None = None
    #: Kept here with the call and never sent to Millis: `call.prefetch.keep` in an end-of-call
    #: handler. Of what several handlers keep under one name the last counts.
    keep: dict[str, Any] = Field(default_factory=dict, exclude=True)
    #: Fill `{name}` in `extra_prompt` here, not sent to Millis.
    fill_variables: bool = Field(default=False, exclude=True)

    @field_validator("metadata", "keep", mode="plain")
    @classmethod
    def _an_object(cls, value: Any) -> dict[str, Any]:
        if is_object(value):
            return items_of(value)
        raise ValueError("Input should be a dict, or another object of names and values")

    @field_validator("extra_prompt", mode="before")
    @classmethod
    def _a_text(cls, value: Any) -> str | None:
        left_out: list[str] = []
        text = as_text(value, "extra_prompt", left_out)
        if left_out:
            raise ValueError("Input should be a text")
        return text


_RESERVED = frozenset({"session_id", "agent_id", "from", "to"})


@dataclass(kw_only=True, slots=True)
class PrefetchRequest(Received[State], Remembers, Generic[Metadata, State]):
    """The prefetch request that Millis sends just before a call.

    Everything arrives as text. `metadata` is a dict of text, or your pydantic model where the
    handler is annotated `PrefetchRequest[YourModel]`; `PrefetchRequest[YourModel, YourState]` also
    gives `state` the type of what your `lifespan` yields.
    """

    session_id: str
    agent_id: str | None = None
    from_phone: str | None = None
    to_phone: str | None = None
    metadata: Metadata = field(default_factory=dict)  # type: ignore[assignment]
    #: What could not be read.
    problems: list[Problem] = field(default_factory=list)
    #: The query's fields as received, in order, repeated names and all.
    raw: list[tuple[str, str]] = field(default_factory=list)
    _own_numbers: frozenset[str] = field(default=frozenset(), repr=False)
    _state: State = field(default=None, repr=False, compare=False)  # type: ignore[assignment]
    _source: str | None = field(default=None, repr=False)
    _dry_run: bool = field(default=False, repr=False)
    _recall: Recall | None = field(default=None, repr=False, compare=False)
    #: What `variant` chose, by its name.
    _variants: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def parse(
        cls, query: bytes, *, own_numbers: frozenset[str] = frozenset()
    ) -> PrefetchRequest[dict[str, str]]:
        """Read the query string of a prefetch; never raises.

        The names `session_id`, `agent_id`, `from` and `to` are Millis': metadata of the same name
        comes after them, is reported in `problems` and found only in `raw`. Of metadata keys that
        repeat, the first value counts. A `+` that was sent unescaped is put back.
        """
        reading = Reading()
        raw = read_query(query, reading.problems)
        own: dict[str, str] = {}
        metadata: dict[str, str] = {}
        for name, value in raw:
            if name not in _RESERVED:
                if name not in metadata:
                    metadata[name] = value
            elif name in own:
                reading.note(name, describe(value), "the name is Millis' own")
            else:
                own[name] = value
        session_id = own.get("session_id", "").strip()
        if not session_id:
            reading.note("session_id", "nothing", "every call has one")
        return PrefetchRequest(
            session_id=session_id,
            agent_id=identifier(own.get("agent_id")),
            from_phone=repair_phone(own.get("from", "")),
            to_phone=repair_phone(own.get("to", "")),
            metadata=metadata,
            problems=reading.close(),
            raw=raw,
            _own_numbers=own_numbers,
        )

    @property
    def channel(self) -> Channel:
        """How the conversation will be held: on the phone where a number is known."""
        return "phone" if self.from_phone or self.to_phone else "web"

    @property
    def direction(self) -> Direction | None:
        """Direction of a phone call; None on web calls and if no number is one of `own_numbers`."""
        return direction_of(self.from_phone, self.to_phone, self._own_numbers)

    @property
    def customer_phone(self) -> str | None:
        """The side of a phone call that is not ours, as in `EndOfCall.customer_phone`."""
        return customer_of(self.from_phone, self.to_phone, self._own_numbers)

    @property
    def variables(self) -> dict[str, object]:
        """What `{name}` stands for in this call's texts: metadata as sent, and the two numbers."""
        metadata = {name: values[0] for name, values in self._sent().items()}
        return variables_of(metadata, from_phone=self.from_phone, to_phone=self.to_phone)

    def copy(self) -> PrefetchRequest[Metadata, State]:
        """Return this request with metadata of its own, to be changed at will."""
        return PrefetchRequest(
            session_id=self.session_id,
            agent_id=self.agent_id,
            from_phone=self.from_phone,
            to_phone=self.to_phone,
            metadata=copy(self.metadata),
            problems=self.problems,
            raw=self.raw,
            _own_numbers=self._own_numbers,
            _state=self._state,
            _source=self._source,
            _dry_run=self._dry_run,
            _recall=self._recall,
        )

    def typed(self, model: type[Model]) -> PrefetchRequest[Model, State]:
        """Return this request with its metadata as a pydantic model.

        Text is coerced to the model's types. Where a list, an object or null is due it is read as
        JSON; a name sent several times fills a list, too. A value that does not fit is reported in
        `problems` and left out: the field is then its default, or None.
        """
        metadata, problems = read_metadata(model, self._sent())
        request = cast("PrefetchRequest[Model, State]", self.copy())
        request._variants = self._variants
        request.metadata = metadata
        request.problems = [*self.problems, *problems[:MOST_PROBLEMS]]
        return request

    def _sent(self) -> dict[str, list[Any]]:
        """Return every value of every metadata key; of a request made by hand, its metadata."""
        if not self.raw:
            return {name: [value] for name, value in _plain(self.metadata).items()}
        sent: dict[str, list[Any]] = {}
        for name, value in self.raw:
            if name not in _RESERVED:
                sent.setdefault(name, []).append(value)
        return sent


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


def _is_of_parts(problem: Problem) -> bool:
    return problem.why.startswith("the first ")
