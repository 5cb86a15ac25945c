"""What happens in a session, step by step: typed, in order, and never changed afterwards.

A step holds no secret of the configuration: they are masked before they come here. Numbers, what
people said and metadata are as they were; who shows steps masks them by the one policy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from ..exceptions import PayloadError
from ..masking.places import SANDBOX_STEP
from ..masking.policy import MaskPolicy, mask_secrets
from ..masking.secret_patterns import MASK
from ..protocol.reading import Json, read_json
from .transport import Answer, Request


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it may be shown: the values of its headers are masked."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None

    @classmethod
    def of(cls, request: Request) -> Sent:
        """Return what may be shown of `request`."""
        query = request.query.decode("ascii", "replace")
        joint = ("&" if "?" in request.url else "?") if query else ""
        return cls(
            request.method,
            _without_secrets(f"{request.url}{joint}{query}"),
            {name: _shown(name, value) for name, value in request.headers},
            None if request.body is None else _body(request.body),
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as it may be shown."""

    status_code: int
    body: str
    content_type: str | None = None

    @classmethod
    def of(cls, answer: Answer) -> Answered:
        """Return what may be shown of `answer`."""
        return cls(answer.status_code, answer.text, answer.content_type)


def _body(body: bytes) -> str:
    try:
        return json.dumps(mask_secrets(read_json(body)).value)
    except PayloadError:
        return _without_secrets(body.decode("utf-8", "replace"))


def _without_secrets(text: str) -> str:
    return str(mask_secrets(text).value)


def _shown(name: str, value: str) -> str:
    return value if name.lower() in {"content-type", "accept"} else MASK


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that happened. `number` counts from 1, `at_s` are seconds since the beginning."""

    kind: ClassVar[str] = "step"

    #: Set by the log.
    number: int = 0
    at_s: float = 0.0
    #: What a person should know of it, in sentences.
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the step as JSON, its `kind` among the rest."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached(Step):
    """The call was set up: who, and with which metadata."""

    kind: ClassVar[str] = "attached"

    way: str
    session_id: str
    call_id: str
    agent_id: str | None
    from_phone: str | None
    to_phone: str | None
    metadata: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetched(Step):
    """The prefetch webhook was asked. `sent` is None where there is none to ask."""

    kind: ClassVar[str] = "prefetched"

    sent: Sent | None = None
    answered: Answered | None = None
    took_ms: float = 0.0
    #: Why the call got nothing from it; None if it did, or there was nobody to ask.
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(Step):
    """The answer's metadata was merged over what was attached."""

    kind: ClassVar[str] = "merged"

    metadata: Mapping[str, Json]
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    extra_prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered(Step):
    """The texts as the agent gets them. `unresolved` has the unknown names by place."""

    kind: ClassVar[str] = "rendered"

    prompt: str
    first_message: str | None = None
    #: Each function as the agent knows it, its descriptions filled in.
    tools: tuple[Mapping[str, Json], ...] = ()
    #: What else the agent says, filled in, by its place in the configuration.
    messages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unresolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said(Step):
    """Somebody said something: the `user` who calls, or the `assistant`.

    An answer that is spoken piece by piece is a step a piece, and one turn: `continues` says that
    `text` goes on with the turn before, `is_final` that the turn is complete with it.
    """

    kind: ClassVar[str] = "said"

    role: str
    text: str
    continues: bool = False
    is_final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCalled(Step):
    """The agent called a function. `sent` is None where it has no webhook, or it is for later."""

    kind: ClassVar[str] = "function_called"

    name: str
    params: Mapping[str, Json]
    sent: Sent | None = None
    answered: Answered | None = None
    took_ms: float = 0.0
    result: str | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HungUp(Step):
    """The conversation is over."""

    kind: ClassVar[str] = "hung_up"

    call_status: str
    duration_s: float
    error_message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndDelivered(Step):
    """The end-of-call was sent. `sent` is None where it is not, and the notes say why."""

    kind: ClassVar[str] = "end_delivered"

    vintage: str
    sent: Sent | None = None
    answered: Answered | None = None
    took_ms: float = 0.0
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged(Step):
    """The call is in Millis' call logs: an entry as `GET /call-logs/{session_id}` has it."""

    kind: ClassVar[str] = "logged"

    entry: Mapping[str, Json]

    @classmethod
    def of(cls, entry: Mapping[str, Json]) -> Logged:
        """Return the step of an entry, without its secrets."""
        shown = mask_secrets(dict(entry)).value
        return cls(entry=shown if isinstance(shown, dict) else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Step):
    """Something that changed nothing, and that a person should know of: the notes say it."""

    kind: ClassVar[str] = "noted"


S = TypeVar("S", bound=Step)


def shown(step: Step, mask: MaskPolicy) -> dict[str, Any]:
    """Return a step as JSON, as it may be seen."""
    return seen(json.loads(json.dumps(step.as_json())), mask)


def seen(step: dict[str, Any], mask: MaskPolicy) -> dict[str, Any]:
    """Return a step that is JSON already as it may be seen."""
    masked = mask.payload(step, SANDBOX_STEP)
    return masked if isinstance(masked, dict) else {}


def with_whole_turns(steps: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return steps that are JSON with the pieces of each turn in one: in parts nothing is masked
    that stands across two of them.
    """
    whole: list[dict[str, Any]] = []
    turn: dict[str, Any] = {}
    for step in steps:
        if step["kind"] == "said" and step.get("continues"):
            turn["text"] = turn.get("text", "") + step["text"]
            continue
        whole.append(dict(step))
        if step["kind"] == "said":
            turn = whole[-1]
    return whole


class StepLog:
    """The steps of one session, for who looks on and for who comes later. For one event loop."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._listeners: list[Callable[[Step | None], None]] = []
        self.is_closed = False

    def __iter__(self) -> Iterator[Step]:
        """All steps until now."""
        return iter(tuple(self._steps))

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Step, *, at_s: float) -> None:
        """Number a step, keep it and tell the listeners."""
        numbered = replace(step, number=len(self._steps) + 1, at_s=round(at_s, 3))
        self._steps.append(numbered)
        self._tell(numbered)

    def close(self) -> None:
        """Say that no further step comes."""
        self.is_closed = True
        self._tell(None)

    def listen(self, tell: Callable[[Step | None], None]) -> Callable[[], None]:
        """Have `tell` called with each step from now on, and with None at the end.

        Returns what ends that. `tell` must neither wait nor raise.
        """
        self._listeners.append(tell)
        return lambda: self._listeners.remove(tell)

    async def follow(self) -> AsyncIterator[Step]:
        """Yield the steps that were and those that come, until the log is closed."""
        queue: asyncio.Queue[Step | None] = asyncio.Queue()
        for step in (*self._steps, *([None] if self.is_closed else [])):
            queue.put_nowait(step)
        stop = self.listen(queue.put_nowait)
        try:
            while (step := await queue.get()) is not None:
                yield step
        finally:
            stop()

    def of(self, kind: type[S]) -> list[S]:
        """Return the steps of one kind."""
        return [step for step in self._steps if isinstance(step, kind)]

    def as_json(self) -> list[dict[str, Any]]:
        """Return every step as JSON."""
        return [step.as_json() for step in self._steps]

    def _tell(self, step: Step | None) -> None:
        for tell in tuple(self._listeners):
            tell(step)
