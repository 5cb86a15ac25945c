"""One page of requests to the webhooks, newest first: deliveries and rejected requests.

The two are in tables of their own and listed as one. The Setup
page asks here what has arrived so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import chain
from typing import Any, Literal, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    func,
    literal,
    null,
    or_,
    select,
)

from ...exceptions import PayloadError
from ...protocol.reading import read_json
from ..raw_body import length_of
from ..statements import aside
from ..tables import BEST_OUTCOMES, IS_NOT_BEST, calls, deliveries, handlers, rejections
from .filters import bindable
from .paging import Paged, Place, Window, read_page

KINDS = ("prefetch", "function", "end_of_call")
#: What became of a request.
OUTCOMES = (
    *("fresh", "cached", "default", "last_good", "answered", "invalid", "late", "failed"),
    *("stored", "unparsed", "rejected"),
)

_Origin: TypeAlias = Literal["delivery", "rejection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """Which requests a list holds; None narrows nothing. `until` is exclusive; both are aware.

    `session_id` is a whole one, `text` a part of one, or of a reason.
    """

    kind: str | None = None
    outcome: str | None = None
    session_id: str | None = None
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRequest:
    """A request as a list shows it; `id` is that of a delivery or of a rejection.

    `bytes` are those of the body, of a prefetch those of its query; a rejection has those that its
    sender said it has.
    """

    origin: _Origin
    id: int
    kind: str
    received_at: datetime
    method: str | None
    outcome: str
    reason: str | None
    status_code: int
    latency_ms: float | None
    bytes: int | None
    session_id: str | None
    source: str | None
    #: The name of the function that was called.
    function: str | None


def list_requests(
    connection: Connection,
    filters: RequestFilter,
    *,
    before: str | None = None,
    after: str | None = None,
    size: int = 50,
) -> Paged[ListedRequest]:
    """List requests to the webhooks, refused ones too, newest first: the page next to a cursor; one
    that cannot be read is ignored."""

    def read(window: Window, limit: int) -> list[ListedRequest]:
        chosen = [_delivered(filters, window)]
        if filters.outcome in (None, "rejected") and filters.session_id is None:
            chosen.append(_refused(filters, window))
        found = (connection.execute(each.limit(limit)).mappings() for each in chosen)
        rows = (ListedRequest(**_named(row)) for row in chain.from_iterable(found))
        return sorted(rows, key=_place_of, reverse=window.newest_first)[:limit]

    window = Window(since=filters.since, until=filters.until)
    return read_page(read, _place_of, window=window, before=before, after=after, size=size)


def _place_of(row: ListedRequest) -> Place:
    """Return its place. A rejection has its id below 0: the two tables have ids of their own."""
    return Place(row.received_at, row.id if row.origin == "delivery" else -row.id)


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def _columns(table: Table, **others: ColumnElement[Any]) -> Select[Any]:
    """Select what a list shows: columns of the table by their names, `others`, or nothing."""
    return select(
        *(
            others.get(each.name, table.c.get(each.name, null())).label(each.name)
            for each in fields(ListedRequest)
        )
    )


def _delivered(filters: RequestFilter, window: Window) -> Select[Any]:
    d = deliveries.c
    at: ColumnElement[Any] = d.received_at
    if filters.session_id is not None:
        at = aside(at)  # by the index of sessions, which have few each
    size = func.coalesce(func.nullif(length_of(d.body), 0), func.length(d.query), 0)
    columns = _columns(deliveries, origin=literal("delivery"), bytes=size)
    conditions = window.holds(at, d.id)
    if filters.kind is not None:
        conditions.append(aside(d.kind) == filters.kind)
    if filters.outcome is not None:
        conditions.append(_became(filters.outcome))
    if filters.session_id is not None:
        conditions.append(d.session_id == bindable(filters.session_id))
    if filters.text is not None:
        conditions.append(or_(_contains(d.session_id, filters), _contains(d.reason, filters)))
    return columns.where(*conditions).order_by(*window.order(at, d.id))


def _contains(column: ColumnElement[Any], filters: RequestFilter) -> ColumnElement[bool]:
    return column.contains(bindable(filters.text or ""), autoescape=True)


def _became(outcome: str) -> ColumnElement[bool]:
    if outcome in BEST_OUTCOMES:
        return aside(deliveries.c.outcome) == outcome
    return and_(IS_NOT_BEST, deliveries.c.outcome == outcome)


def _refused(filters: RequestFilter, window: Window) -> Select[Any]:
    r = rejections.c
    columns = _columns(
        rejections,
        origin=literal("rejection"),
        kind=r.webhook,
        outcome=literal("rejected"),
        bytes=r.body_bytes,
    )
    conditions = window.holds(r.received_at, -r.id)
    if filters.kind is not None:
        conditions.append(r.webhook == filters.kind)
    if filters.text is not None:
        conditions.append(_contains(r.reason, filters))
    return columns.where(*conditions).order_by(*window.order(r.received_at, -r.id))


#: Deliveries that are looked at for the newest of each webhook: one that never comes must not have
#: the whole log read.
NEWEST = 1_000


@dataclass(frozen=True, slots=True)
class Arrival:
    """The newest delivery of a webhook; `source` says who sent it, unless Millis did."""

    delivery_id: int
    session_id: str | None
    received_at: datetime
    status_code: int
    latency_ms: float | None
    outcome: str
    source: str | None


@dataclass(frozen=True, slots=True)
class FoundHandler:
    """A handler of the application that started last, and the filters it has.

    `tool` is a function's entry among an agent's `tools`, without address and header.
    """

    hook: str
    name: str
    filters: Mapping[str, Sequence[str]]
    seen_at: datetime
    tool: Mapping[str, Any] | None = None


def is_empty(connection: Connection) -> bool:
    """Tell whether no call was ever received."""
    return connection.scalar(select(calls.c.id).limit(1)) is None


def newest(connection: Connection, *, kind: str, of_millis: bool) -> Arrival | None:
    """Return the newest delivery of a webhook among the last 1,000, or None."""
    c = deliveries.c
    last = select(func.max(c.id)).scalar_subquery()
    found = (
        select(c.id, c.session_id, c.received_at, c.status_code, c.latency_ms, c.outcome, c.source)
        .where(
            c.id > last - NEWEST,
            c.kind == kind,
            c.outcome != "rejected",
            c.source.is_(None) if of_millis else c.source.is_not(None),
        )
        .order_by(c.id.desc())
        .limit(1)
    )
    row = connection.execute(found).one_or_none()
    return None if row is None else Arrival(*row)


def answered_keys(connection: Connection) -> tuple[str, ...]:
    """Return the keys of the metadata that handlers last answered, among the last deliveries."""
    c = deliveries.c
    last = select(func.max(c.id)).scalar_subquery()
    fresh = select(c.answer).where(
        c.id > last - NEWEST, c.kind == "prefetch", c.outcome == "fresh", c.answer.is_not(None)
    )
    answer = connection.scalar(fresh.order_by(c.id.desc()).limit(1))
    try:
        answered = read_json(answer or b"")
    except PayloadError:
        return ()
    metadata = answered.get("metadata") if isinstance(answered, dict) else None
    return tuple(metadata) if isinstance(metadata, dict) else ()


def has_arrived(connection: Connection, *, kind: str, session_id: str) -> bool:
    """Tell whether a delivery of this session is stored."""
    c = deliveries.c
    known_as = bindable(session_id)
    found = select(c.id).where(c.session_id == known_as, c.kind == kind).limit(1)
    return connection.scalar(found) is not None


def is_session(connection: Connection, *, session_id: str) -> bool:
    """Tell whether any delivery of this session is stored."""
    known_as = deliveries.c.session_id == bindable(session_id)
    return connection.scalar(select(deliveries.c.id).where(known_as).limit(1)) is not None


def open_session(connection: Connection, *, source: str, agent_id: str) -> str | None:
    """Return the newest session of a source that has not ended, if it is among the last calls."""
    c = calls.c
    last = select(func.max(c.id)).scalar_subquery()
    unended = select(c.session_id).where(
        c.id > last - NEWEST, c.source == source, c.agent_id == agent_id, c.ended_at.is_(None)
    )
    return connection.scalar(unended.order_by(c.id.desc()).limit(1))


def stored_tools(connection: Connection, *, agent_id: str | None) -> list[Mapping[str, Any]]:
    """Return the functions of an agent as `Router.tools` does, of the application that started
    last."""
    return [
        each.tool
        for each in found_handlers(connection)
        if each.tool is not None and agent_id in each.filters.get("agent_id", [agent_id])
    ]


def _object(text: str | None) -> Mapping[str, Any] | None:
    return None if text is None else json.loads(text)


def found_handlers(connection: Connection) -> tuple[FoundHandler, ...]:
    """List the handlers of the application that started last: prefetch first, in its order."""
    c = handlers.c
    order = {"prefetch": 0, "function": 1, "end_of_call": 2, "failed": 3}
    rows = connection.execute(select(c.hook, c.name, c.filters, c.seen_at, c.tool)).all()
    found = [
        FoundHandler(row.hook, row.name, json.loads(row.filters), row.seen_at, _object(row.tool))
        for row in rows
    ]
    return tuple(sorted(found, key=lambda handler: (order.get(handler.hook, 4), handler.name)))
