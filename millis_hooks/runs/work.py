"""What a run hands to its handler: the end-of-call it is about, or the run that is parked."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, select

from ..call_log.tables import attempts, calls, deliveries, handler_runs
from ..events import EndOfCall
from ..parked import ParkedRun
from .ledger import ClaimedRun


def event_of(
    reader: Engine, run: ClaimedRun, *, own_numbers: frozenset[str]
) -> EndOfCall | ParkedRun:
    """Read what the handler is called with.

    Raises PayloadError if the stored body can no longer be read, and SQLAlchemy's errors.
    """
    with reader.connect() as connection:
        call = EndOfCall.parse(_body(connection, run.call_id), own_numbers=own_numbers)
        if run.parked_run_id is None:
            return call
        return _parked_run(connection, run.parked_run_id, call)


def _body(connection: Connection, call_id: int) -> bytes:
    stored = (
        select(deliveries.c.body)
        .join(calls, calls.c.delivery_id == deliveries.c.id)
        .where(calls.c.id == call_id)
    )
    body: bytes = connection.execute(stored).scalar_one()
    return body


def _parked_run(connection: Connection, run_id: int, call: EndOfCall) -> ParkedRun:
    run = connection.execute(select(handler_runs).where(handler_runs.c.id == run_id)).one()
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
