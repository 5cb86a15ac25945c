"""Decides the state of a run after an attempt: succeeded, retried later, or failed.

Also stores the registered handlers, for pages and commands that do not import the application.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete

from ..call_log.dialects import upsert
from ..call_log.tables import handlers
from ..exceptions import HandlerError, HandlerTimeoutError
from ..handlers.handler_call import DEFAULT_TIMEOUT_S, NOT_WANTED, Handler, HandlerResult
from ..handlers.retries import GiveUp, Retry
from ..masking.error_report import describe_failure
from ..protocol.results import Results
from .store import AttemptEnd, ClaimedRun

#: Outcomes of attempts, without `not_wanted`: the filter of the handler rejected the call.
OUTCOMES = ("succeeded", "failed", "timed_out", "retry", "gave_up", "handed_back")


class HandedBackError(HandlerError):
    """The service stopped before the handler ended."""


def end_of_attempt(
    run: ClaimedRun,
    handler: Handler,
    finished: HandlerResult,
    now: datetime,
    random: Callable[[], float],
) -> AttemptEnd:
    """Return how the attempt ended, and the state of its run from `now` on."""
    error = finished.error
    if error is None:
        state: dict[str, Any] = {"state": "succeeded"}
        if isinstance(finished.value, Results):
            problems = "; ".join(finished.value.problems)
            state |= {"results": finished.value.values, "reason": problems or None}
    elif isinstance(error, HandedBackError):
        state = {"state": "pending"}
    else:
        state = _after_failure(run, handler, error, now, random) | {
            "failure": describe_failure(error)
        }
    return AttemptEnd(
        run=run,
        ended_at=now,
        duration_ms=finished.duration_ms,
        outcome=_outcome(finished),
        **state,
    )


def _after_failure(
    run: ClaimedRun,
    handler: Handler,
    error: BaseException,
    now: datetime,
    random: Callable[[], float],
) -> dict[str, Any]:
    request = _request(error)
    if isinstance(request, GiveUp):
        return {"state": "failed", "reason": describe_failure(request).message or "given up"}
    if run.spent >= handler.max_attempts:
        return {
            "state": "failed",
            "reason": f"{run.spent} of {handler.max_attempts} attempts failed",
        }
    delay_s = request.after_s if request else handler.retry_backoff.delay_s(run.spent, random)
    return {"state": "retrying", "due_at": now + timedelta(seconds=delay_s)}


def _outcome(finished: HandlerResult) -> str:
    error = finished.error
    if error is None:
        return "not_wanted" if finished.value is NOT_WANTED else "succeeded"
    if isinstance(error, HandedBackError):
        return "handed_back"
    if isinstance(error, HandlerTimeoutError):
        return "timed_out"
    request = _request(error)
    return "gave_up" if isinstance(request, GiveUp) else "retry" if request else "failed"


def _request(error: BaseException) -> Retry | GiveUp | None:
    """Return the `Retry` or `GiveUp` that a handler raised; a task group raises them in a group."""
    errors = list(_leaves(error))
    requests = [each for each in errors if isinstance(each, Retry | GiveUp)]
    if len(requests) < len(errors):
        return None
    latest = max((each for each in requests if isinstance(each, Retry)), key=_after_s, default=None)
    return next((each for each in requests if isinstance(each, GiveUp)), latest)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _after_s(retry: Retry) -> float:
    return retry.after_s


def write_handlers(
    connection: Connection,
    registered: Iterable[Handler],
    now: datetime,
    *,
    prefetch_budget_s: float,
) -> None:
    """Replace the stored handlers by those of the application that starts.

    The timeout of a prefetch handler without a budget of its own is `prefetch_budget_s`.
    """
    connection.execute(delete(handlers))
    rows = [_columns(handler, now, prefetch_budget_s) for handler in registered]
    if rows:
        connection.execute(_insert_or_update(connection), rows)


def _insert_or_update(connection: Connection) -> Any:
    """Return an upsert: another process that starts may have written its handlers meanwhile."""
    row = upsert(connection, handlers)
    key = handlers.primary_key.columns
    values = {each.name: row.excluded[each.name] for each in handlers.c if each.name not in key}
    return row.on_conflict_do_update(index_elements=list(key), set_=values)


def _columns(handler: Handler, now: datetime, prefetch_budget_s: float) -> dict[str, Any]:
    default_s = prefetch_budget_s if handler.hook == "prefetch" else DEFAULT_TIMEOUT_S
    return {
        "hook": handler.hook,
        "name": handler.name,
        "max_attempts": handler.max_attempts,
        "timeout_s": handler.timeout_s or default_s,
        "repeatable": handler.repeatable,
        "filters": json.dumps(handler.filters()),
        "seen_at": now,
        "tool": None if handler.tool is None else json.dumps(handler.tool.entry()),
    }
