"""The timeline of a call: its events in order, and the clock that each was measured by.

Events stand in a list and not on one axis, where 84 ms beside four minutes would be invisible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from ..call_log.queries.records import Call, Delivery, Run, State
from .formats import clock, milliseconds, size, status_label
from .payloads import Entry, Payload, end_in, prefetch_in
from .runs import RunBar

#: A longer lag between the two clocks only shows that they disagree.
_MOST_LAG_S = 3600
#: A longer duration is an error of Millis, and no end is derived from it.
_LONGEST_S = 365 * 24 * 3600

Kind = Literal[
    "prefetch", "unasked", "started", "ended", "received", "live", "lost", "unended", "handled"
]
#: The look of an event: it went well or not, continues, or is only noted.
Mark = Literal["ok", "bad", "now", ""]

#: Outcome of a prefetch without an answer of the handlers -> why, and what was sent in its place.
FALLBACKS = {
    "late": ("was too slow", "the fallback was sent"),
    "failed": ("failed", "the fallback was sent"),
    "last_good": ("failed", "the last good answer for this caller was sent"),
    "default": ("failed", "the default answer was sent"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One event. `clock` is the one that measured it: here, or at Millis.

    `after_s` is the time since the event before, if both clocks can be compared.
    """

    kind: Kind
    mark: Mark
    title: str
    at: datetime | None = None
    clock: Literal["here", "millis"] | None = None
    after_s: float | None = None
    details: tuple[str, ...] = ()
    runs: tuple[RunBar, ...] = ()


def steps_of(
    call: Call,
    state: State,
    payloads: Sequence[Payload],
    metadata: Sequence[Entry],
    handled: Sequence[Run],
) -> Iterator[Step]:
    """Yield the events of a call; `handled` has the latest run of each handler of its end."""
    end = end_in(payloads, call)
    yield _prefetched(prefetch_in(payloads), metadata)
    if call.started_at is not None:
        yield Step("started", "now", "Call started", call.started_at, "millis")
    if end is not None:
        ended_at = _ended_at(call)
        yield _ended(call, ended_at)
        yield _received(end.delivery, ended_at)
    elif state == "live":
        details = ("end-of-call not yet received",)
        yield Step("live", "now", "In progress", details=details)
    elif state == "unended":
        yield Step("unended", "ok", "No end was sent", details=("a sandbox call or a test",))
    else:
        yield Step("lost", "bad", "No end received", details=("no end-of-call webhook so far",))
    if handled:
        yield _handled(handled, end.delivery if end else None)


def prompt_of(prefetch: Payload | None) -> str | None:
    """Return the extra prompt that a prefetch was answered with."""
    answer = prefetch.answer if prefetch else None
    prompt = answer.get("extra_prompt") if isinstance(answer, dict) else None
    return prompt if isinstance(prompt, str) and prompt else None


def _prefetched(prefetch: Payload | None, metadata: Sequence[Entry]) -> Step:
    if prefetch is None:
        return Step("unasked", "", "No prefetch received")
    delivery = prefetch.delivery
    details = [] if delivery.latency_ms is None else [f"in {milliseconds(delivery.latency_ms)}"]
    is_fresh = delivery.outcome in ("fresh", "cached")
    if delivery.outcome == "cached":
        details.append("from the cache")
    elif not is_fresh:
        details.append(", ".join(FALLBACKS.get(delivery.outcome, (delivery.outcome,))))
    details += _changes(prefetch, metadata)
    if prompt := prompt_of(prefetch):
        details.append(f"extra prompt {len(prompt):,} characters")
    at = delivery.received_at
    mark: Mark = "ok" if is_fresh else "bad"
    return Step("prefetch", mark, "Prefetch answered", at, "here", details=tuple(details))


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
    label = status_label(call.call_status)
    mark: Mark = "bad" if call.outcome == "failed" else "ok"
    return Step("ended", mark, label, at, "millis" if at else None, details=details)


def _received(end: Delivery, ended_at: datetime | None) -> Step:
    # Its own latency is known only after it was stored, and so it is not.
    details = (size(end.body_bytes), f"answered {end.status_code}")
    after_s = _lag_s(end.received_at, ended_at)
    return Step("received", "ok", "End-of-call received", end.received_at, "here", after_s, details)


def _handled(runs: Sequence[Run], end: Delivery | None) -> Step:
    bars = tuple(RunBar(run.handler, run.duration_ms, run.state) for run in runs)
    if not all(run.is_over for run in runs):
        is_idle = not any(run.state in ("pending", "running") for run in runs)
        title = "Handlers are retrying" if is_idle else "Handlers are running"
        return Step("handled", "now", title, runs=bars)
    at = max(run.state_since for run in runs)
    after_s = _lag_s(at, end.received_at if end else None)
    mark: Mark = "bad" if any(run.state == "failed" for run in runs) else "ok"
    return Step("handled", mark, "Handlers ran", at, "here", after_s, runs=bars)


def _lag_s(at: datetime, before: datetime | None) -> float | None:
    lag_s = (at - before).total_seconds() if before else -1
    return lag_s if 0 <= lag_s < _MOST_LAG_S else None
