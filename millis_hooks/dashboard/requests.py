"""Every request to the webhooks as it came and as it was answered, those that were refused too.

What Millis sent that its documentation does not know: unknown is normal, and should be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from pydantic import JsonValue

from ..call_log.drift import COUNT_CAP, DriftGroup, masked_report
from ..call_log.queries.filters import RANGES
from ..call_log.queries.requests import KINDS, OUTCOMES, ListedRequest, RequestFilter, RequestPage
from ..call_log.rejections import StoredRejection
from ..masking.places import PREFETCH_QUERY
from ..masking.policy import MaskPolicy
from .call_filters import read_filter
from .formats import read_number
from .pages import PageRequest
from .payloads import Payload, payload_of, query_of

#: Beside `CallFilter.range`: most who look here look for what has just come.
_RANGE = "all"


@dataclass(frozen=True, slots=True)
class DeliveriesView:
    """One page of requests. `params` are the filters that are not the default.

    `unparsed_count` is how many deliveries could not be read, whatever the filter; it is capped.
    """

    filter: RequestFilter
    range: str
    params: Mapping[str, str]
    page: RequestPage
    outcomes: tuple[str, ...]
    unparsed_count: int
    live_count: int


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One delivery, whatever became of it; `was_reread` is just now, as somebody asked for."""

    payload: Payload
    was_reread: bool
    live_count: int


@dataclass(frozen=True, slots=True)
class RejectionView:
    """A refused request, and with it those that were like it."""

    rejection: StoredRejection
    query: JsonValue
    live_count: int


def list_deliveries(asked: PageRequest) -> DeliveriesView:
    """Build the page of requests that the query string asks for."""
    range_ = asked.query.get("range", "")
    range_ = range_ if range_ in RANGES else _RANGE
    wanted = _read(asked, range_)
    before, after = asked.query.get("before"), asked.query.get("after")
    page = asked.log.requests(wanted, before=before, after=after)
    mask = asked.settings.mask
    return DeliveriesView(
        filter=wanted,
        range=range_,
        params=_params(wanted, range_, asked.query),
        page=replace(page, rows=tuple(_masked(row, mask) for row in page.rows)),
        outcomes=OUTCOMES,
        unparsed_count=asked.log.unparsed_count(),
        live_count=asked.log.live_count(now=asked.now),
    )


def show_delivery(asked: PageRequest) -> DeliveryView | None:
    """Build the page of one delivery, or None if there is no such one."""
    number = read_number(asked.path["delivery_id"])
    delivery = None if number is None else asked.log.delivery(number)
    if delivery is None:
        return None
    payload = payload_of(delivery, asked.settings.mask)
    live_count = asked.log.live_count(now=asked.now)
    return DeliveryView(payload, "reread" in asked.query, live_count)


def show_rejection(asked: PageRequest) -> RejectionView | None:
    """Build the page of a refused request, or None if there is no such one."""
    number = read_number(asked.path["rejection_id"])
    found = None if number is None else asked.log.rejection(number)
    if found is None:
        return None
    query = asked.settings.mask.payload(query_of(found.query), PREFETCH_QUERY)
    shown = replace(found, query=urlencode(query, doseq=True) if isinstance(query, dict) else "")
    return RejectionView(shown, query, asked.log.live_count(now=asked.now))


def _read(asked: PageRequest, range_: str) -> RequestFilter:
    kind, outcome = asked.query.get("kind"), asked.query.get("outcome")
    period = replace(read_filter(asked.query, asked.zone), range=range_)
    since, until = period.period(asked.now)
    return RequestFilter(
        kind=kind if kind in KINDS else None,
        outcome=outcome if outcome in OUTCOMES else None,
        session_id=asked.query.get("session") or None,
        since=since,
        until=until,
    )


def _params(wanted: RequestFilter, range_: str, query: Mapping[str, str]) -> dict[str, str]:
    named = {
        "kind": wanted.kind,
        "outcome": wanted.outcome,
        "session": wanted.session_id,
        "range": range_ if range_ != _RANGE else None,
        "from": query.get("from") if wanted.since else None,
        "to": query.get("to") if wanted.until else None,
    }
    return {name: value for name, value in named.items() if value}


def _masked(row: ListedRequest, mask: MaskPolicy) -> ListedRequest:
    if row.reason is None:
        return row
    hide = mask.text if row.kind == "prefetch" and row.origin == "delivery" else mask.line
    return replace(row, reason=hide(row.reason))


@dataclass(frozen=True, slots=True)
class DriftView:
    """The drift report; counts that reach `count_cap` stop there."""

    groups: tuple[DriftGroup, ...]
    is_complete: bool
    count_cap: int
    live_count: int


def show_drift(asked: PageRequest) -> DriftView:
    """Build the page of the drift report."""
    report = masked_report(asked.log.drift(), asked.settings.mask)
    return DriftView(
        report.groups, report.is_complete, COUNT_CAP, asked.log.live_count(now=asked.now)
    )
