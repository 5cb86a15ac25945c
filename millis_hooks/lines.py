"""The lines that are logged for each delivery and for each attempt at a run.

What they are about travels beside the words, as `fields`, for formatters that can show it:
`logs.JsonFormatter`. Ids come from outside, and may be anything.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from starlette.types import Scope

from .call_log.deliveries import Delivery, Kind
from .exceptions import DeliveryError
from .failures import Failure, hidden
from .printable import printable

deliveries_log = logging.getLogger("millis_hooks.deliveries")
runs_log = logging.getLogger("millis_hooks.runs")

#: The most of an id that a line shows, in characters.
_ID_CHARS = 100
#: Ids as Millis makes them: nothing in them can be a phone number, and no terminal obeys them.
_PLAIN = re.compile(r"(?!.*\d{7})[\w-]{1,64}", re.ASCII)
_MAYBE_NUMBER = re.compile(r"\d{5,}(?=\d\d)")


class Attempt(NamedTuple):
    """An attempt at a run that has ended."""

    run_id: int
    handler: str
    attempt: int
    session_id: str | None
    outcome: str
    duration_ms: float
    trace_id: str | None


def shown_id(text: str | None) -> str | None:
    """Return an id as it may be logged: short, masked, and on one line."""
    if text is None or _PLAIN.fullmatch(text):
        return text
    return printable(_MAYBE_NUMBER.sub("•", hidden(text[:_ID_CHARS])), one_line=True)


def trace_id(traceparent: str | None) -> str | None:
    """Return the id of the trace that a context is of: `00-<trace>-<span>-<flags>`."""
    return None if traceparent is None else traceparent.split("-")[1]


def log_delivery(
    scope: Scope, delivery: Delivery, *, outcome: str | None = None, status_code: int = 200
) -> None:
    """Log what became of a delivery, in place of the server's line about the request."""
    shown = shown_id(delivery.session_id)
    outcome = outcome or delivery.outcome
    taken_ms = delivery.latency_ms
    fields = {
        "session_id": shown,
        "duration_ms": _rounded(taken_ms),
        "source": delivery.source,
        "trace_id": trace_id(delivery.trace),
    }
    words = (delivery.kind, shown or "-", outcome, status_code, taken_ms or 0.0)
    _log(scope, delivery.kind, outcome, status_code, fields, "%s %s %s %d %.1f ms", *words)


def log_refusal(scope: Scope, kind: Kind, error: DeliveryError) -> None:
    """Log that a request was refused, in place of the server's line about it."""
    status_code, reason = error.status_code, error.detail
    words = (kind, status_code, reason)
    _log(scope, kind, "rejected", status_code, {"reason": reason}, "%s - rejected %d: %s", *words)


def _log(
    scope: Scope,
    kind: Kind,
    outcome: str,
    status_code: int,
    fields: Mapping[str, Any],
    *message: Any,
) -> None:
    if not deliveries_log.isEnabledFor(logging.INFO):
        return
    scope["logged"] = True
    told = {"event": "delivery", "kind": kind, "outcome": outcome, "status_code": status_code}
    deliveries_log.info(*message, extra=_extra({**told, **fields}))


def log_attempt(
    attempt: Attempt, *, state: str, due_at: datetime | None, failure: Failure | None
) -> None:
    """Log how an attempt ended and what state its run is in; it is a warning if it failed."""
    level = logging.INFO if failure is None else logging.WARNING
    if not runs_log.isEnabledFor(level):
        return
    told = attempt._asdict() | {
        "event": "attempt",
        "state": state,
        "session_id": shown_id(attempt.session_id),
        "duration_ms": _rounded(attempt.duration_ms),
        "due_at": None if due_at is None else due_at.isoformat(),
        "error_type": None if failure is None else failure.error_type,
    }
    words = (attempt.run_id, attempt.handler, attempt.attempt, failure or attempt.outcome, state)
    runs_log.log(level, "run %d of %s, attempt %d: %s; it is %s now", *words, extra=_extra(told))


def _rounded(duration_ms: float | None) -> float | None:
    return None if duration_ms is None else round(duration_ms, 2)


def _extra(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"fields": {name: value for name, value in fields.items() if value is not None}}
