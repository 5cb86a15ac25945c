"""The timeline of a call: its events in order, and the clock that each was measured by.

Events stand in a list and not on one axis, where 84 ms beside four minutes would be invisible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from ..call_log.queries.records import Call, Delivery, State
from .formats import clock, milliseconds, size, status_label
from .payloads import Entry, Payload, end_in, prefetch_in

#: A longer lag between the two clocks only shows that they disagree.
_MOST_LAG_S = 3600
#: A longer duration is an error of Millis, and no end is derived from it.
_LONGEST_S = 365 * 24 * 3600

Kind = Literal["prefetch", "unasked", "started", "ended", "received", "live", "lost", "unended"]


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


def steps_of(
    call: Call,
    state: State,
    payloads: Sequence[Payload],
    metadata: Sequence[Entry],
) -> Iterator[Step]:
    """Yield the events of a call before its handlers."""
    end = end_in(payloads, call)
    yield _prefetched(prefetch_in(payloads), metadata)
    if call.started_at is not None:
        yield Step("started", True, "Call started", call.started_at, "millis")
    if end is not None:
        ended_at = _ended_at(call)
        yield _ended(call, ended_at)
        yield _received(end.delivery, ended_at)
    elif state == "live":
        details = ("prefetch seen, end-of-call not yet received",)
        yield Step("live", True, "In progress", details=details)
    elif state == "unended":
        yield Step("unended", True, "No end was sent", details=("a sandbox call or a test",))
    else:
        yield Step("lost", False, "No end received", details=("no end-of-call webhook so far",))


def prompt_of(prefetch: Payload | None) -> str | None:
    """Return the extra prompt that a prefetch was answered with."""
    answer = prefetch.answer if prefetch else None
    prompt = answer.get("extra_prompt") if isinstance(answer, dict) else None
    return prompt if isinstance(prompt, str) and prompt else None


def _prefetched(prefetch: Payload | None, metadata: Sequence[Entry]) -> Step:
    if prefetch is None:
        return Step("unasked", False, "No prefetch received")
    delivery = prefetch.delivery
    details = [] if delivery.latency_ms is None else [f"in {milliseconds(delivery.latency_ms)}"]
    is_fresh = delivery.outcome == "fresh"
    if not is_fresh:
        details.append(f"fallback ({delivery.outcome.replace('_', ' ')})")
    details += _changes(prefetch, metadata)
    if prompt := prompt_of(prefetch):
        details.append(f"extra prompt {len(prompt):,} characters")
    at = delivery.received_at
    return Step("prefetch", is_fresh, "Prefetch answered", at, "here", details=tuple(details))


def _changes(prefetch: Payload, metadata: Sequence[Entry]) -> Iterator[str]:
    answered = prefetch.answer.get("metadata") if isinstance(prefetch.answer, dict) else None
    keys = len(answered) if isinstance(answered, dict) else 0
    yield f"{keys} metadata key{'s' if keys != 1 else ''}"
    count = Counter(entry.change for entry in metadata if entry.by == "prefetch")
    if count:
        yield " and ".join(f"{number} {change}" for change, number in count.items())


def _ended_at(call: Call) -> datetime | None:
    """Return when a call ended by Millis' clock, if it sent a start and a duration."""
    if call.started_at is None or call.duration_s is None or call.duration_s > _LONGEST_S:
        return None
    return call.started_at + timedelta(seconds=call.duration_s)


def _ended(call: Call, at: datetime | None) -> Step:
    details = () if call.duration_s is None else (f"{clock(call.duration_s)} long",)
    label, went_well = status_label(call.call_status), call.outcome != "failed"
    return Step("ended", went_well, label, at, "millis" if at else None, details=details)


def _received(end: Delivery, ended_at: datetime | None) -> Step:
    latency = "" if end.latency_ms is None else f" in {milliseconds(end.latency_ms)}"
    details = (size(end.body_bytes), f"answered {end.status_code}{latency}")
    at = end.received_at
    lag_s = (at - ended_at).total_seconds() if ended_at else -1
    after_s = lag_s if 0 <= lag_s < _MOST_LAG_S else None
    return Step("received", True, "End-of-call received", at, "here", after_s, details)
