"""What has come in so far, for a person who connects an agent: questions for `Queries.ask`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from .filters import bindable
from .tables import calls, deliveries, handlers

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
    order = {"prefetch": 0, "end_of_call": 1, "parked": 2}
    rows = connection.execute(select(c.hook, c.name, c.filters, c.seen_at)).all()
    found = [FoundHandler(hook, name, json.loads(said), at) for hook, name, said, at in rows]
    return tuple(sorted(found, key=lambda handler: (order.get(handler.hook, 3), handler.name)))
