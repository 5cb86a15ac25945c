"""The pages of deliveries, drift and rejected requests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from urllib.parse import urlencode

from pydantic import JsonValue
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ..call_log.drift import (
    COUNT_CAP,
    DriftGroup,
    count_new_drift,
    drift_report,
    masked_report,
    set_known,
)
from ..call_log.queries.filters import RANGES
from ..call_log.queries.paging import Paged
from ..call_log.queries.requests import (
    KINDS,
    OUTCOMES,
    ListedRequest,
    RequestFilter,
    is_session,
    list_requests,
)
from ..call_log.redaction import masked_reason
from ..call_log.rejections import StoredRejection, find_rejection
from ..call_log.writer import Write
from ..masking.places import PREFETCH_QUERY
from ..masking.policy import MaskPolicy
from .call_filters import read_filter
from .endpoints import Endpoints, OperatorRequest
from .formats import read_number
from .pages import PageRequest
from .payloads import Payload, payload_of, query_of

#: The default period of the list, unlike that of calls.
_RANGE = "all"


def routes(endpoints: Endpoints, write: Write) -> Iterator[Route]:
    """Yield the routes of the pages; `write` does work in a transaction of the call log."""
    yield from endpoints.page("/deliveries", "deliveries", list_deliveries)
    yield endpoints.fragment("/deliveries/live", "live_deliveries", follow_deliveries)
    yield from endpoints.page("/deliveries/drift", "drift", show_drift)
    yield endpoints.form("/deliveries/drift", "know_drift", _know_drift(write), page="drift")
    yield from endpoints.page("/deliveries/{delivery_id}", "delivery", show_delivery)
    yield from endpoints.page("/rejections/{rejection_id}", "rejection", show_rejection)
    yield from endpoints.moved("/drift", "drift")


@dataclass(frozen=True, slots=True)
class DeliveriesView:
    """One page of requests to the webhooks. `params` are the filters that differ from the defaults.

    `unparsed_count` counts all unparsed deliveries, `new_drift` what no operator has accepted,
    both up to a cap.
    """

    filter: RequestFilter
    range: str
    params: Mapping[str, str]
    page: Paged[ListedRequest]
    outcomes: tuple[str, ...]
    unparsed_count: int
    new_drift: int

    @property
    def mark(self) -> str:
        """The newest request of the page, from which later ones are counted."""
        return next(map(_mark, self.page.rows), "")


@dataclass(frozen=True, slots=True)
class NewRequests:
    """How many requests came since a page was made; `is_capped` if there are more."""

    params: Mapping[str, str]
    new: int
    is_capped: bool


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
    before, after = query.get("before"), query.get("after")
    page = log.ask(list_requests, filters=filters, before=before, after=after)
    return DeliveriesView(
        filter=filters,
        range=range_,
        params=_params(filters, range_, query),
        page=replace(page, rows=tuple(_masked(row, mask) for row in page.rows)),
        outcomes=OUTCOMES,
        unparsed_count=log.unparsed_count(),
        new_drift=log.ask(count_new_drift),
    )


def follow_deliveries(request: PageRequest) -> NewRequests:
    """Build the fragment for a page whose newest request is the `mark` of the query."""
    range_ = request.query.get("range", _RANGE)
    filters = _read(request, range_ if range_ in RANGES else _RANGE)
    rows = request.log.ask(list_requests, filters=filters).rows
    mark = request.query.get("mark", "")
    new = sum(1 for _ in takewhile(lambda row: _mark(row) != mark, rows))
    return NewRequests(_params(filters, range_, request.query), new, 0 < new == len(rows))


def _mark(row: ListedRequest) -> str:
    return f"{row.origin}-{row.id}"


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
    if number is None:
        return None
    rejection = request.log.ask(find_rejection, rejection_id=number)
    if rejection is None:
        return None
    query = request.settings.mask.payload(query_of(rejection.query), PREFETCH_QUERY)
    text = urlencode(query, doseq=True) if isinstance(query, dict) else ""
    return RejectionView(replace(rejection, query=text), query)


def _read(request: PageRequest, range_: str) -> RequestFilter:
    kind, outcome = request.query.get("kind"), request.query.get("outcome")
    period = replace(read_filter(request.query, request.zone), range=range_)
    since, until = period.period(request.now)
    text = request.query.get("session") or None
    is_whole = text is not None and request.log.ask(is_session, session_id=text)
    return RequestFilter(
        kind=kind if kind in KINDS else None,
        outcome=outcome if outcome in OUTCOMES else None,
        session_id=text if is_whole else None,
        text=None if is_whole else text,
        since=since,
        until=until,
    )


def _params(filters: RequestFilter, range_: str, query: Mapping[str, str]) -> dict[str, str]:
    named = {
        "kind": filters.kind,
        "outcome": filters.outcome,
        "session": filters.session_id or filters.text,
        "range": range_ if range_ != _RANGE else None,
        "from": query.get("from") if filters.since else None,
        "to": query.get("to") if filters.until else None,
    }
    return {name: value for name, value in named.items() if value}


def _masked(row: ListedRequest, mask: MaskPolicy) -> ListedRequest:
    kind = row.kind if row.origin == "delivery" else row.origin
    return replace(row, reason=masked_reason(row.reason, kind, mask))


@dataclass(frozen=True, slots=True)
class DriftView:
    """What Millis sent that its documentation does not describe; counts stop at `count_cap`.

    `keys` name the groups in the forms of the page.
    """

    groups: tuple[DriftGroup, ...]
    keys: tuple[str, ...]
    is_complete: bool
    count_cap: int
    unparsed_count: int
    new_drift: int


def show_drift(request: PageRequest) -> DriftView:
    """Build the page of the drift report."""
    log = request.log
    report = log.ask(drift_report)
    masked = masked_report(report, request.settings.mask)
    return DriftView(
        groups=masked.groups,
        keys=tuple(map(_key, report.groups)),
        is_complete=report.is_complete,
        count_cap=COUNT_CAP,
        unparsed_count=log.unparsed_count(),
        new_drift=sum(group.is_new for group in report.groups),
    )


def _know_drift(write: Write) -> Callable[[OperatorRequest], Response]:
    def submit(request: OperatorRequest) -> Response:
        """Accept what was found, or make it new again; 404 if it is not found any more."""
        page = request.page_request()
        report = page.log.ask(drift_report)
        chosen = [each for each in report.groups if _key(each) == request.fields.get("key")]
        if not chosen:
            raise HTTPException(404)
        is_known = request.fields.get("known") == "1"
        masked = masked_report(replace(report, groups=tuple(chosen)), page.settings.mask)
        for group, shown in zip(chosen, masked.groups, strict=True):
            write(partial(set_known, group=group, since=page.now if is_known else None))
            request.record("accept_drift" if is_known else "renew_drift", shown.place)
        return request.redirect("drift")

    return submit


def _key(group: DriftGroup) -> str:
    """Return a name of a group that says nothing about it."""
    return hashlib.sha256(f"{group.kind} {group.place}".encode()).hexdigest()[:16]
