"""Runs across calls: a list, their number, the handlers, and the failed runs of a list of calls.

Everything here only reads, on the caller's connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, and_, func, select, true

from ..sanitize import clean_text
from ..tables import IS_OF_CALL, IS_OPEN, attempts, calls, handler_runs, handlers
from .filters import ALL_CALLS, CallFilter, conditions_of, filters_of, is_of, within

_runs = handler_runs.c


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a list holds: those of the `calls`, by equality; None narrows nothing."""

    handler: str | None = None
    session_id: str | None = None
    state: str | None = None
    calls: CallFilter = ALL_CALLS


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRun:
    """A row of `handler_runs` as a list shows it, with the error of its last attempt if it failed.

    `max_attempts` is None when no handler of that name is registered any more.
    """

    id: int
    session_id: str
    hook: str
    handler: str
    state: str
    created_at: datetime
    is_replay: bool
    failed_run_id: int | None
    spent: int
    max_attempts: int | None
    state_since: datetime
    due_at: datetime | None
    reason: str | None
    error_type: str | None
    error_message: str | None


def list_runs(
    connection: Connection, filters: RunFilter, now: datetime, *, limit: int
) -> tuple[ListedRun, ...]:
    """List runs whose place no replay has taken, newest first."""
    newest = _LISTED.where(*_conditions(filters, now)).order_by(_runs.id.desc()).limit(limit)
    return tuple(ListedRun(**row) for row in connection.execute(newest).mappings())


def count_runs(connection: Connection, filters: RunFilter, now: datetime) -> Mapping[str, int]:
    """Count the runs whose place no replay has taken, by state; states without any are left out."""
    counted = select(_runs.state, func.count()).select_from(_OF_CALL)
    counted = counted.where(*_conditions(filters, now)).group_by(_runs.state)
    return dict(connection.execute(counted).all())


def handler_names(connection: Connection) -> tuple[str, ...]:
    """Name the end-of-call handlers of the application that started last, in alphabetical order."""
    named = select(handlers.c.name).where(handlers.c.hook == "end_of_call")
    return tuple(connection.scalars(named.order_by(handlers.c.name)))


def _conditions(filters: RunFilter, now: datetime) -> list[ColumnElement[bool]]:
    columns = {
        _runs.handler: filters.handler,
        calls.c.session_id: filters.session_id,
        _runs.state: filters.state,
    }
    narrowed = [
        column == clean_text(value) for column, value in columns.items() if value is not None
    ]
    return [_runs.is_latest, *narrowed, *conditions_of(filters.calls, now)]


_OF_CALL = handler_runs.join(calls, calls.c.id == _runs.call_id)

_LAST_NUMBER = (
    select(func.max(attempts.c.number))
    .where(attempts.c.run_id == _runs.id)
    .correlate(handler_runs)
    .scalar_subquery()
)

_OF_OTHERS = {
    "session_id": calls.c.session_id,
    "max_attempts": handlers.c.max_attempts,
    "error_type": attempts.c.error_type,
    "error_message": attempts.c.error_message,
}
_LISTED: Select[Any] = select(
    *(
        _OF_OTHERS[each.name] if each.name in _OF_OTHERS else _runs[each.name]
        for each in fields(ListedRun)
    )
).select_from(
    _OF_CALL.outerjoin(
        handlers, and_(handlers.c.hook == _runs.hook, handlers.c.name == _runs.handler)
    ).outerjoin(attempts, and_(attempts.c.run_id == _runs.id, attempts.c.number == _LAST_NUMBER))
)


#: The newest failed runs that are looked at for a list of calls.
MOST_FAILED = 20_000


class FailedRun(NamedTuple):
    """A failed run of an end-of-call handler."""

    id: int
    handler: str


_NEWEST_FAILED = (
    select(_runs.id, _runs.handler, _runs.call_id)
    .where(IS_OPEN, IS_OF_CALL, _runs.state == "failed")
    .order_by(_runs.id.desc())
    .limit(MOST_FAILED)
    .subquery()
)


def failed_runs(connection: Connection, filters: CallFilter, now: datetime) -> list[FailedRun]:
    """Return the failed runs of the calls that match, oldest first; of the newest 20,000."""
    newest = _NEWEST_FAILED
    others = (each.where for each in filters_of(filters))
    conditions = [*within(*filters.period(now)), is_of(filters.source), *others]
    matching = (
        select(newest.c.id, newest.c.handler)
        .join(calls, calls.c.id == newest.c.call_id)
        .where(*conditions)
        .order_by(newest.c.id)
    )
    return [FailedRun(*row) for row in connection.execute(matching)]


def newest_run(connection: Connection) -> int:
    """Return the id of the newest run."""
    return connection.scalar(select(func.max(_runs.id))) or 0


def replayed_states(connection: Connection, after: int, at: datetime) -> dict[str, int]:
    """Count by state the runs of a replay at that moment, all of which have an id above `after`."""
    of_replay = (_runs.id > after, _runs.created_at == at, _runs.is_replay == true())
    number = func.count().label("number")
    counted = select(_runs.state, number).where(*of_replay).group_by(_runs.state)
    return {row.state: row.number for row in connection.execute(counted)}


def retryable_handlers(connection: Connection) -> dict[str, bool]:
    """Return the registered handlers of end-of-calls, and whether each is repeatable."""
    registered = select(handlers.c.name, handlers.c.repeatable)
    of_end = registered.where(handlers.c.hook == "end_of_call")
    return {row.name: row.repeatable for row in connection.execute(of_end)}
