"""One page of requests to the webhooks, newest first: deliveries and rejected requests.

The two are in tables of their own and listed as one, keyed by (received time, table, id). The Setup
page asks here what has arrived so far.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeAlias

from sqlalchemy import ColumnElement, Connection, Select, and_, func, literal, null, select, tuple_

from ..raw_body import length_of
from ..tables import IS_NOT_BEST, calls, deliveries, handlers, rejections
from .filters import aside, bindable

KINDS = ("prefetch", "end_of_call")
#: What became of a request.
OUTCOMES = ("fresh", "default", "last_good", "late", "failed", "stored", "unparsed", "rejected")

_Origin: TypeAlias = Literal["delivery", "rejection"]
#: Of those that came at the same moment, the later in this list counts as newer.
_ORIGINS: tuple[_Origin, ...] = ("rejection", "delivery")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """Which requests a list holds; None narrows nothing. `until` is exclusive; both are aware."""

    kind: str | None = None
    outcome: str | None = None
    session_id: str | None = None
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


@dataclass(frozen=True, slots=True)
class RequestPage:
    """One page of requests, newest first; a cursor is None where there is no further page."""

    rows: tuple[ListedRequest, ...]
    newer: str | None
    older: str | None


class _Place(NamedTuple):
    received_at: datetime
    rank: int
    id: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A part of the list, next to `after`, and the direction it is read in."""

    after: _Place | None
    newest_first: bool = True

    def holds(self, rank: int, at: ColumnElement[Any], id_: Any) -> list[ColumnElement[bool]]:
        if self.after is None:
            return []
        moment = literal(self.after.received_at, at.type)
        if rank == self.after.rank:
            here, there = tuple_(at, id_), tuple_(moment, literal(self.after.id, id_.type))
            return [here < there if self.newest_first else here > there]
        if (rank < self.after.rank) == self.newest_first:  # of the same moment, these are next
            return [at <= moment if self.newest_first else at >= moment]
        return [at < moment if self.newest_first else at > moment]

    def order(self, *key: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        return [each.desc() if self.newest_first else each.asc() for each in key]


def list_requests(
    connection: Connection,
    wanted: RequestFilter,
    *,
    before: str | None = None,
    after: str | None = None,
    size: int,
) -> RequestPage:
    """Find the page next to a cursor; one that cannot be read is ignored."""
    if (place := _place(after)) is not None:
        newer = _read(connection, wanted, _Stretch(place, newest_first=False), size + 1)
        if len(newer) > size:
            rows = newer[:size][::-1]
            return RequestPage(tuple(rows), _cursor_of(rows[0]), _cursor_of(rows[-1]))
        # Fewer than a page are newer: this is the first page.
    place = _place(before) if after is None else None
    rows = _read(connection, wanted, _Stretch(place), size + 1)
    more, rows = len(rows) > size, rows[:size]
    return RequestPage(
        tuple(rows),
        _cursor_of(rows[0]) if place is not None and rows else None,
        _cursor_of(rows[-1]) if more else None,
    )


def _read(
    connection: Connection, wanted: RequestFilter, stretch: _Stretch, limit: int
) -> list[ListedRequest]:
    chosen = [_delivered(wanted, stretch)]
    if wanted.outcome in (None, "rejected") and wanted.session_id is None:
        chosen.append(_refused(wanted, stretch))
    found = chain.from_iterable(connection.execute(each.limit(limit)).mappings() for each in chosen)
    rows = (ListedRequest(**_named(row)) for row in found)
    return sorted(rows, key=_key, reverse=stretch.newest_first)[:limit]


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def _delivered(wanted: RequestFilter, stretch: _Stretch) -> Select[Any]:
    d = deliveries.c
    at: ColumnElement[Any] = d.received_at
    if wanted.session_id is not None:
        at = aside(at)  # by the index of sessions, which have few each
    columns = select(
        literal("delivery").label("origin"),
        d.id,
        d.kind,
        d.received_at,
        null().label("method"),
        d.outcome,
        d.reason,
        d.status_code,
        d.latency_ms,
        func.coalesce(func.nullif(length_of(d.body), 0), func.length(d.query), 0).label("bytes"),
        d.session_id,
        d.source,
    )
    conditions = [*_in_time(wanted, at), *stretch.holds(1, at, d.id)]
    if wanted.kind is not None:
        conditions.append(aside(d.kind) == wanted.kind)
    if wanted.outcome is not None:
        conditions.append(_became(wanted.outcome))
    if wanted.session_id is not None:
        conditions.append(d.session_id == bindable(wanted.session_id))
    return columns.where(*conditions).order_by(*stretch.order(at, d.id))


def _became(outcome: str) -> ColumnElement[bool]:
    if outcome in ("fresh", "stored"):
        return aside(deliveries.c.outcome) == outcome
    return and_(IS_NOT_BEST, deliveries.c.outcome == outcome)


def _refused(wanted: RequestFilter, stretch: _Stretch) -> Select[Any]:
    r = rejections.c
    columns = select(
        literal("rejection").label("origin"),
        r.id,
        r.webhook.label("kind"),
        r.received_at,
        r.method,
        literal("rejected").label("outcome"),
        r.reason,
        r.status_code,
        null().label("latency_ms"),
        r.body_bytes.label("bytes"),
        null().label("session_id"),
        null().label("source"),
    )
    conditions = [*_in_time(wanted, r.received_at), *stretch.holds(0, r.received_at, r.id)]
    if wanted.kind is not None:
        conditions.append(r.webhook == wanted.kind)
    return columns.where(*conditions).order_by(*stretch.order(r.received_at, r.id))


def _in_time(wanted: RequestFilter, at: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    after = [at >= literal(wanted.since, at.type)] if wanted.since else []
    return [*after, at < literal(wanted.until, at.type)] if wanted.until else after


def _key(row: ListedRequest) -> _Place:
    return _Place(row.received_at, _ORIGINS.index(row.origin), row.id)


def _cursor_of(row: ListedRequest) -> str:
    place = _key(row)
    at = place.received_at.astimezone(UTC).isoformat().replace("+00:00", "Z")  # no + in addresses
    return f"{at},{place.rank},{place.id}"


def _place(cursor: str | None) -> _Place | None:
    received_at, _, key = (cursor or "").partition(",")
    rank, _, id_ = key.partition(",")
    if rank not in ("0", "1") or not (id_.isascii() and id_.isdigit() and len(id_) < 19):
        return None
    try:
        return _Place(datetime.fromisoformat(received_at).astimezone(UTC), int(rank), int(id_))
    except (ValueError, OverflowError):
        return None


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
    """A handler of the application that started last, and the filters it has."""

    hook: str
    name: str
    filters: Mapping[str, Sequence[str]]
    seen_at: datetime


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


def has_arrived(connection: Connection, *, kind: str, session_id: str) -> bool:
    """Tell whether a delivery of this session is stored."""
    c = deliveries.c
    known_as = bindable(session_id)
    found = select(c.id).where(c.session_id == known_as, c.kind == kind).limit(1)
    return connection.scalar(found) is not None


def open_session(connection: Connection, *, source: str, agent_id: str) -> str | None:
    """Return the newest session of a source that has not ended, if it is among the last calls."""
    c = calls.c
    last = select(func.max(c.id)).scalar_subquery()
    unended = select(c.session_id).where(
        c.id > last - NEWEST, c.source == source, c.agent_id == agent_id, c.ended_at.is_(None)
    )
    return connection.scalar(unended.order_by(c.id.desc()).limit(1))


def found_handlers(connection: Connection) -> tuple[FoundHandler, ...]:
    """List the handlers of the application that started last: prefetch first, in its order."""
    c = handlers.c
    order = {"prefetch": 0, "end_of_call": 1, "failed": 2}
    rows = connection.execute(select(c.hook, c.name, c.filters, c.seen_at)).all()
    found = [FoundHandler(hook, name, json.loads(said), at) for hook, name, said, at in rows]
    return tuple(sorted(found, key=lambda handler: (order.get(handler.hook, 3), handler.name)))
