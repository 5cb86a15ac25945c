"""What runs hand to their handlers: the end-of-call they are about, or the run that is parked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, bindparam, select

from ..call_log.ends import read_whole
from ..call_log.tables import attempts, calls, deliveries, handler_runs
from ..events import EndOfCall
from ..parked import ParkedRun
from .ledger import ClaimedRun

#: The bodies of calls, each with what is known of its sender, by the call's id.
Bodies = dict[int, Row[Any]]


def read_bodies(reader: Engine, runs: Iterable[ClaimedRun]) -> Bodies:
    """Read the end-of-call of each run; raises SQLAlchemy's errors."""
    with reader.connect() as connection:
        rows = connection.execute(_BODIES, {"ids": list({run.call_id for run in runs})})
        return {row.id: row for row in rows}


def event_of(
    reader: Engine, run: ClaimedRun, bodies: Bodies, *, own_numbers: frozenset[str]
) -> EndOfCall | ParkedRun:
    """Return what the handler is called with.

    Raises PayloadError if the stored body can no longer be read, KeyError if it is gone, and
    SQLAlchemy's errors.
    """
    told = bodies[run.call_id]
    call = _whole(reader, told, own_numbers)
    call._change = run.change
    call.mark(source=told.source, dry_run=told.dry_run)
    if run.parked_run_id is None:
        return call
    with reader.connect() as connection:
        return _parked_run(connection, run.parked_run_id, call)


def _whole(reader: Engine, told: Row[Any], own_numbers: frozenset[str]) -> EndOfCall:
    """Return what is known of a call, also where several ends tell of it."""
    if told.repeated:
        with reader.connect() as connection:
            whole = read_whole(connection, told.session_id, own_numbers=own_numbers)
        if whole is not None:
            return whole
    return EndOfCall.parse(told.body, own_numbers=own_numbers)


_IDS: Any = bindparam("ids", expanding=True)
_BODIES: Select[Any] = (
    select(
        calls.c.id,
        calls.c.session_id,
        calls.c.repeated,
        deliveries.c.body,
        deliveries.c.source,
        deliveries.c.dry_run,
        deliveries.c.trace,
    )
    .join(deliveries, deliveries.c.id == calls.c.delivery_id)
    .where(calls.c.id.in_(_IDS))
)


def _parked_run(connection: Connection, run_id: int, call: EndOfCall) -> ParkedRun:
    run = connection.execute(select(handler_runs).where(handler_runs.c.id == run_id)).one()
    call._change = run.change
    tried = select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.number.desc())
    tries = connection.execute(tried).all()
    return ParkedRun(
        run_id=run_id,
        call=call,
        handler=run.handler,
        reason=run.reason or "",
        attempts=len(tries),
        error_type=tries[0].error_type if tries else None,
        error_message=tries[0].error_message if tries else None,
        parked_at=run.state_since,
    )
