"""What happened to a call, step by step, and by whose clock.

Steps stand one below the other and not along one axis: 84 ms next to four minutes would be gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import JsonValue

from ..call_log.queries.records import Call, Delivery, State
from ..masking.places import Place
from ..masking.policy import MaskPolicy
from .formats import clock, milliseconds, size, status_label
from .payloads import Entry, reason_of

#: A difference of two clocks beyond this says only that they disagree.
_MOST_LAG_S = 3600
#: No call lasts a year; of one that says so, nobody knows when it ended.
_LONGEST_S = 365 * 24 * 3600

Kind = Literal["prefetch", "unasked", "started", "ended", "received", "live", "lost", "unended"]


@dataclass(frozen=True, slots=True)
class Prefetch:
    """What was asked before the call, and what became of it."""

    received_at: datetime
    latency_ms: float | None
    outcome: str
    reason: str | None
    answered_keys: int
    extra_prompt: str | None


@dataclass(frozen=True, slots=True)
class EndReceived:
    """The end-of-call this page reads from; `lag_s` is from the end of the call to its arrival."""

    received_at: datetime
    body_bytes: int
    status_code: int
    latency_ms: float | None
    lag_s: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened. `clock` is whose it was: ours, or the one Millis sent times of.

    `after_s` is how long after the step before, where both clocks can be compared.
    """

    kind: Kind
    went_well: bool
    title: str
    at: datetime | None = None
    clock: Literal["here", "millis"] | None = None
    after_s: float | None = None
    details: tuple[str, ...] = ()


def prefetch_of(delivery: Delivery, answer: dict[str, JsonValue], mask: MaskPolicy) -> Prefetch:
    """Return what a prefetch came to, from the bytes of its answer."""
    metadata = answer.get("metadata")
    prompt = mask.payload(answer.get("extra_prompt"), Place.WORDS)
    return Prefetch(
        delivery.received_at,
        delivery.latency_ms,
        delivery.outcome,
        reason_of(delivery, mask),
        len(metadata) if isinstance(metadata, dict) else 0,
        prompt if isinstance(prompt, str) and prompt else None,
    )


def end_received(delivery: Delivery, call: Call) -> EndReceived:
    """Return how the end of a call came in."""
    ended_at = ended_at_of(call)
    lag_s = (delivery.received_at - ended_at).total_seconds() if ended_at else -1
    return EndReceived(
        delivery.received_at,
        delivery.body_bytes,
        delivery.status_code,
        delivery.latency_ms,
        lag_s if 0 <= lag_s < _MOST_LAG_S else None,
    )


def ended_at_of(call: Call) -> datetime | None:
    """Return when a call ended by Millis' clock, if that can be told."""
    if call.started_at is None or call.duration_s is None or call.duration_s > _LONGEST_S:
        return None
    return call.started_at + timedelta(seconds=call.duration_s)


def steps_of(
    call: Call,
    state: State,
    prefetch: Prefetch | None,
    end: EndReceived | None,
    metadata: Sequence[Entry],
) -> Iterator[Step]:
    """Yield the steps of a call up to its handlers."""
    yield _asked(prefetch, metadata)
    if call.started_at is not None:
        yield Step("started", True, "Call started", call.started_at, "millis")
    if end is not None:
        yield _ended(call)
        yield _received(end)
    elif state == "live":
        details = ("prefetch seen, end-of-call not yet received",)
        yield Step("live", True, "In progress", details=details)
    elif state == "unended":
        yield Step("unended", True, "No end was sent", details=("the call was made up",))
    else:
        yield Step("lost", False, "No end received", details=("no end-of-call webhook so far",))


def _asked(prefetch: Prefetch | None, metadata: Sequence[Entry]) -> Step:
    if prefetch is None:
        return Step("unasked", False, "No prefetch received")
    told = [] if prefetch.latency_ms is None else [f"in {milliseconds(prefetch.latency_ms)}"]
    if prefetch.outcome != "fresh":
        told.append(f"fallback ({prefetch.outcome.replace('_', ' ')})")
    told += _changes(prefetch, metadata)
    if prefetch.extra_prompt:
        told.append(f"extra prompt {len(prefetch.extra_prompt):,} characters")
    is_fresh = prefetch.outcome == "fresh"
    at = prefetch.received_at
    return Step("prefetch", is_fresh, "Prefetch answered", at, "here", details=tuple(told))


def _changes(prefetch: Prefetch, metadata: Sequence[Entry]) -> Iterator[str]:
    count = Counter(entry.change for entry in metadata if entry.by == "prefetch")
    keys = f"metadata key{'s' if prefetch.answered_keys != 1 else ''}"
    yield f"{prefetch.answered_keys} {keys}"
    if count:
        yield " and ".join(f"{number} {change}" for change, number in count.items())


def _ended(call: Call) -> Step:
    details = () if call.duration_s is None else (f"{clock(call.duration_s)} long",)
    return Step(
        "ended",
        call.outcome != "failed",
        status_label(call.call_status),
        ended_at_of(call),
        "millis" if ended_at_of(call) else None,
        details=details,
    )


def _received(end: EndReceived) -> Step:
    answered = f"answered {end.status_code}"
    if end.latency_ms is not None:
        answered += f" in {milliseconds(end.latency_ms)}"
    details = (size(end.body_bytes), answered)
    at = end.received_at
    return Step("received", True, "End-of-call received", at, "here", end.lag_s, details)
