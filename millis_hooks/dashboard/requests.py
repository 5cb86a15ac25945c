"""The pages of deliveries, drift and rejected requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from pydantic import JsonValue
from starlette.routing import Route

from ..call_log.drift import COUNT_CAP, DriftGroup, masked_report
from ..call_log.queries.filters import RANGES
from ..call_log.queries.paging import Paged
from ..call_log.queries.requests import KINDS, OUTCOMES, ListedRequest, RequestFilter
from ..call_log.rejections import StoredRejection
from ..masking.places import PREFETCH_QUERY
from ..masking.policy import MaskPolicy
from .call_filters import read_filter
from .endpoints import Endpoints
from .formats import read_number
from .pages import PageRequest
from .payloads import Payload, payload_of, query_of

#: The default period of the list, unlike that of calls.
_RANGE = "all"


def routes(endpoints: Endpoints) -> Iterator[Route]:
    """Yield the routes of the pages."""
    yield from endpoints.page("/deliveries", "deliveries", list_deliveries)
    yield from endpoints.page("/deliveries/{delivery_id}", "delivery", show_delivery)
    yield from endpoints.page("/rejections/{rejection_id}", "rejection", show_rejection)
    yield from endpoints.page("/drift", "drift", show_drift)


@dataclass(frozen=True, slots=True)
class DeliveriesView:
    """One page of requests to the webhooks. `params` are the filters that differ from the defaults.

    `unparsed_count` counts all unparsed deliveries, up to a cap.
    """

    filter: RequestFilter
    range: str
    params: Mapping[str, str]
    page: Paged[ListedRequest]
    outcomes: tuple[str, ...]
    unparsed_count: int


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One delivery; `was_reread` if an operator has just had it read again."""

    payload: Payload
    was_reread: bool


@dataclass(frozen=True, slots=True)
class RejectionView:
    """A rejected request."""

    rejection: StoredRejection
    query: JsonValue


def list_deliveries(request: PageRequest) -> DeliveriesView:
    """Build the page of requests that the query string describes."""
    query, log, mask = request.query, request.log, request.settings.mask
    range_ = query.get("range", "")
    range_ = range_ if range_ in RANGES else _RANGE
    filters = _read(request, range_)
    page = log.requests(filters, before=query.get("before"), after=query.get("after"))
    return DeliveriesView(
        filter=filters,
        range=range_,
        params=_params(filters, range_, query),
        page=replace(page, rows=tuple(_masked(row, mask) for row in page.rows)),
        outcomes=OUTCOMES,
        unparsed_count=log.unparsed_count(),
    )


def show_delivery(request: PageRequest) -> DeliveryView | None:
    """Build the page of one delivery, or None if there is none of this id."""
    number = read_number(request.path["delivery_id"])
    delivery = None if number is None else request.log.delivery(number)
    if delivery is None:
        return None
    return DeliveryView(payload_of(delivery, request.settings.mask), "reread" in request.query)


def show_rejection(request: PageRequest) -> RejectionView | None:
    """Build the page of a rejected request, or None if there is none of this id."""
    number = read_number(request.path["rejection_id"])
    rejection = None if number is None else request.log.rejection(number)
    if rejection is None:
        return None
    query = request.settings.mask.payload(query_of(rejection.query), PREFETCH_QUERY)
    text = urlencode(query, doseq=True) if isinstance(query, dict) else ""
    return RejectionView(replace(rejection, query=text), query)


def _read(request: PageRequest, range_: str) -> RequestFilter:
    kind, outcome = request.query.get("kind"), request.query.get("outcome")
    period = replace(read_filter(request.query, request.zone), range=range_)
    since, until = period.period(request.now)
    return RequestFilter(
        kind=kind if kind in KINDS else None,
        outcome=outcome if outcome in OUTCOMES else None,
        session_id=request.query.get("session") or None,
        since=since,
        until=until,
    )


def _params(filters: RequestFilter, range_: str, query: Mapping[str, str]) -> dict[str, str]:
    named = {
        "kind": filters.kind,
        "outcome": filters.outcome,
        "session": filters.session_id,
        "range": range_ if range_ != _RANGE else None,
        "from": query.get("from") if filters.since else None,
        "to": query.get("to") if filters.until else None,
    }
    return {name: value for name, value in named.items() if value}


def _masked(row: ListedRequest, mask: MaskPolicy) -> ListedRequest:
    if row.reason is None:
        return row
    hide = mask.text if row.kind == "prefetch" and row.origin == "delivery" else mask.line
    return replace(row, reason=hide(row.reason))


@dataclass(frozen=True, slots=True)
class DriftView:
    """What Millis sent that its documentation does not describe; counts stop at `count_cap`."""

    groups: tuple[DriftGroup, ...]
    is_complete: bool
    count_cap: int


def show_drift(request: PageRequest) -> DriftView:
    """Build the page of the drift report."""
    report = masked_report(request.log.drift(), request.settings.mask)
    return DriftView(report.groups, report.is_complete, COUNT_CAP)
