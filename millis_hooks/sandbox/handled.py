"""What a receiver made of a call: its record in the call log, once the handlers are done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, exists, select

from ..call_log.arrivals import has_arrived
from ..call_log.queries import Queries
from ..call_log.records import Call, CallRecord, Delivery, Run
from ..call_log.tables import deliveries, inbox
from .expectations import StoredCall

T = TypeVar("T")

_PAUSE_S = 0.005
#: States of runs that are being done, or are about to be.
_UNDER_WAY = frozenset({"pending", "running"})


@dataclass(frozen=True, slots=True)
class HandledCall:
    """A call as the call log has it."""

    record: CallRecord

    @property
    def call(self) -> Call:
        """Its columns: status, outcome, numbers, costs."""
        return self.record.call

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs of its handlers, with every attempt."""
        return self.record.runs

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """Every request that came for it, and our answers."""
        return self.record.deliveries

    def run(self, handler: str) -> Run:
        """Return the latest run of a handler; raises `LookupError` if it was not called."""
        runs = [run for run in self.runs if run.handler == handler]
        if not runs:
            called = ", ".join(sorted({run.handler for run in self.runs})) or "none"
            raise LookupError(f"No handler {handler!r} was called for this call. Called: {called}.")
        return runs[-1]

    def stored(self) -> StoredCall:
        """Return what expectations are compared with."""
        return StoredCall(self.call.outcome, {run.handler: run.state for run in self.runs})


def handled_call(log: Queries, session_id: str, *, timeout_s: float) -> HandledCall | None:
    """Return the call as `wait_for_handlers` does, or at once None if its end is not in this log.

    It is stored before it is acknowledged, so there is nothing to wait for: either none was sent,
    or another receiver took it.
    """
    if not log.ask(partial(has_arrived, kind="end_of_call", session_id=session_id)):
        return None
    return wait_for_handlers(log, session_id, timeout_s=timeout_s)


def wait_for_handlers(log: Queries, session_id: str, *, timeout_s: float) -> HandledCall:
    """Return the call once it is stored and no handler is at work on it. Blocks.

    A handler that failed and waits for its next attempt is not waited for. Raises `TimeoutError`,
    which says what it was waiting for.
    """
    handled = wait_for(lambda: _handled(log, session_id), timeout_s=timeout_s)
    if handled is None:
        raise TimeoutError(_why(log, session_id, timeout_s))
    return handled


def wait_for(look: Callable[[], T | None], *, timeout_s: float) -> T | None:
    """Look again until there is something to see, and return it; None if there is not in time."""
    deadline = time.monotonic() + timeout_s
    while (seen := look()) is None and time.monotonic() < deadline:
        threading.Event().wait(_PAUSE_S)
    return seen


def _handled(log: Queries, session_id: str) -> HandledCall | None:
    if log.ask(lambda connection: _is_waiting(connection, session_id)):
        return None
    record = log.call(session_id)
    if record is None or any(run.state in _UNDER_WAY for run in record.runs):
        return None
    return HandledCall(record)


def _is_waiting(connection: Connection, session_id: str) -> bool:
    """Tell whether some delivery of the call was stored and not looked at yet."""
    waiting = (
        select(inbox.c.delivery_id)
        .join(deliveries, deliveries.c.id == inbox.c.delivery_id)
        .where(deliveries.c.session_id == session_id)
    )
    return bool(connection.scalar(select(exists(waiting))))


def _why(log: Queries, session_id: str, timeout_s: float) -> str:
    record = log.call(session_id)
    if record is None:
        return f"No call {session_id} was stored within {timeout_s:g} s."
    names = sorted({run.handler for run in record.runs if run.state in _UNDER_WAY})
    if not names:
        return f"The call {session_id} was not looked at within {timeout_s:g} s."
    return f"After {timeout_s:g} s these handlers are still at work: {', '.join(names)}."
