"""The timeline of a call: its events in order, and the clock that each was measured by.

Events stand in a list and not on one axis, where 84 ms beside four minutes would be invisible.
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

#: A longer lag between the two clocks only shows that they disagree.
_MOST_LAG_S = 3600
#: A longer duration is an error of Millis, and no end is derived from it.
_LONGEST_S = 365 * 24 * 3600

Kind = Literal["prefetch", "unasked", "started", "ended", "received", "live", "lost", "unended"]


@dataclass(frozen=True, slots=True)
class Prefetch:
    """The prefetch of a call and its answer."""

    received_at: datetime
    latency_ms: float | None
    outcome: str
    reason: str | None
    answered_keys: int
    extra_prompt: str | None


@dataclass(frozen=True, slots=True)
class EndReceived:
    """The end-of-call of the page; `lag_s` is from the end of the call to its arrival."""

    received_at: datetime
    body_bytes: int
    status_code: int
    latency_ms: float | None
    lag_s: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One event. `clock` is the one that measured it: here, or at Millis.

    `after_s` is the time since the event before, if both clocks can be compared.
    """

    kind: Kind
    went_well: bool
    title: str
    at: datetime | None = None
    clock: Literal["here", "millis"] | None = None
    after_s: float | None = None
    details: tuple[str, ...] = ()


def prefetch_of(delivery: Delivery, answer: dict[str, JsonValue], mask: MaskPolicy) -> Prefetch:
    """Return a prefetch with the JSON of its answer, masked."""
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
    """Return the end-of-call of a call."""
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
    """Return when a call ended by Millis' clock, if it sent a start and a duration."""
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
    """Yield the events of a call before its handlers."""
    yield _prefetched(prefetch, metadata)
    if call.started_at is not None:
        yield Step("started", True, "Call started", call.started_at, "millis")
    if end is not None:
        yield _ended(call)
        yield _received(end)
    elif state == "live":
        details = ("prefetch seen, end-of-call not yet received",)
        yield Step("live", True, "In progress", details=details)
    elif state == "unended":
        yield Step("unended", True, "No end was sent", details=("a sandbox call or a test",))
    else:
        yield Step("lost", False, "No end received", details=("no end-of-call webhook so far",))


def _prefetched(prefetch: Prefetch | None, metadata: Sequence[Entry]) -> Step:
    if prefetch is None:
        return Step("unasked", False, "No prefetch received")
    details = [] if prefetch.latency_ms is None else [f"in {milliseconds(prefetch.latency_ms)}"]
    is_fresh = prefetch.outcome == "fresh"
    if not is_fresh:
        details.append(f"fallback ({prefetch.outcome.replace('_', ' ')})")
    details += _changes(prefetch, metadata)
    if prefetch.extra_prompt:
        details.append(f"extra prompt {len(prefetch.extra_prompt):,} characters")
    at = prefetch.received_at
    return Step("prefetch", is_fresh, "Prefetch answered", at, "here", details=tuple(details))


def _changes(prefetch: Prefetch, metadata: Sequence[Entry]) -> Iterator[str]:
    count = Counter(entry.change for entry in metadata if entry.by == "prefetch")
    keys = f"metadata key{'s' if prefetch.answered_keys != 1 else ''}"
    yield f"{prefetch.answered_keys} {keys}"
    if count:
        yield " and ".join(f"{number} {change}" for change, number in count.items())


def _ended(call: Call) -> Step:
    details = () if call.duration_s is None else (f"{clock(call.duration_s)} long",)
    at = ended_at_of(call)
    return Step(
        "ended",
        call.outcome != "failed",
        status_label(call.call_status),
        at,
        "millis" if at else None,
        details=details,
    )


def _received(end: EndReceived) -> Step:
    latency = "" if end.latency_ms is None else f" in {milliseconds(end.latency_ms)}"
    details = (size(end.body_bytes), f"answered {end.status_code}{latency}")
    at = end.received_at
    return Step("received", True, "End-of-call received", at, "here", end.lag_s, details)
