"""What becomes of a run after an attempt: done, tried again later, or parked.

Writes down which handlers there are, for pages and commands that do not import them.
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
from ..handlers.handler_call import NOT_WANTED, HandlerResult
from ..handlers.retries import GiveUp, Retry
from ..handlers.routing import DEFAULT_TIMEOUT_S, Handler
from ..masking.error_report import describe_failure
from .store import AttemptEnd, ClaimedRun

#: How an attempt may end that was wanted.
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
    """Say how the attempt ended and what state its run is in from `now` on."""
    error = finished.error
    if error is None:
        state: dict[str, Any] = {"state": "succeeded"}
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
    wish = _wish(error)
    if isinstance(wish, GiveUp):
        return {"state": "parked", "reason": describe_failure(wish).message or "given up"}
    if run.spent >= handler.max_attempts:
        return {
            "state": "parked",
            "reason": f"{run.spent} of {handler.max_attempts} attempts failed",
        }
    delay_s = wish.after_s if wish else handler.retry_backoff.delay_s(run.spent, random)
    return {"state": "failed", "due_at": now + timedelta(seconds=delay_s)}


def _outcome(finished: HandlerResult) -> str:
    error = finished.error
    if error is None:
        return "not_wanted" if finished.value is NOT_WANTED else "succeeded"
    if isinstance(error, HandedBackError):
        return "handed_back"
    if isinstance(error, HandlerTimeoutError):
        return "timed_out"
    wish = _wish(error)
    return "gave_up" if isinstance(wish, GiveUp) else "retry" if wish else "failed"


def _wish(error: BaseException) -> Retry | GiveUp | None:
    """Return what the handler asked for, if it asked: from a task group it comes in a group."""
    raised = list(_leaves(error))
    wishes = [each for each in raised if isinstance(each, Retry | GiveUp)]
    if len(wishes) < len(raised):
        return None
    latest = max((each for each in wishes if isinstance(each, Retry)), key=_after_s, default=None)
    return next((each for each in wishes if isinstance(each, GiveUp)), latest)


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
    """Put the handlers of the application that starts in the place of those of the last one.

    A prefetch handler without a budget of its own has that of the application.
    """
    connection.execute(delete(handlers))
    rows = [_columns(handler, now, prefetch_budget_s) for handler in registered]
    if rows:
        connection.execute(_insert_or_update(connection), rows)


def _insert_or_update(connection: Connection) -> Any:
    """Another process may be starting too, and have written its own meanwhile."""
    row = upsert(connection, handlers)
    key = handlers.primary_key.columns
    told = {each.name: row.excluded[each.name] for each in handlers.c if each.name not in key}
    return row.on_conflict_do_update(index_elements=list(key), set_=told)


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
    }
