"""The page of calls: today's totals, calls in progress, and one page of the list, with its exports.

An open page follows changes by fragments: a few elements that replace those of the same id.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Literal, TypeAlias

from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ..call_log.queries import call_list, ended_since, newest_end
from ..call_log.queries.filters import CallFilter
from ..call_log.queries.records import Call, LiveCall, Page, Today, Waiting
from ..call_log.queries.requests import is_empty
from ..call_log.redaction import masked_call, masked_listing
from ..call_log.results import names_of
from ..masking.places import Place
from ..protocol.prefetch import PrefetchRequest
from .call_filters import (
    ActiveFilter,
    Params,
    active_filters,
    list_query,
    params_of,
    read_columns,
    read_filter,
    read_page_size,
)
from .endpoints import Endpoints, OperatorRequest
from .formats import as_text, read_number
from .pages import PageRequest

#: Calls in progress that are shown; the others are counted.
MOST_LIVE_CARDS = 6
#: New calls are counted up to here.
MOST_NEW = 99
_MARK_DIGITS = 18

_TABS = {
    "all": "All",
    "completed": "Completed",
    "chat": "Chat",
    "voicemail": "Voicemail",
    "timeout": "Timeout",
    "unreached": "Unreached",
    "failed": "Failed",
    "lost": "No end received",
}
#: Filters with a place of their own above the list; the others are in a sheet.
_IN_SIGHT = frozenset({"q", "agent"})
#: Tabs that are left out while they have no calls: most teams never need them.
_RARE_TABS = frozenset({"unreached"})


def routes(endpoints: Endpoints) -> Iterator[Route]:
    """Yield the routes of the page, its fragment and its exports."""
    yield endpoints.fragment("/live/calls", "live_calls", follow_calls)
    yield from endpoints.page("/calls", "calls", list_calls)
    for format_ in _MEDIA_TYPES:
        path, name = f"/calls/export.{format_}", f"export_{format_}"
        yield endpoints.file(path, name, partial(_export, format_), role="operate")


@dataclass(frozen=True, slots=True)
class LiveCard:
    """A call in progress, with the first metadata of its prefetch as a hint."""

    call: Call
    elapsed_s: float
    hint: str | None


@dataclass(frozen=True, slots=True)
class Tab:
    """A tab over the list: its calls, how many there are, and the parameters that select it.

    The count is None where it would take too long; `capped` says that there are more.
    """

    outcome: str
    label: str
    count: int | None
    capped: bool
    params: Params
    is_current: bool
    is_alarm: bool = False


@dataclass(frozen=True, slots=True)
class CallsView:
    """What the page of calls shows.

    `params` are the filters that differ from the defaults, and `as_list` is the parameter that
    calls are opened with, to continue to their neighbors in the list. `more_filters` counts the
    active ones that are in the sheet. `mark` is the newest end of a call: later ones are new to the
    page. `is_new` tells that nothing was ever received.
    """

    filter: CallFilter
    params: Params
    as_list: Params
    page_size: int
    #: The results that have a column, and those to choose from.
    columns: tuple[str, ...]
    result_names: tuple[str, ...]
    active_filters: tuple[ActiveFilter, ...]
    more_filters: int
    page: Page
    tabs: tuple[Tab, ...]
    live: tuple[LiveCard, ...]
    live_count: int
    today: Today
    agents: tuple[str, ...]
    unparsed_count: int
    mark: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class FollowedCalls:
    """Changes of the page of calls: `new` calls of its list have ended since it was made."""

    live: tuple[LiveCard, ...]
    live_count: int
    waiting: Waiting
    last_prefetch_at: datetime | None
    params: Params
    new: int
    new_capped: bool


def list_calls(request: PageRequest) -> CallsView:
    """Build the page of calls that the query string describes; invalid filters are left out."""
    log, query, mask = request.log, request.query, request.settings.mask
    filters, page_size = read_filter(query, request.zone), read_page_size(query)
    mark = log.ask(newest_end)
    page = log.ask(
        call_list.list_calls,
        filters,
        now=request.now,
        before=query.get("before"),
        after=query.get("after"),
        size=page_size,
    )
    live = log.live_calls(now=request.now, source=filters.source)
    listed = list_query(filters)
    columns, names = read_columns(query), log.ask(names_of)
    params = params_of(filters, page_size, columns)
    active = tuple(active_filters(params, request.zone))
    return CallsView(
        filter=filters,
        params=params,
        as_list={"in": listed} if listed else {},
        page_size=page_size,
        columns=columns,
        result_names=tuple(name for name in names if mask.line(name) == name),
        active_filters=active,
        more_filters=sum(each.name not in _IN_SIGHT for each in active),
        page=replace(page, rows=tuple(masked_listing(row, mask) for row in page.rows)),
        tabs=tuple(_tabs(page, filters, params)),
        live=_live_cards(request, live),
        live_count=len(live),
        today=log.today(now=request.now, zone=request.zone),
        agents=log.agents(),
        unparsed_count=log.unparsed_count(),
        mark=mark,
        is_new=not page.rows and log.ask(is_empty),
    )


def follow_calls(request: PageRequest) -> FollowedCalls:
    """Build the fragment for a page of calls with these parameters and this `mark`."""
    filters = read_filter(request.query, request.zone)
    mark = read_number(request.query.get("mark", ""), digits=_MARK_DIGITS)
    new = 0 if mark is None else request.log.ask(ended_since, mark, filters, request.now)
    live = request.log.live_calls(now=request.now, source=filters.source)
    return FollowedCalls(
        live=_live_cards(request, live),
        live_count=len(live),
        waiting=request.log.waiting(now=request.now),
        last_prefetch_at=request.log.last_prefetch_at(),
        params=params_of(filters, read_page_size(request.query), read_columns(request.query)),
        new=min(new, MOST_NEW),
        new_capped=new > MOST_NEW,
    )


def _live_cards(request: PageRequest, live: Sequence[LiveCall]) -> tuple[LiveCard, ...]:
    return tuple(_live_card(request, call) for call in live[:MOST_LIVE_CARDS])


def _live_card(request: PageRequest, live: LiveCall) -> LiveCard:
    mask = request.settings.mask
    elapsed_s = (request.now - live.call.received_at).total_seconds()
    query = PrefetchRequest.parse((live.prefetch_query or "").encode("utf-8", "replace"))
    metadata = mask.payload(dict(query.metadata), Place.WORDS)
    hint = None
    if isinstance(metadata, dict) and metadata:
        key, value = next(iter(metadata.items()))
        hint = f"{key} {as_text(value)}"
    return LiveCard(masked_call(live.call, mask), max(elapsed_s, 0), hint)


def _tabs(page: Page, filters: CallFilter, params: Params) -> Iterator[Tab]:
    """Yield a tab for each outcome that is common, there or chosen, and one for failed handlers."""
    is_failed = filters.handler == "failed" and filters.outcome is None
    current = None if is_failed else filters.outcome or "all"
    left_out = {"outcome", "handler"} if is_failed else {"outcome"}
    others = {name: value for name, value in params.items() if name not in left_out}
    for outcome, label in _TABS.items():
        # Under the tab of failed handlers, outcomes are counted for these alone.
        count = None if is_failed else page.counts[outcome]
        if outcome not in _RARE_TABS or count != 0 or outcome == current:
            chosen = others if outcome == "all" else others | {"outcome": outcome}
            is_capped = count is not None and outcome in page.at_least
            yield Tab(outcome, label, count, is_capped, chosen, outcome == current)
        if outcome == "all" and (page.failed_handlers != 0 or is_failed):
            chosen, failed = others | {"handler": "failed"}, page.failed_handlers
            is_capped = failed is not None and failed >= call_list.MOST_COUNTED
            yield Tab("", "Failed handlers", failed, is_capped, chosen, is_failed, is_alarm=True)


Format: TypeAlias = Literal["csv", "jsonl"]

_MEDIA_TYPES: dict[Format, str] = {"csv": "text/csv", "jsonl": "application/x-ndjson"}


def _export(format_: Format, operator_request: OperatorRequest) -> Response:
    """Answer with the calls that the query string describes, read while they are sent.

    They are masked as pages are. With `bom` in the query, CSV begins with a byte order mark; with
    `excel` it also has numbers and ids as text. The audit log names the filters, not their values:
    a phone number does not belong there.
    """
    from ..call_log.transfer.export import export

    request = operator_request.page_request()
    filters, mask = read_filter(request.query, request.zone), request.settings.mask
    chunks = request.log.ask(
        export,
        filters,
        format_,
        mask,
        now=request.now,
        for_excel=bool(request.query.get("excel")),
    )
    if format_ == "csv" and (request.query.get("bom") or request.query.get("excel")):
        chunks = chain([BOM_UTF8], chunks)
    names = ", ".join(sorted(set(request.query)))
    operator_request.record("export", names or None)
    day = request.now.astimezone(request.zone).date()
    headers = {
        "Content-Disposition": f'attachment; filename="calls-{day}.{format_}"',
        # Compression would take time from the event loop of the webhooks.
        "Content-Encoding": "identity",
    }
    return StreamingResponse(chunks, media_type=_MEDIA_TYPES[format_], headers=headers)
