"""Reads and writes runs and their attempts, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from ..call_log.tables import IS_PENDING, attempts, calls, deliveries, handler_runs
from ..call_log.values import clean_text
from ..failures import Failure


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that is now ours to do, with the end-of-call it is about."""

    id: int
    handler: str
    attempt: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How one attempt ended: `succeeded`, `failed`, `timed_out`; or the call was `not_wanted`."""

    run_id: int
    attempt: int
    ended_at: datetime
    duration_ms: float
    outcome: str
    failure: Failure | None = None


def claim(connection: Connection, limit: int, now: datetime) -> list[ClaimedRun]:
    """Take up to `limit` pending runs, oldest first; their attempts count from here on."""
    pending = select(handler_runs.c.id).where(IS_PENDING).order_by(handler_runs.c.id).limit(limit)
    ids = list(connection.execute(pending).scalars())
    if not ids:
        return []
    connection.execute(
        update(handler_runs).where(handler_runs.c.id.in_(ids)).values(state="running")
    )
    claimed = [ClaimedRun(**row) for row in connection.execute(_claimed(ids)).mappings()]
    if claimed:
        connection.execute(
            insert(attempts),
            [{"run_id": run.id, "number": run.attempt, "started_at": now} for run in claimed],
        )
    return claimed


def record(connection: Connection, ends: Sequence[AttemptEnd]) -> None:
    """Write how attempts ended, and with them their runs; one nobody wanted leaves no trace."""
    unwanted = [end.run_id for end in ends if end.outcome == "not_wanted"]
    if unwanted:
        connection.execute(delete(handler_runs).where(handler_runs.c.id.in_(unwanted)))
    ended = [end for end in ends if end.outcome != "not_wanted"]
    if ended:
        connection.execute(_END_ATTEMPT, [_attempt_columns(end) for end in ended])
        connection.execute(_END_RUN, [{"run": end.run_id, "to": _state(end)} for end in ended])


_END_ATTEMPT = (
    update(attempts)
    .where(attempts.c.run_id == bindparam("run"), attempts.c.number == bindparam("attempt"))
    .values(
        {
            name: bindparam(name)
            for name in (
                "ended_at",
                "duration_ms",
                "outcome",
                "error_type",
                "error_message",
                "traceback",
            )
        }
    )
)

_END_RUN = (
    update(handler_runs).where(handler_runs.c.id == bindparam("run")).values(state=bindparam("to"))
)


def _claimed(ids: Sequence[int]) -> Any:
    earlier = select(func.count()).where(attempts.c.run_id == handler_runs.c.id).scalar_subquery()
    return (
        select(
            handler_runs.c.id,
            handler_runs.c.handler,
            (earlier + 1).label("attempt"),
            deliveries.c.body,
        )
        .join(calls, calls.c.id == handler_runs.c.call_id)
        .join(deliveries, deliveries.c.id == calls.c.delivery_id)
        .where(handler_runs.c.id.in_(ids))
        .order_by(handler_runs.c.id)
    )


def _state(end: AttemptEnd) -> str:
    return "succeeded" if end.outcome == "succeeded" else "failed"


def _attempt_columns(end: AttemptEnd) -> dict[str, Any]:
    failure = end.failure
    return {
        "run": end.run_id,
        "attempt": end.attempt,
        "ended_at": end.ended_at,
        "duration_ms": end.duration_ms,
        "outcome": end.outcome,
        "error_type": failure.error_type if failure else None,
        "error_message": clean_text(failure.message) if failure else None,
        "traceback": clean_text(failure.traceback) if failure else None,
    }
