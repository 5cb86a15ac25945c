"""The steps of a session: typed, timed, numbered in order, and never changed afterwards.

Secrets of the agent's configuration are masked before they get here. Phone numbers, what was said
and metadata are not: `masked_step` masks them by the team's policy before a step is shown.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from ..masking.places import SANDBOX_STEP
from ..masking.policy import MaskPolicy
from ..protocol.reading import Json
from .transport import Answer


class Clock:
    """Time as a session sees it: it runs at `pace` while the session waits; infinity skips waits.

    The time of day stays the real one, so that a receiver gets calls that have just ended, and
    none that end in the future. `is_live` says that a person talks, who takes the time of speaking
    by talking; the words of a script take it by `pass_time`.
    """

    def __init__(self, pace: float = math.inf, *, is_live: bool = False) -> None:
        self.is_live = is_live
        self._pace = pace
        self._skipped_s = 0.0

    def now(self) -> datetime:
        """Return the time of day, aware and in UTC."""
        return datetime.now(UTC)

    def elapsed_s(self) -> float:
        """Return seconds since some moment, those skipped included."""
        return time.perf_counter() + self._skipped_s

    async def pass_time(self, seconds: float) -> None:
        """Return when `seconds` have passed at the clock's pace."""
        real_s = seconds / self._pace
        await asyncio.sleep(real_s)
        self._skipped_s += seconds - real_s


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, with its secrets and the values of its headers masked."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that happened. `number` counts from 1, `at_s` is seconds since the beginning."""

    #: Set by the log.
    number: int = 0
    at_s: float = 0.0
    #: Remarks for a person, in sentences.
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The name of the type, as in `function_called`."""
        name = type(self).__name__
        words = "".join(f"_{char}" if char.isupper() else char for char in name)
        return words.lower().removeprefix("_")

    def as_json(self) -> dict[str, Any]:
        """Return the step's fields and its `kind`."""
        return {"kind": self.kind, **asdict(self, dict_factory=_with_texts)}


def _with_texts(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a dataclass; the bytes of an answer are decoded as UTF-8."""
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for name, value in items
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpStep(Step):
    """A request and its answer. `sent` is None where nothing was sent, and the notes say why."""

    sent: Sent | None = None
    answered: Answer | None = None
    took_ms: float = 0.0
    #: Why the request failed.
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached(Step):
    """The call was placed, with this metadata attached."""

    way: str
    session_id: str
    call_id: str
    agent_id: str | None
    from_phone: str | None
    to_phone: str | None
    metadata: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetched(HttpStep):
    """The prefetch webhook was called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(Step):
    """The answer's metadata was merged over what was attached; with the keys that it touched."""

    metadata: Mapping[str, Json]
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    extra_prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered(Step):
    """The texts as the agent gets them. `unresolved` has the unknown names by place."""

    prompt: str
    first_message: str | None = None
    #: Each function as the agent knows it, its descriptions filled in.
    tools: tuple[Mapping[str, Any], ...] = ()
    #: Other messages of the agent, filled in, by their place in the configuration.
    messages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unresolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said(Step):
    """The caller (`user`) or the agent (`assistant`) said something.

    An answer that is spoken piece by piece is a step a piece, and one turn: `continues` says that
    `text` continues the turn before, `is_final` that the turn is complete with it.
    """

    role: str
    text: str
    continues: bool = False
    is_final: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionCalled(HttpStep):
    """The agent called a function."""

    name: str
    params: Mapping[str, Json]
    #: None where the function runs after the call.
    result: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HungUp(Step):
    """The conversation is over."""

    call_status: str
    duration_s: float
    error_message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndDelivered(HttpStep):
    """The end-of-call webhook was called."""

    vintage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged(Step):
    """The call is in Millis' call logs: an entry as `GET /call-logs/{session_id}` has it."""

    entry: Mapping[str, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted(Step):
    """A remark about the call; nothing else happened."""


S = TypeVar("S", bound=Step)

#: Called with each step, and with None after the last one; it must neither wait nor raise.
Listener = Callable[[Step | None], None]


class StepLog:
    """The steps of one session, to read now or to follow. For one event loop."""

    def __init__(self, clock: Clock) -> None:
        self.is_closed = False
        self._clock = clock
        self._began_s = clock.elapsed_s()
        self._steps: list[Step] = []
        self._listeners: list[Listener] = []

    def __iter__(self) -> Iterator[Step]:
        """All steps until now."""
        return iter(tuple(self._steps))

    def add(self, step: Step) -> None:
        """Number a step, keep it and pass it to the listeners."""
        at_s = round(self._clock.elapsed_s() - self._began_s, 3)
        numbered = replace(step, number=len(self._steps) + 1, at_s=at_s)
        self._steps.append(numbered)
        self._notify(numbered)

    def close(self) -> None:
        """Tell the listeners that no further step comes."""
        self.is_closed = True
        self._notify(None)

    def listen(self, listener: Listener) -> None:
        """Have `listener` called from now on."""
        self._listeners.append(listener)

    async def follow(self) -> AsyncIterator[Step]:
        """Yield earlier steps and those to come, until the log is closed."""
        queue: asyncio.Queue[Step | None] = asyncio.Queue()
        for step in (*self._steps, *([None] if self.is_closed else [])):
            queue.put_nowait(step)
        self.listen(queue.put_nowait)
        while (step := await queue.get()) is not None:
            yield step

    def of(self, kind: type[S]) -> list[S]:
        """Return the steps of one type."""
        return [step for step in self._steps if isinstance(step, kind)]

    def as_json(self) -> list[dict[str, Any]]:
        """Return every step as JSON."""
        return [step.as_json() for step in self._steps]

    def _notify(self, step: Step | None) -> None:
        for listener in self._listeners:
            listener(step)


def masked_step(step: Step | dict[str, Any], mask: MaskPolicy) -> dict[str, Any]:
    """Return a step as JSON, masked by the policy."""
    as_json = json.loads(json.dumps(step.as_json())) if isinstance(step, Step) else step
    masked = mask.payload(as_json, SANDBOX_STEP)
    return masked if isinstance(masked, dict) else {}


def with_whole_turns(steps: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return steps that are JSON with the pieces of each turn joined.

    Masking needs that: a number that is spread over two pieces would not be recognized.
    """
    joined: list[dict[str, Any]] = []
    turn: dict[str, Any] = {}
    for step in steps:
        if step["kind"] == "said" and step.get("continues"):
            turn["text"] = turn.get("text", "") + step["text"]
            continue
        joined.append(dict(step))
        if step["kind"] == "said":
            turn = joined[-1]
    return joined
