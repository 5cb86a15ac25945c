"""One call: what was said, what it cost, what we answered and what the handlers made of it.

The columns of the call log carry the facts; everything else is read from the raw deliveries, so
the page shows what Millis sent. What may not be seen is masked before a view is built.

What later ends of a call changed: which fields, from what to what, as far as it may be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import JsonValue

from ..call_log.call_ends import End, changes, end_of, put_together
from ..call_log.queries.records import Call, CallRecord, CostItem, Delivery, Run, State
from ..call_log.redaction import masked_call, masked_run
from ..masking.places import END_OF_CALL
from ..masking.policy import MaskPolicy
from ..protocol.events import EndOfCall
from .call_filters import Params, list_query, params_of, read_list, read_page_size
from .formats import as_text
from .pages import PageRequest
from .payloads import MOST_SHOWN, Entry, Payload, Room, entries_of, payload_of, read_bytes
from .runs import Notice, in_order, read_notice
from .timeline import EndReceived, Prefetch, Step, end_received, prefetch_of, steps_of
from .transcript import Function, Line, Transcript, functions_of, transcript_of

#: Fields of one end that are listed, and what is shown of a value.
_MOST_FIELDS = 50
_VALUE_CHARS = 200


@dataclass(frozen=True, slots=True)
class ChangedField:
    """A field that is not what it was. Of a value its beginning is shown, as text."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Changed:
    """What one end changed when it came in."""

    delivery_id: int
    received_at: datetime
    fields: tuple[ChangedField, ...]
    left_out: int


def changed_by(ends: Sequence[End], mask: MaskPolicy) -> Iterator[Changed]:
    """Yield what each end changed, in the order in which they came."""
    for end, before, after in changes(ends):
        names = [name for name in after.raw if after.raw[name] != before.raw.get(name)]
        fields = tuple(
            ChangedField(mask.line(name), _shown(before, name, mask), _shown(after, name, mask))
            for name in names[:_MOST_FIELDS]
        )
        left_out = max(len(names) - _MOST_FIELDS, 0)
        yield Changed(end.delivery_id, end.received_at, fields, left_out)


def _shown(call: EndOfCall, name: str, mask: MaskPolicy) -> str:
    value: JsonValue = call.raw.get(name)
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{len(value):,} item{'s' if len(value) != 1 else ''}"
    masked = mask.payload({name: value}, END_OF_CALL)
    shown = masked.get(name) if isinstance(masked, dict) else None
    text = as_text(shown)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"


@dataclass(frozen=True, slots=True)
class CostLine:
    """A line of the bill, with its share of the whole and where that begins, both 0 to 1."""

    item: CostItem
    share: float = 0
    offset: float = 0


@dataclass(frozen=True, slots=True)
class InList:
    """Where the call stands in the list it was opened from: the sessions next to it.

    `listed` names the list in the address of a call, and is empty for the one there is without
    filters; `params` do in its own.
    """

    listed: str
    params: Params
    newer: str | None
    older: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """What a call's page shows."""

    call: Call
    in_list: InList
    prints_all: bool
    recording_is_hidden: bool
    state: State
    elapsed_s: float
    prefetch: Prefetch | None
    end: EndReceived | None
    ends_received: int
    timeline: tuple[Step, ...]
    lines: tuple[Line, ...]
    lines_left_out: int
    functions: tuple[Function, ...]
    functions_left_out: int
    has_tools_in_place: bool
    average_latency_ms: float | None
    metadata: tuple[Entry, ...]
    metadata_left_out: int
    costs: tuple[CostLine, ...]
    runs: tuple[Run, ...]
    runs_left_out: int
    notice: Notice | None
    agent_config: JsonValue
    secrets_masked: int
    problems: tuple[str, ...]
    changes: tuple[Changed, ...]
    payloads: tuple[Payload, ...]
    deliveries_left_out: int
    live_count: int

    @property
    def unread(self) -> tuple[Payload, ...]:
        """The deliveries that could not be read."""
        return tuple(payload for payload in self.payloads if payload.outcome == "unparsed")

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


def show_call(asked: PageRequest) -> CallView | None:
    """Build the page of one call, or None if there is no such session."""
    record = asked.log.call(asked.path["session_id"])
    if record is None:
        return None
    call, mask, room = record.call, asked.settings.mask, Room()
    return CallView(
        call=masked_call(call, mask),
        in_list=_in_list(asked, call),
        prints_all=asked.query.get("print") == "full",
        recording_is_hidden=bool(call.recording_url) and mask.url(call.recording_url) is None,
        elapsed_s=max((asked.now - call.received_at).total_seconds(), 0),
        **_told(record, call.state(asked.now), mask),
        ends_received=sum(each.kind == "end_of_call" for each in record.deliveries),
        costs=tuple(_cost_lines(record.costs)),
        runs=in_order(masked_run(run, mask) for run in record.runs),
        runs_left_out=record.run_count - len(record.runs),
        notice=read_notice(asked.query),
        payloads=tuple(payload_of(delivery, mask, room) for delivery in record.deliveries),
        deliveries_left_out=max(record.delivery_count - len(record.deliveries), 0),
        live_count=asked.log.live_count(now=asked.now),
    )


def _in_list(asked: PageRequest, call: Call) -> InList:
    wanted = read_list(asked.query.get("in"), asked.zone)
    newer, older = asked.log.neighbours(call, wanted, now=asked.now)
    params = params_of(wanted, read_page_size({}))
    return InList(list_query(wanted), params, newer, older)


def _told(record: CallRecord, state: State, mask: MaskPolicy) -> dict[str, Any]:
    """The parts of the view that come from the bytes of the deliveries."""
    call = record.call
    asked, ended = _first(record.deliveries, "prefetch"), _end_delivery(record)
    ends = list(_read_ends(record.deliveries))
    answer, event = _answer(asked), put_together(ends).call if ends else None
    prefetch = prefetch_of(asked, answer, mask) if asked else None
    end = end_received(ended, call) if ended else None
    metadata = tuple(entries_of(event, asked, answer, mask))
    return {
        "state": state,
        "prefetch": prefetch,
        "end": end,
        "changes": tuple(changed_by(ends, mask)),
        "metadata": metadata[:MOST_SHOWN],
        "metadata_left_out": max(len(metadata) - MOST_SHOWN, 0),
        "timeline": tuple(steps_of(call, state, prefetch, end, metadata)),
        **_said(event, mask),
    }


def _said(event: EndOfCall | None, mask: MaskPolicy) -> dict[str, Any]:
    """The parts of the view that are read from the body of the end-of-call."""
    said = transcript_of(event, mask) if event else Transcript()
    functions = functions_of(event, mask) if event else ()
    sent = Room().beginning(event.agent_config if event else None)
    config = mask.masked(sent, END_OF_CALL["agent_config"])
    problems = event.problems if event else ()
    return {
        "lines": said.lines,
        "lines_left_out": said.left_out,
        "functions": functions,
        "functions_left_out": len(event.function_calls) - len(functions) if event else 0,
        "has_tools_in_place": said.has_tools,
        "average_latency_ms": event.average_latency_ms if event else None,
        "agent_config": config.value,
        "secrets_masked": config.count,
        "problems": tuple(map(str, problems)),
    }


def _first(deliveries: Iterable[Delivery], kind: str) -> Delivery | None:
    return next((delivery for delivery in deliveries if delivery.kind == kind), None)


def _end_delivery(record: CallRecord) -> Delivery | None:
    chosen = (each for each in record.deliveries if each.id == record.call.delivery_id)
    return next(chosen, None) or _first(record.deliveries, "end_of_call")


def _read_ends(deliveries: Iterable[Delivery]) -> Iterator[End]:
    """Read the ends that tell of the call; what repeats another's bytes does not."""
    for delivery in deliveries:
        is_told = delivery.kind == "end_of_call" and delivery.outcome == "stored"
        end = end_of(delivery) if is_told and delivery.body else None
        if end is not None:
            yield end


def _answer(prefetch: Delivery | None) -> dict[str, JsonValue]:
    answer = read_bytes(prefetch.answer) if prefetch and prefetch.answer else None
    return answer if isinstance(answer, dict) else {}


def _cost_lines(items: Sequence[CostItem]) -> Iterator[CostLine]:
    total = sum(item.credit for item in items if item.credit and item.credit > 0)
    offset = 0.0
    for item in items:
        share = item.credit / total if item.credit and item.credit > 0 else 0.0
        yield CostLine(item, share, offset)
        offset += share
