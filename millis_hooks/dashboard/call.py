"""One call: what was said, what it cost, what we answered and what the handlers made of it.

The columns of the call log carry the facts; everything else is read from the raw deliveries, so
the page shows what Millis sent. What may not be seen is masked before a view is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import JsonValue

from ..call_log.masked_records import masked_call, masked_run
from ..call_log.records import Call, CallRecord, CostItem, Delivery, Run
from ..events import EndOfCall, PrefetchRequest
from ..exceptions import PayloadError
from ..masking import MaskPolicy
from ..payload_places import END_OF_CALL, Place
from .formats import as_text
from .pages import Asked
from .payloads import Payload, payload_of, read_bytes, reason_of
from .runs import Notice, in_order, read_notice
from .transcript import LINES_SHOWN, Function, Line, functions_of, lines_of

Change = Literal["added", "changed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A metadata key. `change` says what happened to it at the prefetch, where that is known."""

    key: str
    value: JsonValue
    before: JsonValue = None
    change: Change | None = None


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
class CostLine:
    """A line of the bill, with its share of the whole and where that begins, both 0 to 1."""

    item: CostItem
    share: float = 0
    offset: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """What a call's page shows."""

    call: Call
    recording_is_hidden: bool
    state: Literal["live", "lost", "ended"]
    elapsed_s: float
    prefetch: Prefetch | None
    end: EndReceived | None
    ends_received: int
    ended_at: datetime | None
    lines: tuple[Line, ...]
    lines_left_out: int
    functions: tuple[Function, ...]
    has_tools_in_place: bool
    average_latency_ms: float | None
    metadata: tuple[Entry, ...]
    costs: tuple[CostLine, ...]
    runs: tuple[Run, ...]
    runs_left_out: int
    notice: Notice | None
    agent_config: JsonValue
    secrets_masked: int
    problems: tuple[str, ...]
    payloads: tuple[Payload, ...]
    deliveries_left_out: int
    live_count: int

    @property
    def handled(self) -> tuple[Run, ...]:
        """How its handlers stand now: without what was replaced, and what tells of parked runs."""
        return tuple(run for run in self.runs if run.is_latest and run.hook == "end_of_call")

    @property
    def parked(self) -> tuple[Run, ...]:
        """Those of `handled` that somebody has to look after."""
        return tuple(run for run in self.handled if run.state == "parked")

    @property
    def retrying(self) -> tuple[Run, ...]:
        """Those of `handled` that wait for their next attempt, the next one first."""
        failed = (run for run in self.handled if run.state == "failed")
        return tuple(sorted(failed, key=lambda run: run.due_at or run.state_since))

    @property
    def handled_at(self) -> datetime | None:
        """When the last of `handled` ended, once all are over."""
        ends = [run.state_since for run in self.handled if run.is_over]
        return max(ends) if ends and len(ends) == len(self.handled) else None

    @property
    def slowest_ms(self) -> float:
        """What the longest attempt took."""
        return max((each.duration_ms or 0 for run in self.runs for each in run.attempts), default=0)

    def run(self, run_id: int | None) -> Run | None:
        """Return one of the runs shown here."""
        return next((run for run in self.runs if run.id == run_id), None)


def show_call(asked: Asked) -> CallView | None:
    """Build the page of one call, or None if there is no such session."""
    record = asked.log.call(asked.path["session_id"])
    if record is None:
        return None
    call, mask = record.call, asked.settings.mask
    end = _end_delivery(record)
    prefetch = _first(record.deliveries, "prefetch")
    answer = _answer(prefetch)
    return CallView(
        call=masked_call(call, mask),
        recording_is_hidden=bool(call.recording_url) and mask.url(call.recording_url) is None,
        state="live" if call.is_live(asked.now) else "lost" if call.is_lost(asked.now) else "ended",
        elapsed_s=max((asked.now - call.received_at).total_seconds(), 0),
        prefetch=_prefetch(prefetch, answer, mask) if prefetch else None,
        end=_end_received(end, call) if end else None,
        ends_received=sum(each.kind == "end_of_call" for each in record.deliveries),
        ended_at=_ended_at(call),
        **_said(_read_end(end), prefetch, answer, mask),
        costs=tuple(_cost_lines(record.costs)),
        runs=in_order(masked_run(run, mask) for run in record.runs),
        runs_left_out=record.run_count - len(record.runs),
        notice=read_notice(asked.query),
        payloads=tuple(payload_of(delivery, mask) for delivery in record.deliveries),
        deliveries_left_out=max(record.delivery_count - len(record.deliveries), 0),
        live_count=asked.log.live_count(now=asked.now),
    )


def _said(
    event: EndOfCall | None,
    prefetch: Delivery | None,
    answer: dict[str, JsonValue],
    mask: MaskPolicy,
) -> dict[str, Any]:
    """The parts of the view that are read from the body of the end-of-call."""
    lines = lines_of(event, mask) if event else ()
    config = mask.masked(event.agent_config if event else None, END_OF_CALL["agent_config"])
    problems = event.problems if event else ()
    return {
        "lines": lines[:LINES_SHOWN],
        "lines_left_out": max(len(lines) - LINES_SHOWN, 0),
        "functions": functions_of(event, mask) if event else (),
        "has_tools_in_place": any(line.tool for line in lines),
        "average_latency_ms": event.average_latency_ms if event else None,
        "metadata": tuple(_entries(event, prefetch, answer, mask)),
        "agent_config": config.value,
        "secrets_masked": config.count,
        "problems": tuple(map(str, problems)),
    }


def _first(deliveries: Iterable[Delivery], kind: str) -> Delivery | None:
    return next((delivery for delivery in deliveries if delivery.kind == kind), None)


def _end_delivery(record: CallRecord) -> Delivery | None:
    chosen = (each for each in record.deliveries if each.id == record.call.delivery_id)
    return next(chosen, None) or _first(record.deliveries, "end_of_call")


def _read_end(delivery: Delivery | None) -> EndOfCall | None:
    if delivery is None or delivery.body is None:
        return None
    try:
        return EndOfCall.parse(delivery.body)
    except PayloadError:
        return None


def _answer(prefetch: Delivery | None) -> dict[str, JsonValue]:
    answer = read_bytes(prefetch.answer) if prefetch and prefetch.answer else None
    return answer if isinstance(answer, dict) else {}


def _prefetch(delivery: Delivery, answer: dict[str, JsonValue], mask: MaskPolicy) -> Prefetch:
    metadata = answer.get("metadata")
    prompt = mask.payload(answer.get("extra_prompt"), Place.WORDS)
    return Prefetch(
        delivery.received_at,
        delivery.latency_ms,
        delivery.outcome,
        reason_of(delivery, mask),
        len(metadata) if isinstance(metadata, dict) else 0,
        prompt if isinstance(prompt, str) else None,
    )


def _ended_at(call: Call) -> datetime | None:
    if call.started_at is None or call.duration_s is None:
        return None
    try:
        return call.started_at + timedelta(seconds=call.duration_s)
    except OverflowError:
        return None


def _end_received(delivery: Delivery, call: Call) -> EndReceived:
    ended_at = _ended_at(call)
    lag_s = (delivery.received_at - ended_at).total_seconds() if ended_at else -1
    return EndReceived(
        delivery.received_at,
        delivery.body_bytes,
        delivery.status_code,
        delivery.latency_ms,
        # Two clocks: a difference that can be no lag says only that they disagree.
        lag_s if 0 <= lag_s < 3600 else None,
    )


def _entries(
    event: EndOfCall | None,
    prefetch: Delivery | None,
    answer: dict[str, JsonValue],
    mask: MaskPolicy,
) -> Iterator[Entry]:
    """Compare the metadata a call ended with to what its prefetch was asked with.

    Until the end is here, the answer merged over the question stands for it.
    """
    query = (prefetch.query or "").encode("utf-8", "replace") if prefetch else b""
    before: dict[str, JsonValue] = {**PrefetchRequest.parse(query).metadata}
    answered = answer.get("metadata")
    merged = before | (answered if isinstance(answered, dict) else {})
    after = event.metadata if event else merged
    shown_before = {key: shown for key, (_, shown) in zip(before, _seen(before, mask), strict=True)}
    seen = _seen(after, mask)
    for (key, value), (name, shown) in zip(after.items(), seen, strict=True):
        change: Change | None = None
        if prefetch is not None and key not in before:
            change = "added"
        elif prefetch is not None and as_text(value) != as_text(before[key]):
            change = "changed"
        yield Entry(name, shown, shown_before.get(key), change)


def _seen(metadata: dict[str, JsonValue], mask: MaskPolicy) -> Iterable[tuple[str, JsonValue]]:
    seen = mask.payload(metadata, Place.WORDS)
    assert isinstance(seen, dict)  # noqa: S101 - masking keeps the shape
    return seen.items()


def _cost_lines(items: Sequence[CostItem]) -> Iterator[CostLine]:
    total = sum(item.credit for item in items if item.credit and item.credit > 0)
    offset = 0.0
    for item in items:
        share = item.credit / total if item.credit and item.credit > 0 else 0.0
        yield CostLine(item, share, offset)
        offset += share
