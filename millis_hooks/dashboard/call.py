"""The page of one call: its conversation, cost, webhooks and the runs of its handlers.

The columns of the call log carry the facts; everything else is read from the raw deliveries, so
the page shows what Millis sent. A view holds masked values only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from pydantic import JsonValue
from starlette.routing import Route

from ..call_log.call_ends import End, changes, end_of, put_together
from ..call_log.queries import MOST_OTHERS, calls_with
from ..call_log.queries.call_list import neighbors
from ..call_log.queries.records import Call, CostItem, Delivery, Run, State
from ..call_log.redaction import masked_call, masked_results, masked_run
from ..masking.places import END_OF_CALL
from ..masking.policy import MaskPolicy
from ..protocol.events import EndOfCall
from ..protocol.results import Result
from .call_copies import markdown_of, rehearsal_of
from .call_filters import Params, list_query, params_of, read_list
from .endpoints import Endpoints
from .formats import as_text, contact, phone
from .pages import PageRequest
from .payloads import (
    MOST_KEYS,
    Entry,
    Payload,
    Room,
    end_in,
    entries_of,
    kept_of,
    payload_of,
    prefetch_in,
)
from .runs import Notice, in_order, read_notice
from .security import RECORDING_POLICY
from .timeline import FALLBACKS, Step, prompt_of, steps_of
from .transcript import Conversation, conversation_of

#: Changed fields that are listed of one end-of-call, and characters of each value.
_MOST_FIELDS = 50
_MOST_VALUE_CHARS = 200


def routes(endpoints: Endpoints) -> Iterator[Route]:
    """Yield the routes of the page and its fragment."""
    path = "/calls/{session_id:anytext}"
    yield endpoints.fragment(f"/live{path}", "live_call", follow_call)
    yield from endpoints.page(path, "call", show_call, RECORDING_POLICY)


@dataclass(frozen=True, slots=True)
class ChangedField:
    """A changed field, with the beginnings of its values as text."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Changed:
    """The fields that one end-of-call changed when it arrived."""

    delivery_id: int
    received_at: datetime
    fields: tuple[ChangedField, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class CostLine:
    """A cost, with its share of the total and the sum of the shares before it, both 0 to 1."""

    item: CostItem
    share: float = 0
    offset: float = 0

    @property
    def provider(self) -> str:
        """The provider, unless it is called like the type."""
        provider = self.item.provider or ""
        return "" if provider == self.item.type else provider


@dataclass(frozen=True, slots=True)
class Party:
    """A number of the call, as it is and as it is written, and the other calls that have it.

    `others` are counted up to a limit: there may be more if `capped`.
    """

    number: str
    label: str
    others: int
    capped: bool


@dataclass(frozen=True, slots=True)
class InList:
    """The list that the call was opened from, and its neighbors there.

    `listed` is the query string of the list, `params` the same as parameters; both are empty for
    the list without filters.
    """

    listed: str
    params: Params
    newer: str | None
    older: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """What a call's page shows; the counts `..._left_out` are of what is only in the call log."""

    call: Call
    title: str
    parties: tuple[Party, ...]
    #: The parameters of a list that leaves out no call like this one.
    wide: Params
    in_list: InList
    prints_all: bool
    recording_is_hidden: bool
    state: State
    elapsed_s: float
    ends_received: int
    timeline: tuple[Step, ...]
    conversation: Conversation
    metadata: tuple[Entry, ...]
    metadata_left_out: int
    results: tuple[Result, ...]
    #: What handlers keep of the last prefetch.
    kept: tuple[Entry, ...]
    costs: tuple[CostLine, ...]
    runs: tuple[Run, ...]
    runs_left_out: int
    notice: Notice | None
    changes: tuple[Changed, ...]
    payloads: tuple[Payload, ...]
    deliveries_left_out: int
    #: A summary in Markdown, and the fields of a sandbox draft that begins as the call did.
    markdown: str
    rehearsal: Mapping[str, str]

    @property
    def prefetch(self) -> Payload | None:
        """The first prefetch."""
        return prefetch_in(self.payloads)

    @property
    def extra_prompt(self) -> str | None:
        """The extra prompt that the prefetch was answered with."""
        return prompt_of(self.prefetch)

    @property
    def fallback(self) -> tuple[str, ...]:
        """Why the prefetch had no answer of the handlers, and what was sent; empty if it had."""
        outcome = self.prefetch.delivery.outcome if self.prefetch else "fresh"
        return (
            ()
            if outcome in ("fresh", "cached")
            else FALLBACKS.get(outcome, (outcome.replace("_", " "),))
        )

    @property
    def end(self) -> Payload | None:
        """The end-of-call that counts."""
        return end_in(self.payloads, self.call)

    @property
    def unread(self) -> tuple[Payload, ...]:
        """The unparsed deliveries."""
        return tuple(payload for payload in self.payloads if payload.delivery.outcome == "unparsed")

    @property
    def handled(self) -> tuple[Run, ...]:
        """The latest run of each handler of the end-of-call."""
        return handled(self.runs)

    @property
    def failed(self) -> tuple[Run, ...]:
        """Those of `handled` that will not be tried again by themselves."""
        return tuple(run for run in self.handled if run.state == "failed")

    @property
    def replaying(self) -> tuple[Run, ...]:
        """Those of `handled` that are replays and have not ended yet."""
        at_work = ("pending", "running")
        return tuple(run for run in self.handled if run.is_replay and run.state in at_work)

    @property
    def retrying(self) -> tuple[Run, ...]:
        """Those of `handled` that wait for their next attempt, the soonest first."""
        retrying = (run for run in self.handled if run.state == "retrying")
        return tuple(sorted(retrying, key=lambda run: run.due_at or run.state_since))

    @property
    def is_settled(self) -> bool:
        """Whether nothing more happens to the call by itself."""
        return self.state != "live" and all(run.is_over for run in self.handled)

    @property
    def slowest_ms(self) -> float:
        """The duration of the longest attempt."""
        return max((each.duration_ms or 0 for run in self.runs for each in run.attempts), default=0)

    def run(self, run_id: int | None) -> Run | None:
        """Return one of `runs` by its id."""
        return next((run for run in self.runs if run.id == run_id), None)


@dataclass(frozen=True, slots=True)
class FollowedCall:
    """Changes of a call's page; `listed` is the list that it was opened from."""

    session_id: str
    listed: str | None
    state: State
    has_ended: bool


def show_call(request: PageRequest) -> CallView | None:
    """Build the page of one call, or None if there is no such session."""
    record = request.log.call(request.path["session_id"])
    if record is None:
        return None
    call, mask, room = record.call, request.settings.mask, Room()
    state, ends = call.state(request.now), list(_read_ends(record.deliveries))
    event = put_together(ends).call if ends else None
    payloads = tuple(payload_of(delivery, mask, room) for delivery in record.deliveries)
    prefetches = [each for each in record.deliveries if each.kind == "prefetch"]
    metadata = tuple(entries_of(event, next(iter(prefetches), None), mask))
    runs = in_order(masked_run(run, mask) for run in record.runs)
    masked = masked_call(call, mask)
    conversation = conversation_of(event, payloads, mask)
    failed = [run for run in handled(runs) if run.state == "failed"]
    address = f"{request.address}/calls/{quote(call.session_id, safe='', errors='replace')}"
    agent = request.settings.agents.label(call.agent_id)
    return CallView(
        call=masked,
        title=contact(masked),
        parties=tuple(_parties(request, call, masked)),
        wide={"range": "all", **({"source": "all"} if call.is_made_up else {})},
        in_list=_in_list(request, call),
        prints_all=request.query.get("print") == "full",
        recording_is_hidden=bool(call.recording_url) and mask.url(call.recording_url) is None,
        state=state,
        elapsed_s=max((request.now - call.received_at).total_seconds(), 0),
        ends_received=sum(each.kind == "end_of_call" for each in record.deliveries),
        timeline=tuple(steps_of(call, state, payloads, metadata, handled(runs))),
        conversation=conversation,
        metadata=metadata[:MOST_KEYS],
        metadata_left_out=max(len(metadata) - MOST_KEYS, 0),
        results=masked_results(record.results, mask),
        kept=tuple(kept_of(prefetches[-1], mask)) if prefetches else (),
        costs=tuple(_cost_lines(record.costs)),
        runs=runs,
        runs_left_out=record.run_count - len(record.runs),
        notice=read_notice(request.notice, runs),
        changes=tuple(_changes(ends, mask)),
        payloads=payloads,
        deliveries_left_out=max(record.delivery_count - len(record.deliveries), 0),
        markdown=markdown_of(masked, agent, failed, address, request.zone),
        rehearsal=rehearsal_of(masked, metadata, conversation),
    )


def handled(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Return the latest run of each handler of the end-of-call."""
    return tuple(run for run in runs if run.is_latest and run.hook == "end_of_call")


def follow_call(request: PageRequest) -> FollowedCall | None:
    """Build the fragment for a call's page, which showed the call in the state `seen`."""
    call = request.log.standing(request.path["session_id"])
    if call is None:
        return None
    state = call.state(request.now)
    has_ended = state == "ended" and request.query.get("seen") in ("live", "lost")
    return FollowedCall(call.session_id, request.query.get("in"), state, has_ended)


def _in_list(request: PageRequest, call: Call) -> InList:
    filters = read_list(request.query.get("in"), request.zone)
    newer, older = request.log.ask(neighbors, call, filters, request.now)
    return InList(list_query(filters), params_of(filters), newer, older)


def _parties(request: PageRequest, call: Call, masked: Call) -> Iterator[Party]:
    """Yield the customer's number, or both where the direction is unknown; none that is masked."""
    is_known = bool(call.direction and call.customer_phone)
    names = ("customer_phone",) if is_known else ("from_phone", "to_phone")
    for name in names:
        number: str | None = getattr(call, name)
        if number and number == getattr(masked, name):
            others = request.log.ask(calls_with, number=number, besides=call)
            capped = others >= MOST_OTHERS
            yield Party(number, phone(number), min(others, MOST_OTHERS), capped)


def _changes(ends: Sequence[End], mask: MaskPolicy) -> Iterator[Changed]:
    """Yield what each end-of-call changed, in the order of arrival."""
    for end, before, after in changes(ends):
        names = [name for name in after.raw if after.raw[name] != before.raw.get(name)]
        fields = tuple(
            ChangedField(mask.line(name), _value(before, name, mask), _value(after, name, mask))
            for name in names[:_MOST_FIELDS]
        )
        left_out = max(len(names) - _MOST_FIELDS, 0)
        yield Changed(end.delivery_id, end.received_at, fields, left_out)


def _value(event: EndOfCall, name: str, mask: MaskPolicy) -> str:
    value: JsonValue = event.raw.get(name)
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{len(value):,} item{'s' if len(value) != 1 else ''}"
    masked = mask.payload({name: value}, END_OF_CALL)
    text = as_text(masked.get(name) if isinstance(masked, dict) else None)
    return text if len(text) <= _MOST_VALUE_CHARS else f"{text[:_MOST_VALUE_CHARS]}…"


def _read_ends(deliveries: Iterable[Delivery]) -> Iterator[End]:
    """Yield the end-of-calls that could be read, without those that repeat the bytes of another."""
    for delivery in deliveries:
        is_read = delivery.kind == "end_of_call" and delivery.outcome == "stored"
        end = end_of(delivery) if is_read and delivery.body else None
        if end is not None:
            yield end


def _cost_lines(items: Sequence[CostItem]) -> Iterator[CostLine]:
    total = sum(item.credit for item in items if item.credit and item.credit > 0)
    offset = 0.0
    for item in items:
        share = item.credit / total if item.credit and item.credit > 0 else 0.0
        yield CostLine(item, share, offset)
        offset += share
