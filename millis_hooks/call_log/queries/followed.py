"""What has happened to calls since the last look, for `millis-hooks tail`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, case, func, literal, or_, select

from ..tables import attempts, calls, deliveries, handler_runs, inbox

#: So much is read in one look; the rest is in the next.
MOST_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """A request to a webhook that was processed, or an attempt at a run that ended.

    `kind` is prefetch, end_of_call or attempt; `duration_ms` is what our answer or the attempt
    took, `duration_s` the length of the call. `run_state` is what the attempt left its run in.
    """

    at: datetime
    kind: str
    session_id: str | None
    outcome: str
    duration_ms: float | None = None
    agent_id: str | None = None
    customer_phone: str | None = None
    call_status: str | None = None
    duration_s: float | None = None
    cost_total: float | None = None
    handler: str | None = None
    attempt: int | None = None
    run_state: str | None = None
    error: str | None = None


class Follower:
    """Remembers what was seen. Begins `last` requests and as many attempts before now."""

    def __init__(self, connection: Connection, *, last: int = 0) -> None:
        self._delivery_id = _before_last(connection, deliveries.c.id, last)
        self._attempt_id = _before_last(connection, attempts.c.id, last)
        self._at_work: set[int] = set()

    def look(self, connection: Connection) -> list[Happening]:
        """Return what has happened since, the oldest first."""
        arrived = connection.execute(_ARRIVED, {"after": self._delivery_id}).all()
        if arrived:
            self._delivery_id = arrived[-1].id
        tried = self._ended(connection)
        return sorted(map(_happening, (*arrived, *tried)), key=lambda happening: happening.at)

    def _ended(self, connection: Connection) -> list[Row[Any]]:
        """Return the attempts that have ended, and remember those that have not."""
        parameters = {"after": self._attempt_id, "at_work": sorted(self._at_work)}
        tried = connection.execute(_TRIED, parameters).all()
        self._attempt_id = max([self._attempt_id, *(row.id for row in tried)])
        self._at_work = {row.id for row in tried if row.outcome is None}
        return [row for row in tried if row.outcome is not None]


def _before_last(connection: Connection, column: Any, last: int) -> int:
    """Return the id after which the last rows follow; new rows only, if `last` is 0."""
    if not last:
        return connection.scalar(select(func.max(column))) or 0
    newest = select(column).order_by(column.desc()).limit(last)
    found = connection.scalars(newest).all()
    return found[-1] - 1 if found else 0


def _happening(row: Row[Any]) -> Happening:
    return Happening(**{name: value for name, value in row._mapping.items() if name != "id"})


#: A delivery and those behind it are not shown until it is processed.
_UNPROCESSED = select(func.min(inbox.c.delivery_id)).scalar_subquery()

_ARRIVED: Select[Any] = (
    select(
        deliveries.c.id,
        deliveries.c.kind,
        deliveries.c.session_id,
        deliveries.c.received_at.label("at"),
        deliveries.c.outcome,
        deliveries.c.reason.label("error"),
        deliveries.c.latency_ms.label("duration_ms"),
        calls.c.agent_id,
        calls.c.customer_phone,
        *(
            case((deliveries.c.kind == "end_of_call", calls.c[name])).label(name)
            for name in ("call_status", "duration_s", "cost_total")
        ),
    )
    .select_from(deliveries.outerjoin(calls, calls.c.session_id == deliveries.c.session_id))
    .where(
        deliveries.c.id > bindparam("after"),
        deliveries.c.id < func.coalesce(_UNPROCESSED, bindparam("unbounded", 2**63 - 1)),
    )
    .order_by(deliveries.c.id)
    .limit(MOST_AT_ONCE)
)

_AT_WORK: Any = bindparam("at_work", expanding=True)

_TRIED: Select[Any] = (
    select(
        attempts.c.id,
        literal("attempt").label("kind"),
        attempts.c.number.label("attempt"),
        # one that was interrupted has no end
        func.coalesce(attempts.c.ended_at, attempts.c.started_at).label("at"),
        attempts.c.duration_ms,
        attempts.c.outcome,
        func.coalesce(
            attempts.c.error_type + ": " + func.nullif(attempts.c.error_message, ""),
            attempts.c.error_type,
        ).label("error"),
        handler_runs.c.handler,
        handler_runs.c.state.label("run_state"),
        calls.c.session_id,
        calls.c.agent_id,
        calls.c.customer_phone,
    )
    .select_from(
        attempts.join(handler_runs, handler_runs.c.id == attempts.c.run_id).join(
            calls, calls.c.id == handler_runs.c.call_id
        )
    )
    .where(or_(attempts.c.id > bindparam("after"), attempts.c.id.in_(_AT_WORK)))
    .order_by(attempts.c.id)
    .limit(MOST_AT_ONCE)
)
